"""Transformers' interface to continuous batching: requests from any thread, answered by one thread in the background.

`init_continuous_batching`, `continuous_batching_context_manager` and `generate_batch` have the signatures of
transformers 5, and work under transformers 4 too. The manager keeps requests in the order in which they came; before
every block it takes as many of the oldest as its budget allows, and denoises one block of each.

A request's answer is the one that `generate` gives for it alone, whatever its neighbours and whenever it came.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from transformers import GenerationConfig
from transformers.generation.continuous_batching import requests as of_transformers
from transformers.utils import logging

from .continuous_batching_llada import Budget, Row, check_options, denoise_group, make_row
from .generation_config_llada import LLaDAGenerationConfig
from .generation_llada import LLaDAGenerationMixin

logger = logging.get_logger(__name__)

RequestStatus: Any = of_transformers.RequestStatus
# Of a batch, where the config of the call sets no other: rows, columns of the canvas, bytes of float32 logits. The
# logits are copied a few times when tokens are drawn.
MAX_ROWS = 64
MAX_COLUMNS = 2**15
MAX_LOGITS_BYTES = 2**30
# Seconds that `add_request` waits for a place in a full queue, as in transformers.
QUEUE_TIMEOUT = 10.0
# What the manager does once for all requests.
OF_MANAGERS = ("compile", "compile_config", "pack_weights")
# Fields of transformers' `ContinuousBatchingConfig` that would change results, with the way out.
REFUSED_FIELDS = {
    "return_logprobs": "leave it out; committed tokens have confidences, which `generate_batch` does not return",
    "scheduler_type": 'leave it out, or pass "fifo"; the oldest requests come first',
}


@dataclass
class LLaDABatchOutput(of_transformers.GenerationOutput):  # type: ignore[misc,unused-ignore]
    """The state of a request: transformers' `GenerationOutput`, and what a diffusion model adds.

    Attributes:
        request_id: the request's id.
        prompt_ids: the prompt.
        generated_tokens: the answer's finished blocks; of a finished request up to its end-of-text token or stop string
            if it has one.
        logprobs: always empty.
        error: why the request failed; None if it did not.
        status: `PENDING`, `DECODING`, `FINISHED` or `FAILED` of transformers' `RequestStatus`. A cancelled request has
            failed.
        created_time: when the request came, in seconds of `time.perf_counter`.
        lifespan: when its first block began and when it ended, in the same seconds; -1 before.
        timestamps: with `record_timestamps`, when each token was finished, in the same seconds.
        num_forward_passes: passes of the model that it took part in.
        finish_reason: "stop" (end of text or a stop string), "length", "cancelled" or "error"; None before the end.
        draft: with `drafts`, the active block after a pass, mask tokens included; None in all other outputs.
    """

    request_id: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    generated_tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    error: Optional[str] = None
    status: Any = RequestStatus.PENDING
    created_time: float = field(default_factory=time.perf_counter)
    lifespan: tuple[float, float] = (-1, -1)
    timestamps: Optional[list[float]] = None
    num_forward_passes: int = 0
    finish_reason: Optional[str] = None
    draft: Optional[list[int]] = None

    def is_finished(self) -> bool:
        """Whether nothing more will come: the request is answered, failed or cancelled."""
        return self.status in (RequestStatus.FINISHED, RequestStatus.FAILED)


@dataclass
class BatchingStatistics:
    """What a manager has done since it was made, for monitoring.

    Attributes:
        num_waiting, num_running: requests that wait for their first block, or have begun.
        num_finished, num_failed, num_cancelled: requests that ended so.
        num_tokens: tokens of finished blocks.
        num_row_passes: passes, counted once for every request that took part.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_tokens: int = 0
    num_row_passes: int = 0


@dataclass
class Request:
    """A request on its way.

    Attributes:
        output: its state as its owner last saw it, or will next.
        row: what is denoised; None for a prompt that cannot be answered.
        streams: whether to report every finished block.
        callback: what to call with every report, in the manager's thread.
    """

    output: LLaDABatchOutput
    row: Optional[Row] = None
    streams: bool = False
    callback: Optional[Callable[[LLaDABatchOutput], None]] = None


class BackgroundThreadStatus:
    """Whether the manager's thread runs, is to stop, or has died.

    Attributes:
        fatal_error: what the thread died of, or None.
        local_status: `DONT_STOP`, `FLUSH_AND_STOP` (when all requests are answered), `HARD_STOP` or `STOPPED`.
    """

    DONT_STOP, FLUSH_AND_STOP, HARD_STOP, STOPPED = range(4)

    def __init__(self) -> None:
        self.fatal_error: Optional[BaseException] = None
        self.local_status = self.DONT_STOP

    def can_accept_new_requests(self) -> Optional[str]:
        """Why no request can be taken, or None."""
        if self.fatal_error is not None:
            return "The background thread died with a fatal error."
        if self.local_status != self.DONT_STOP:
            return "The background thread is stopping."
        return None


class LLaDABatchingManager:
    """Takes requests from any thread and answers them in a thread of its own; see `init_continuous_batching`.

    Args:
        model: a model that generates; it is put into evaluation mode.
        generation_config: options of requests that bring none.
        continuous_batching_config: transformers' `ContinuousBatchingConfig`, or anything with some of its fields.
            `max_requests_per_batch` and `max_batch_tokens` (columns of the canvas) bound a batch, `max_queue_size` the
            requests that wait; with `seed`, request n draws from a generator seeded with `seed + n`. The fields about
            paged caches and CUDA graphs have no meaning here.
        workload_hints: not used.

    Raises:
        ValueError: for a field that cannot have its meaning.
    """

    def __init__(
        self,
        model: Any,
        generation_config: GenerationConfig,
        continuous_batching_config: Optional[Any] = None,
        workload_hints: Optional[Any] = None,
    ):
        raise NotImplementedError

    # The thread

    def is_running(self) -> bool:
        """Whether the thread is alive."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread; requests may have come before."""
        raise NotImplementedError

    def warmup(self) -> None:
        """Nothing: there are no graphs to capture."""
        raise NotImplementedError

    def stop(
        self,
        block: bool = True,
        timeout: Optional[float] = None,
        keep_for_next_session: bool = False,
        hard_stop: bool = False,
    ) -> None:
        """Let the thread end: once all requests are answered, or with `hard_stop` at the end of the pass.

        Args:
            block: wait for it.
            timeout: no longer than so many seconds.
            keep_for_next_session: the next `init_continuous_batching` of the model returns this manager.
            hard_stop: fail the requests that are left.

        Raises:
            RuntimeError: inside a `pause` of the same thread, which would wait for ever.
        """
        raise NotImplementedError

    def join(self, stop_trigger_time: float, timeout: Optional[float] = None) -> None:
        """Wait for the thread's end, at most `timeout` seconds."""
        raise NotImplementedError

    def destroy(self) -> None:
        """Stop the thread if it runs."""
        raise NotImplementedError

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Let the thread wait at the next border of a block: inside the `with`, the model may be used and changed.

        Raises:
            RuntimeError: if no thread runs, or it ends before it could pause.
        """
        raise NotImplementedError

    def statistics(self) -> BatchingStatistics:
        """What has been done so far; a copy."""
        raise NotImplementedError

    # Requests

    def add_request(
        self,
        input_ids: Any,
        request_id: Optional[str] = None,
        max_new_tokens: Optional[int] = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        eos_token_id: Union[int, list[int], None] = None,
        *,
        generation_config: Optional[GenerationConfig] = None,
        seed: Optional[int] = None,
        tokenizer: Optional[Any] = None,
        drafts: bool = False,
        callback: Optional[Callable[[LLaDABatchOutput], None]] = None,
        **options: Any,
    ) -> Optional[str]:
        """Queue a request.

        Args:
            input_ids: the prompt, a list of ids.
            request_id: None counts: `req_0`, `req_1`, ...
            max_new_tokens: length of the answer's canvas; None takes the options'.
            streaming: report every finished block, with the answer so far, not only the end.
            record_timestamps: keep the time at which each token was finished.
            eos_token_id: ids that end the answer; a negative one none.
            generation_config: options in place of the manager's.
            seed: of this request's draws; `generate` with a generator of this seed gives the same answer. With
                `num_return_sequences`, copy n draws with `seed + n`. None draws a seed from torch's generator.
            tokenizer: the model's; needed for `stop_strings`.
            drafts: report the active block after every pass, too.
            callback: called with every report, in the manager's thread, which it must not keep; where one is given, no
                report goes to a result handler or to `get_result`. If it raises, the request fails with its error.
            options: any option of `LLaDAGenerationConfig`, as for `generate`, but for `freeze_prompt`,
                `output_history` and `max_time`. `compile`, `compile_config` and `pack_weights` are the manager's.

        Returns:
            The request's id; of several answers to the prompt, that of the first, the others being `ID__child#0`, ...
            None, and a warning, if the thread has died or is to stop.

        Raises:
            ValueError: for bad options, and an id that is in use. A bad prompt raises nothing: the request fails.
            queue.Full: if the queue stays full for ten seconds.
        """
        raise NotImplementedError

    def add_requests(
        self,
        inputs: list[list[int]],
        max_new_tokens: Optional[int] = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        **options: Any,
    ) -> list[str]:
        """`add_request` for several prompts; with `seed`, prompt n draws with `seed + n`.

        Returns:
            The ids, in the order of the prompts.
        """
        raise NotImplementedError

    def cancel_request(self, request_id: str) -> None:
        """Let a request leave at the end of the pass, or before its first one; an id that is not known is ignored.

        Its last report has `finish_reason="cancelled"`, status `FAILED`, and the blocks that were finished.
        """
        raise NotImplementedError

    def get_result(
        self, request_id: Optional[str] = None, timeout: Optional[float] = None
    ) -> Optional[LLaDABatchOutput]:
        """The oldest report that is waiting, of any request or of one.

        Returns:
            The report; None after `timeout` seconds, or if none waits and no thread runs.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[LLaDABatchOutput]:
        """Reports as they come, for as long as the thread runs."""
        raise NotImplementedError

    def request_id_iter(self, request_id: str) -> Iterator[LLaDABatchOutput]:
        """Reports of one request as they come, up to its last one."""
        raise NotImplementedError

    def register_result_handler(self, request_id: str, callback: Callable[[LLaDABatchOutput], None]) -> None:
        """Have a request's reports handed to `callback` in the event loop that runs here, up to its last one.

        Reports that wait for `get_result` already are handed over first.

        Raises:
            RuntimeError: outside an event loop.
        """
        raise NotImplementedError


class LLaDABatchingMixin(LLaDAGenerationMixin):
    """Generation, and transformers' three entry points of continuous batching."""

    def init_continuous_batching(
        self,
        generation_config: Optional[GenerationConfig] = None,
        continuous_batching_config: Optional[Any] = None,
        workload_hints: Optional[Any] = None,
    ) -> LLaDABatchingManager:
        """A manager, to be started and stopped; or the one that was kept. Arguments as for `LLaDABatchingManager`."""
        raise NotImplementedError

    def destroy_cached_continuous_batching_manager(self) -> None:
        """Stop and forget the manager that was kept."""
        raise NotImplementedError

    @contextlib.contextmanager
    def continuous_batching_context_manager(
        self,
        generation_config: Optional[GenerationConfig] = None,
        block: bool = True,
        timeout: Optional[float] = None,
        continuous_batching_config: Optional[Any] = None,
        persistent_manager: bool = False,
        warmup: bool = True,
        workload_hints: Optional[Any] = None,
    ) -> Iterator[LLaDABatchingManager]:
        """A manager that runs inside the `with`.

        Args:
            block, timeout: how to stop it, as for `LLaDABatchingManager.stop`.
            persistent_manager: keep it for the next call.
            warmup: not used.
            generation_config, continuous_batching_config, workload_hints: as for `init_continuous_batching`.
        """
        raise NotImplementedError
        yield

    def generate_batch(
        self,
        inputs: list[list[int]],
        generation_config: Optional[GenerationConfig] = None,
        continuous_batching_config: Optional[Any] = None,
        record_timestamps: bool = False,
        progress_bar: bool = False,
        persistent_manager: bool = False,
        warmup: bool = True,
        **options: Any,
    ) -> dict[str, LLaDABatchOutput]:
        """Answer prompts of any number and lengths; every answer is the one that `generate` gives for its prompt alone.

        Args:
            inputs: token ids of each prompt, without padding.
            record_timestamps: see `LLaDABatchingManager.add_request`.
            progress_bar: show one.
            generation_config, continuous_batching_config, persistent_manager, warmup: as for
                `continuous_batching_context_manager`.
            options: as for `LLaDABatchingManager.add_request`; with `seed`, prompt n draws with `seed + n`.

        Returns:
            Request id -> result, in the order of the prompts; copies of a prompt (`num_return_sequences`) before the
            prompt itself, as in transformers. A request that failed has an `error`.

        Raises:
            ValueError: for bad options.
        """
        raise NotImplementedError
