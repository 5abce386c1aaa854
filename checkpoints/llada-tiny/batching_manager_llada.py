"""Transformers' interface to continuous batching: requests from any thread, answered by one thread in the background.

`init_continuous_batching`, `continuous_batching_context_manager` and `generate_batch` have the signatures of
transformers 5, and work under transformers 4 too. The manager keeps requests in the order in which they came; before
every block it takes as many of the oldest as its budget allows, and denoises one block of each.

A request's answer is the one that `generate` gives for it alone, whatever its neighbours and whenever it came.
"""

import asyncio
import contextlib
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Optional, Union

import torch
from transformers import GenerationConfig
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .batching_results_llada import BackgroundThreadStatus, BatchingStatistics, LLaDABatchOutput, RequestStatus
from .continuous_batching_llada import Budget, Row, check_options, denoise_group, group_rows, make_row
from .generation_config_llada import LLaDAGenerationConfig
from .generation_llada import LLaDAGenerationMixin

logger = logging.get_logger(__name__)

# Of a batch, where the config of the call sets no other: rows, columns of the canvas, bytes of float32 logits. The
# logits are copied a few times when tokens are drawn.
MAX_ROWS = 64
MAX_COLUMNS = 2**15
MAX_LOGITS_BYTES = 2**30
# Seconds that `add_request` waits for a place in a full queue, as in transformers.
QUEUE_TIMEOUT = 10.0
# Seconds after which an idle thread looks whether the program has ended.
IDLE_SECONDS = 0.5
STOPPED_BEFORE = "The manager was stopped before the request was answered."
# Attribute of a model under which its manager is kept, as in transformers.
CACHED_MANAGER = "_cached_continuous_batching_manager"
# What the manager does once for all requests.
OF_MANAGERS = ("compile", "compile_config", "pack_weights")
# Fields of transformers' `ContinuousBatchingConfig` that would change results, with the way out.
REFUSED_FIELDS = {
    "return_logprobs": "leave it out; committed tokens have confidences, which `generate_batch` does not return",
    "scheduler_type": 'leave it out, or pass "fifo"; the oldest requests come first',
}


@dataclass
class Request(Row):
    """A row with an owner.

    Attributes:
        output: its state; reports are copies of it.
        streams: whether to report every finished block.
        callback: what to call with every report, in the manager's thread.
        last_draft: what was reported last of the active block.
    """

    output: LLaDABatchOutput = field(default_factory=LLaDABatchOutput)
    streams: bool = False
    callback: Optional[Callable[[LLaDABatchOutput], None]] = None
    last_draft: Optional[list[int]] = None


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
        self.model = model.eval()
        self.warmed_up = False
        self.background_thread_status = BackgroundThreadStatus()
        self._lock = threading.Condition()  # of all below; told of every change
        self._requests: dict[str, Request] = {}  # the oldest first
        self._reports: dict[str, deque[LLaDABatchOutput]] = {}
        self._handlers: dict[str, tuple[Callable[[LLaDABatchOutput], None], asyncio.AbstractEventLoop]] = {}
        self._num_requests = 0
        self._statistics = BatchingStatistics()
        self._num_pauses = 0
        self._own_pauses = threading.local()
        self._is_paused = self._is_packed = False
        self._generation_thread: Optional[threading.Thread] = None
        self.configure(generation_config, continuous_batching_config)

    def configure(
        self, generation_config: Optional[GenerationConfig] = None, continuous_batching_config: Optional[Any] = None
    ) -> None:
        """Replace the options of coming requests, the limits, or both; arguments and errors are those of the class."""
        if generation_config is not None:
            self.generation_config = LLaDAGenerationConfig.from_generation_config(generation_config)
        config = continuous_batching_config
        for name, way_out in REFUSED_FIELDS.items():
            value = getattr(config, name, None)
            if value not in (None, False, "fifo"):
                raise ValueError(f"`{name}` is not available here, got {value!r}; {way_out}.")
        limits = {"max_requests_per_batch": MAX_ROWS, "max_batch_tokens": MAX_COLUMNS}
        for name in limits:
            value = getattr(config, name, None)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be None or at least 1, got {value}.")
            limits[name] = value or limits[name]
        self._budget = Budget(
            limits["max_requests_per_batch"], limits["max_batch_tokens"], max_logits_bytes=MAX_LOGITS_BYTES
        )
        self._seed: Optional[int] = getattr(config, "seed", None)
        self._max_queue_size: int = getattr(config, "max_queue_size", None) or 0

    # The thread

    def is_running(self) -> bool:
        """Whether the thread is alive."""
        return self._generation_thread is not None and self._generation_thread.is_alive()

    def start(self) -> None:
        """Start the thread; requests may have come before."""
        if self.is_running():
            logger.warning("The manager's thread is running already.")
            return
        self.background_thread_status.fatal_error = None
        self.background_thread_status.local_status = BackgroundThreadStatus.DONT_STOP
        device = self.model.device.type
        # Autocast is a thread's own.
        autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        self._generation_thread = threading.Thread(target=self._run, args=autocast, name=type(self).__name__)
        self._generation_thread.start()

    def warmup(self) -> None:
        """Nothing: there are no graphs to capture."""
        self.warmed_up = True

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
        if self._generation_thread is None:
            logger.warning("The manager was not started, so there is nothing to stop.")
            return
        if getattr(self._own_pauses, "count", 0):
            raise RuntimeError(
                "`stop` inside a `pause` of the same thread would wait for ever; leave the `pause` first."
            )
        began, status = time.perf_counter(), self.background_thread_status
        with self._lock:
            status.local_status = max(status.local_status, status.HARD_STOP if hard_stop else status.FLUSH_AND_STOP)
            if hard_stop:
                for request in self._requests.values():
                    request.error = RuntimeError(STOPPED_BEFORE)
            self._lock.notify_all()
        if block:
            self.join(began, timeout)
        if keep_for_next_session:
            setattr(self.model, CACHED_MANAGER, self)

    def join(self, stop_trigger_time: float, timeout: Optional[float] = None) -> None:
        """Wait for the thread's end, at most `timeout` seconds."""
        thread = self._generation_thread
        if thread is None:
            return
        thread.join(timeout)
        if thread.is_alive():
            seconds = time.perf_counter() - stop_trigger_time
            logger.warning(f"The manager's thread did not end within {seconds:.1f} s; it ends when its work is done.")
        else:
            self._generation_thread = None

    def destroy(self) -> None:
        """Stop the thread if it runs."""
        if self.is_running():
            self.stop(block=True)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Let the thread wait at the next border of a block: inside the `with`, the model may be used and changed.

        Raises:
            RuntimeError: if no thread runs, or it ends before it could pause.
        """
        if not self.is_running():
            raise RuntimeError("`pause` needs a running manager; call `start` first.")
        with self._lock:
            self._count_pause(1)
            try:
                self._lock.wait_for(lambda: self._is_paused or not self._is_going())
                if not self._is_paused:
                    raise RuntimeError("The manager's thread ended before it could pause.")
            except BaseException:
                self._count_pause(-1)
                raise
        try:
            yield
        finally:
            with self._lock:
                self._count_pause(-1)

    def statistics(self) -> BatchingStatistics:
        """What has been done so far; a copy."""
        with self._lock:
            num_running = sum(request.output.status == RequestStatus.DECODING for request in self._requests.values())
            num_waiting = len(self._requests) - num_running
            return replace(self._statistics, num_running=num_running, num_waiting=num_waiting)

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
        config = self._settle(max_new_tokens, eos_token_id, generation_config, tokenizer, options)
        if not self._is_accepting():
            return None
        if request_id is None or (seed is None and self._seed is not None):
            number = self._count_requests(1)
            request_id = f"req_{number}" if request_id is None else request_id
            seed = self._seed + number if seed is None and self._seed is not None else seed
        for copy, own_id in enumerate([request_id, *child_ids(request_id, config.num_return_sequences)]):
            output = LLaDABatchOutput(own_id, timestamps=[] if record_timestamps else None)
            try:
                own_seed = self._choose_seed(config, None if seed is None else seed + copy)
                row = make_row(self.model, 0, input_ids, config, own_seed, tokenizer)
            except (ValueError, TypeError) as error:
                output.error, output.finish_reason, output.status = str(error), "error", RequestStatus.FAILED
                output.lifespan = (output.created_time, output.created_time)
                with self._lock:
                    self._statistics.num_failed += 1
                self._hand_over(output, callback)
                continue
            request = Request(**vars(row), output=output, streams=streaming, callback=callback)
            output.prompt_ids = list(request.ids)
            request.on_left = functools.partial(self._settle_block, request)
            if drafts:
                request.on_draft = functools.partial(self._report_draft, request)
            if not self._enqueue(request):
                return None
        return request_id

    def add_requests(
        self,
        inputs: list[list[int]],
        max_new_tokens: Optional[int] = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        seed: Optional[int] = None,
        **options: Any,
    ) -> list[str]:
        """`add_request` for several prompts; with `seed`, prompt n draws with `seed + n`.

        Returns:
            The ids, in the order of the prompts.
        """
        first = self._count_requests(len(inputs))
        request_ids = [f"req_{first + index}" for index in range(len(inputs))]
        base = options.get("generation_config") or self.generation_config
        num_copies = options.get("num_return_sequences") or base.num_return_sequences or 1
        if seed is None and self._seed is not None:
            seed = self._seed + first * num_copies
        # A batch is as wide as its longest row, so neighbours should be alike.
        lengths = [len(prompt) if hasattr(prompt, "__len__") else 0 for prompt in inputs]
        for index in sorted(range(len(inputs)), key=lambda index: -lengths[index]):
            self.add_request(
                inputs[index],
                request_ids[index],
                max_new_tokens,
                streaming,
                record_timestamps,
                seed=None if seed is None else seed + index * num_copies,
                **options,
            )
        return request_ids

    def cancel_request(self, request_id: str) -> None:
        """Let a request leave at the end of the pass, or before its first one; an id that is not known is ignored.

        Its last report has `finish_reason="cancelled"`, status `FAILED`, and the blocks that were finished.
        """
        with self._lock:
            own_ids = [own_id for own_id in self._requests if own_id.partition("__child#")[0] == request_id]
            for own_id in {request_id, *own_ids} & self._requests.keys():
                self._requests[own_id].is_cancelled = True
            self._lock.notify_all()

    def get_result(
        self, request_id: Optional[str] = None, timeout: Optional[float] = None
    ) -> Optional[LLaDABatchOutput]:
        """The oldest report that is waiting, of any request or of one.

        Returns:
            The report; None after `timeout` seconds, or if none waits and no thread runs.
        """

        def has_report() -> bool:
            return bool(self._reports) if request_id is None else request_id in self._reports

        with self._lock:
            self._lock.wait_for(lambda: has_report() or not self._is_going(), timeout)
            if not has_report():
                return None
            own_id = next(iter(self._reports)) if request_id is None else request_id
            report = self._reports[own_id].popleft()
            if not self._reports[own_id]:
                del self._reports[own_id]
            return report

    def __iter__(self) -> Iterator[LLaDABatchOutput]:
        """Reports as they come, for as long as the thread runs."""
        while self.is_running():
            report = self.get_result(timeout=0.1)
            if report is not None:
                yield report

    def request_id_iter(self, request_id: str) -> Iterator[LLaDABatchOutput]:
        """Reports of one request as they come, up to its last one."""
        while True:
            report = self.get_result(request_id, timeout=0.1)
            if report is not None:
                yield report
            if not self.is_running() if report is None else report.is_finished():
                return

    def register_result_handler(self, request_id: str, callback: Callable[[LLaDABatchOutput], None]) -> None:
        """Have a request's reports handed to `callback` in the event loop that runs here, up to its last one.

        Reports that wait for `get_result` already are handed over first.

        Raises:
            RuntimeError: outside an event loop.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            self._handlers[request_id] = (callback, loop)
            for report in self._reports.pop(request_id, ()):
                self._hand_over(report)

    # In the callers' threads

    def _settle(
        self,
        max_new_tokens: Optional[int],
        eos_token_id: Union[int, list[int], None],
        generation_config: Optional[GenerationConfig],
        tokenizer: Optional[Any],
        options: dict[str, Any],
    ) -> LLaDAGenerationConfig:
        """The checked options of one request."""
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        if eos_token_id is not None:
            ids = eos_token_id if isinstance(eos_token_id, (list, tuple)) else [eos_token_id]
            ids = [token for token in ids if token >= 0]
            options |= {"eos_token_id": ids} if ids else {"stop_at_eos": False}
        own = self.generation_config
        config: LLaDAGenerationConfig = self.model.prepare_options(
            own if generation_config is None else generation_config, {**options, "tokenizer": tokenizer}
        )
        check_options(config, "add_request")
        for name in OF_MANAGERS:
            is_other = generation_config is not None and getattr(generation_config, name, None) not in (
                None,
                getattr(own, name),
            )
            if name in options or is_other:
                raise ValueError(
                    f"`{name}` holds for all requests of a manager, got {getattr(config, name)!r}; pass it in the "
                    "`generation_config` of `init_continuous_batching`."
                )
        return config

    def _choose_seed(self, config: LLaDAGenerationConfig, seed: Optional[int]) -> Optional[int]:
        """The seed of a request; None if nothing is drawn, so that it may share passes with others like it."""
        if not config.samples and config.remasking != "random":
            return None
        return int(torch.randint(2**63 - 1, (1,))) if seed is None else seed

    def _count_requests(self, num_requests: int) -> int:
        """Reserve numbers; return the first one."""
        with self._lock:
            self._num_requests += num_requests
            return self._num_requests - num_requests

    def _is_accepting(self) -> bool:
        """Whether requests can come; a warning says why not."""
        reason = self.background_thread_status.can_accept_new_requests()
        if reason is not None:
            logger.warning(f"{reason} A request is dropped.")
        return reason is None

    def _enqueue(self, request: Request) -> bool:
        """Let a request wait for its first block; False if the thread has ended meanwhile."""
        request_id = request.output.request_id
        with self._lock:
            if request_id in self._requests:
                raise ValueError(f"`request_id` must not be in use, got {request_id!r}; pass another one, or None.")
            if self._max_queue_size and not self._lock.wait_for(self._has_place, QUEUE_TIMEOUT):
                raise queue.Full(
                    f"{self._max_queue_size} requests are waiting already; come back later, or raise `max_queue_size`."
                )
            if not self._is_accepting():
                return False
            self._requests[request_id] = request
            self._lock.notify_all()
            return True

    def _has_place(self) -> bool:
        num_waiting = sum(other.output.status == RequestStatus.PENDING for other in self._requests.values())
        return num_waiting < self._max_queue_size

    def _is_going(self) -> bool:
        """Whether the thread may still report something."""
        return self.is_running() and self.background_thread_status.local_status != BackgroundThreadStatus.STOPPED

    def _count_pause(self, change: int) -> None:
        self._num_pauses += change
        self._own_pauses.count = getattr(self._own_pauses, "count", 0) + change
        if not self._num_pauses:
            self._is_paused = False
        self._lock.notify_all()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Copies and pickles of a model begin without the manager that it keeps."""
        return type(None), ()

    # In the manager's thread

    def _run(self, device: str, dtype: torch.dtype, is_autocast: bool) -> None:
        """Answer requests until told to stop; whatever happens, every request gets its last report."""
        status = self.background_thread_status
        error: BaseException = RuntimeError(STOPPED_BEFORE)
        try:
            if device == "cuda":
                torch.cuda.set_device(self.model.device)
            with torch.no_grad(), torch.autocast(device, dtype, is_autocast), contextlib.ExitStack() as packed:
                self._is_packed = False
                while (requests := self._next_requests(packed)) is not None:
                    for group in group_rows(requests, self.model.device):
                        # Some may have been cancelled while others were denoised.
                        if staying := [request for request in group if not request.is_leaving]:
                            self._denoise(staying)
        except BaseException as fatal:
            logger.error(f"The manager's thread died: {fatal!r}", exc_info=True)
            status.fatal_error = error = fatal
        with self._lock:
            status.local_status = max(status.local_status, status.HARD_STOP)
            left = [*self._requests.values()]
        for request in left:
            request.error = request.error or RuntimeError(str(error) or repr(error))
            self._end(request)
        with self._lock:
            status.local_status = status.STOPPED
            self._lock.notify_all()

    def _next_requests(self, packed: contextlib.ExitStack) -> Optional[list[Request]]:
        """Wait for the requests of the next block; None at the end.

        Args:
            packed: holds the packed weights, which must not outlive a pause: its caller may change the weights.
        """
        status = self.background_thread_status
        while True:
            with self._lock:
                requests = [*self._requests.values()]
                if status.local_status == status.HARD_STOP or not threading.main_thread().is_alive():
                    return None
                if self._num_pauses or not requests:
                    if self._num_pauses:
                        packed.close()
                        self._is_packed, self._is_paused = False, True
                        self._lock.notify_all()
                    elif status.local_status == status.FLUSH_AND_STOP:
                        return None
                    self._lock.wait(IDLE_SECONDS)
                    continue
            leaving = [request for request in requests if request.is_leaving]
            for request in leaving:
                self._end(request)
            if not leaving:
                break
        if not self._is_packed:
            config = self.generation_config
            packed.enter_context(self.model.prepacked_weights(False if config.compile else config.pack_weights))
            self._is_packed = True
        chosen = self._budget.choose(requests, self.model.config.embedding_size)
        for request in chosen:
            if request.output.status == RequestStatus.PENDING:
                request.output.status, request.output.lifespan = RequestStatus.DECODING, (time.perf_counter(), -1)
        return chosen

    def _denoise(self, requests: list[Request]) -> None:
        """Denoise one block of each; if that fails, of each alone, so that only those fail that cannot be denoised."""
        states = [None if request.generator is None else request.generator.get_state() for request in requests]
        try:
            denoise_group(self.model, list(requests))
        except Exception as error:
            if isinstance(error, getattr(torch, "AcceleratorError", ())):
                raise  # the device is lost
            left = [(request, state) for request, state in zip(requests, states) if not request.has_left]
            if len(requests) == 1:
                requests[0].error = error
                requests[0].leave(None)
                return
            logger.warning(f"A pass of {len(requests)} requests failed ({error}); each of them is tried alone.")
            for request, state in left:
                if request.generator is not None:
                    request.generator.set_state(state)
                self._denoise([request])

    def _settle_block(self, request: Request) -> None:
        """Report a finished block, or the end."""
        output, answer = request.output, request.answer
        num_new, num_passes = len(answer) - len(output.generated_tokens), request.num_passes - output.num_forward_passes
        with self._lock:
            self._statistics.num_tokens += num_new
            self._statistics.num_row_passes += num_passes
        if output.timestamps is not None:
            output.timestamps += [time.perf_counter()] * num_new
        output.generated_tokens, output.num_forward_passes = answer, request.num_passes
        if request.is_leaving or not request.blocks:
            self._end(request)
        elif request.streams:
            self._report(request)

    def _end(self, request: Request) -> None:
        """Forget a request, and give its last report."""
        output = request.output
        output.status, output.finish_reason = RequestStatus.FINISHED, request.finish_reason
        kind = "num_finished"
        if request.error is not None:
            output.error, output.finish_reason, kind = str(request.error) or repr(request.error), "error", "num_failed"
        elif request.is_cancelled:
            output.error, output.finish_reason, kind = "The request was cancelled.", "cancelled", "num_cancelled"
        if output.error is not None:
            output.status = RequestStatus.FAILED
        output.lifespan = (output.lifespan[0], time.perf_counter())
        request.on_draft = request.on_left = None  # which hold the request itself
        with self._lock:
            del self._requests[output.request_id]
            setattr(self._statistics, kind, getattr(self._statistics, kind) + 1)
            self._lock.notify_all()
        self._report(request)

    def _report_draft(self, request: Request, draft: list[int]) -> None:
        """Report the active block after a pass, if it has changed."""
        if draft != request.last_draft:
            request.last_draft = draft
            self._report(request, draft)

    def _report(self, request: Request, draft: Optional[list[int]] = None) -> None:
        """Give a copy of a request's state to whoever wants it."""
        output = request.output
        times = None if output.timestamps is None else output.timestamps[:]
        report = replace(output, generated_tokens=output.generated_tokens[:], timestamps=times, draft=draft)
        try:
            self._hand_over(report, request.callback)
        except Exception as error:
            if report.is_finished():
                logger.warning(f"The callback of request `{report.request_id}` failed on its last report: {error!r}")
            request.error = error

    def _hand_over(
        self, report: LLaDABatchOutput, callback: Optional[Callable[[LLaDABatchOutput], None]] = None
    ) -> None:
        """Give a report to the request's callback, to its handler's event loop, or to `get_result`."""
        if callback is not None:
            callback(report)
            return
        with self._lock:
            handler = self._handlers.get(report.request_id)
            if handler is None:
                self._reports.setdefault(report.request_id, deque()).append(report)
                self._lock.notify_all()
                return
            if report.is_finished():
                del self._handlers[report.request_id]
        try:
            handler[1].call_soon_threadsafe(handler[0], report)
        except RuntimeError:  # the loop is closed, so nobody listens
            self.cancel_request(report.request_id)


def child_ids(request_id: str, num_copies: Optional[int]) -> list[str]:
    """The ids of the further answers to a prompt, as transformers makes them."""
    return [f"{request_id}__child#{child}" for child in range((num_copies or 1) - 1)]


class LLaDABatchedGenerationMixin(LLaDAGenerationMixin):
    """Generation, and transformers' three entry points of continuous batching."""

    def init_continuous_batching(
        self,
        generation_config: Optional[GenerationConfig] = None,
        continuous_batching_config: Optional[Any] = None,
        workload_hints: Optional[Any] = None,
    ) -> LLaDABatchingManager:
        """A manager, to be started and stopped; or the one that was kept. Arguments as for `LLaDABatchingManager`."""
        kept = getattr(self, CACHED_MANAGER, None)
        if kept is not None:
            kept.configure(generation_config, continuous_batching_config)
            return kept
        config = self.generation_config if generation_config is None else generation_config
        return LLaDABatchingManager(self, config, continuous_batching_config, workload_hints)

    def destroy_cached_continuous_batching_manager(self) -> None:
        """Stop and forget the manager that was kept."""
        kept = getattr(self, CACHED_MANAGER, None)
        if kept is not None:
            kept.destroy()
            delattr(self, CACHED_MANAGER)

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
        manager = self.init_continuous_batching(generation_config, continuous_batching_config, workload_hints)
        manager.start()
        has_failed = True
        try:
            yield manager
            has_failed = False
        finally:
            # Nobody waits for the answers any more.
            manager.stop(block, timeout, keep_for_next_session=persistent_manager, hard_stop=has_failed)

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
        if not inputs:
            return {}
        base = self.generation_config if generation_config is None else generation_config
        num_copies = options.get("num_return_sequences") or base.num_return_sequences or 1
        results: dict[str, Optional[LLaDABatchOutput]] = {}
        running = self.continuous_batching_context_manager(
            generation_config, True, None, continuous_batching_config, persistent_manager
        )
        with running as manager, tqdm(total=len(inputs) * num_copies, disable=not progress_bar, unit="request") as bar:
            for request_id in manager.add_requests(inputs, record_timestamps=record_timestamps, **options):
                results |= dict.fromkeys((*child_ids(request_id, num_copies), request_id))
            num_missing = len(results)
            while num_missing:
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError(f"The manager was stopped before {num_missing} of the requests were answered.")
                if result is not None and result.request_id in results and result.is_finished():
                    results[result.request_id] = result
                    num_missing -= 1
                    bar.update(1)
        return {request_id: result for request_id, result in results.items() if result is not None}
