"""Where requests are computed: transformers' generation managers, with `generate` or continuous batching behind them.

transformers' handlers turn a request into token ids and a generation config, and hand both to a `BaseGenerateManager`.
The two here run LLaDA: `OneAtATime` calls `generate` on a thread, `Batched` gives requests to the
model's own continuous batching. What a handler cannot pass on, such as a seed or a suffix, stands in the request's
`Job`; what it cannot ask back, such as the number of passes, is written there.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from queue import Queue
from typing import Any

import torch
from transformers.cli.serving.utils import (
    BaseGenerateManager,
    CBWorkerDeadError,
    DirectStreamer,
    GenerationState,
    _GenerationCancelled,
    _StreamError,
    response_events_to_chunks,
)

from modeling_llada.canvas_llada import answer_blocks

from .requests import Job, RequestError


class TextCutter:
    """Ends a text that arrives in pieces before the first of some texts.

    Args:
        texts: none of them is let through, nor what follows.

    Example:
        >>> cutter = TextCutter(("END",))
        >>> cutter.feed("one E"), cutter.feed("ND two"), cutter.feed("three"), cutter.rest()
        ('one ', '', '', '')
    """

    def __init__(self, texts: tuple[str, ...]):
        self.texts, self.held, self.is_cut = texts, "", False

    def feed(self, piece: str) -> str:
        """What can be let through: all but a tail that one of the texts may begin with."""
        if self.is_cut:
            return ""
        text = self.held + piece
        ends = [place for place in map(text.find, self.texts) if place >= 0]
        if ends:
            self.is_cut, self.held = True, ""
            return text[: min(ends)]
        num_held = max(_overlap(text, stop) for stop in self.texts) if self.texts else 0
        self.held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the text's end with which `stop` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class CancelWatch:
    """A streamer that shows nothing, and ends `generate` within a pass once the request is cancelled."""

    def __init__(self, job: Job):
        self.job = job

    def put(self, ids: torch.Tensor) -> None:
        """Called with the prompt, and with every finished block."""
        self.put_draft(ids)

    def put_draft(self, draft: torch.Tensor) -> None:
        """Called after every pass."""
        if self.job.is_cancelled.is_set():
            raise _GenerationCancelled

    def end(self) -> None:
        """Nothing."""


class BlockStreamer(DirectStreamer):
    """transformers' streamer, fed with whole blocks: the text of each, cut at the stop texts.

    Args:
        job: the request.
        tokenizer, loop, queue, response_parser: as for `DirectStreamer`.
        on_cancel: called when the client leaves.
    """

    def __init__(self, job: Job, *args: Any, on_cancel: Callable[[], None] = lambda: None, **options: Any):
        super().__init__(*args, **options)
        self.job, self.on_cancel, self.cutter, self.is_prompt = job, on_cancel, TextCutter(job.cuts), True

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with the prompt, and with every finished block."""
        self.put_draft(value)
        if self.is_prompt:
            self.is_prompt = False
        else:
            self.tell(value.tolist())

    def put_draft(self, draft: torch.Tensor) -> None:
        """Called by `generate` after every pass."""
        if self.job.is_cancelled.is_set():
            raise _GenerationCancelled

    def tell(self, ids: list[int]) -> None:
        """Send the text of further tokens."""
        if ids and self.job.first_at is None:
            self.job.first_at = time.monotonic()
        self.total_tokens += len(ids)
        pieces = (self._decode_stream.step(self._tokenizer, token) for token in ids)
        text = "".join(piece for piece in pieces if piece)
        if self._parser is not None:
            for item in response_events_to_chunks(self._parser.feed(text)):
                self._enqueue(item)
        elif text := self.cutter.feed(text):
            self._enqueue(text)

    def end(self) -> None:
        """Nothing: `generate` calls it before it returns the passes, which belong into the last event."""

    def finish(self) -> None:
        """Send what was held back, and the end of the stream."""
        if self._parser is None and (text := self.cutter.rest()):
            self._enqueue(text)
        super().end()

    def fail(self, message: str) -> None:
        """End the stream with an error."""
        # transformers writes the message between quotes as it is.
        self._enqueue(_StreamError(" ".join(message.replace("\\", "/").replace('"', "'").split())))

    def cancel(self) -> None:
        """The client has left."""
        self.job.is_cancelled.set()
        self.on_cancel()


class Worker:
    """One thread that does work in the order in which it comes, and knows when it has died.

    transformers' `InferenceThread` leaves the caller of a death waiting for ever, and takes more work after it.

    Attributes:
        fatal_error: what the thread died of, or None.
    """

    def __init__(self) -> None:
        self.fatal_error: BaseException | None = None
        self._queue: Queue = Queue()
        self._waiting: dict[asyncio.Future, asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="llada-worker", daemon=True)
        self.thread.start()

    def call(self, work: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Do `work` on the thread; must be called in an event loop.

        Raises:
            CBWorkerDeadError: if the thread has died.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            if self.fatal_error is not None:
                raise CBWorkerDeadError(f"The worker has died ({self.fatal_error!r}); restart the server.")
            self._waiting[future] = loop
        self._queue.put((work, future))
        return future

    def _run(self) -> None:
        try:
            while True:
                work, future = self._queue.get()
                try:
                    result, error = work(), None
                except Exception as raised:
                    result, error = None, raised
                self._settle(future, result, error)
                del work, result, error  # nothing of the last answer stays while the thread waits
        except BaseException as death:
            with self._lock:
                self.fatal_error = death
            for future in list(self._waiting):
                self._settle(future, None, CBWorkerDeadError(f"The worker has died ({death!r}); restart the server."))

    def _settle(self, future: asyncio.Future, result: Any, error: Exception | None) -> None:
        with self._lock:
            loop = self._waiting.pop(future)

        def settle() -> None:
            if future.done():
                return  # nobody waits any more
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the server is gone
            loop.call_soon_threadsafe(settle)


class LLaDAManager(BaseGenerateManager):
    """What both managers share: the check of a request, and what is known of it once it is answered.

    Args:
        jobs: the requests in the server.
        model, tokenizer: what answers them.
    """

    def __init__(self, jobs: dict[str, Job], model: Any, tokenizer: Any):
        self.jobs, self.model, self.tokenizer = jobs, model, tokenizer
        self.worker = Worker()

    def is_alive(self) -> bool:
        """Whether requests can be answered."""
        return self.worker.fatal_error is None

    def stop(self) -> None:
        """End the work at the border of a pass."""
        for job in list(self.jobs.values()):
            job.is_cancelled.set()

    def prepare(self, inputs: Any, config: Any, request_id: str) -> tuple[Job, list[int], Any]:
        """The request's job, its prompt as a list, and its options, once all are checked.

        Raises:
            CBWorkerDeadError: if nothing can be answered any more.
            RequestError: for a prompt that cannot be answered.
        """
        if not self.is_alive():
            raise CBWorkerDeadError("The worker has died; restart the server.")
        job, ids = self.jobs[request_id], inputs["input_ids"]
        ids = ids[0].tolist() if isinstance(ids, torch.Tensor) else list(ids)
        max_length = self.model.config.max_sequence_length
        check_prompt_fits(ids, job, config, max_length)
        if config.max_new_tokens is None and job.max_tokens is not None:
            config = config.updated(max_length=min(len(ids) + job.max_tokens, config.max_length or max_length))
        if job.suffix is None:
            try:
                answer_blocks(config, len(ids), max_length)
            except ValueError as error:
                raise RequestError(str(error)) from error
        job.num_prompt_tokens = len(ids) + len(job.suffix_ids)
        return job, ids, config

    def fill_in(self, ids: list[int], job: Job, config: Any) -> list[int]:
        """Fill the gap between prompt and suffix; the ids of the gap."""
        masks = [config.mask_token_id] * config.max_new_tokens
        output = self.model.infill(
            torch.tensor([[*ids, *masks, *job.suffix_ids]], device=self.model.device),
            **self._arguments(job, config, CancelWatch(job)),
        )
        filled = output.sequences[0, len(ids) : len(ids) + len(masks)].tolist()
        return self.note(job, filled, int(output.num_forward_passes[0]), "length")

    def stream_gap(self, streamer: BlockStreamer, ids: list[int], job: Job, config: Any) -> None:
        """`fill_in` for a stream, which gets the whole gap at once: no token of it is final before the others."""
        streamer.tell(self.fill_in(ids, job, config))

    def _arguments(self, job: Job, config: Any, streamer: Any) -> dict[str, Any]:
        generator = torch.Generator(self.model.device).manual_seed(job.seed)
        return {
            "generation_config": config,
            "streamer": streamer,
            "generator": generator,
            "tokenizer": self.tokenizer,
            "return_dict_in_generate": True,
        }

    def note(self, job: Job, ids: list[int], num_passes: int, finish_reason: str) -> list[int]:
        """Write down what a finished answer cost; returns its ids."""
        job.num_tokens, job.num_passes, job.finish_reason = len(ids), num_passes, finish_reason
        if job.first_at is None:
            job.first_at = time.monotonic()
        return ids

    def text(self, job: Job, ids: list[int]) -> str:
        """An answer's text, cut at the stop texts."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return TextCutter(job.cuts).feed(text) if any(stop in text for stop in job.cuts) else text

    async def answer(self, job: Job, work: Callable[[], list[int]]) -> list[int]:
        """Run `work` on the thread, and cancel it if the client leaves.

        Raises:
            RequestError: for what the client did wrong.
        """
        try:
            return await self.worker.call(work)
        except asyncio.CancelledError:
            job.is_cancelled.set()
            raise
        except ValueError as error:
            raise RequestError(str(error)) from error

    def stream(self, job: Job, streamer: BlockStreamer, work: Callable[[], Any]) -> None:
        """Run `work` on the thread, and let the streamer end with it."""

        def ended(future: "asyncio.Future[Any]") -> None:
            error = None if future.cancelled() else future.exception()
            if error is None:
                streamer.finish()
            elif isinstance(error, _GenerationCancelled):
                streamer._enqueue(None)
            else:
                streamer.fail(str(error))

        self.worker.call(work).add_done_callback(ended)

    def make_streamer(self, job: Job, response_parser: Any, **options: Any) -> tuple[asyncio.Queue, BlockStreamer]:
        """A queue of text for a handler, and the streamer that fills it."""
        queue: asyncio.Queue = asyncio.Queue()
        loop, decoder = asyncio.get_running_loop(), self.tokenizer._tokenizer
        return queue, BlockStreamer(job, decoder, loop, queue, response_parser=response_parser, **options)


class OneAtATime(LLaDAManager):
    """Requests one after another, each by `generate`."""

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, BlockStreamer]:
        """See `BaseGenerateManager`."""
        job, ids, config = self.prepare(inputs, gen_config, request_id)
        queue, streamer = self.make_streamer(job, response_parser)
        if job.suffix is None:
            self.stream(job, streamer, lambda: self.generate(ids, job, config, streamer))
        else:
            self.stream(job, streamer, lambda: self.stream_gap(streamer, ids, job, config))
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """See `BaseGenerateManager`."""
        job, ids, config = self.prepare(inputs, gen_config, request_id)
        if job.suffix is None:
            answer = await self.answer(job, lambda: self.generate(ids, job, config, CancelWatch(job)))
        else:
            answer = await self.answer(job, lambda: self.fill_in(ids, job, config))
        return self.text(job, answer), job.num_prompt_tokens, answer

    def generate(self, ids: list[int], job: Job, config: Any, streamer: Any) -> list[int]:
        """Answer one prompt; runs on the worker's thread."""
        streamer.put_draft(None)  # one that was cancelled while it waited costs no pass
        prompt = torch.tensor([ids], device=self.model.device)
        output = self.model.generate(prompt, **self._arguments(job, config, streamer))
        answer = output.sequences[0, len(ids) :].tolist()
        return self.note(job, answer, int(output.num_forward_passes[0]), self._finish_reason(answer, job, config))

    def _finish_reason(self, answer: list[int], job: Job, config: Any) -> str:
        has_end = config.stop_at_eos and bool(answer) and answer[-1] in config.eos_token_ids
        text = self.tokenizer.decode(answer, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return "stop" if has_end or any(stop in text for stop in config.stop_strings or ()) else "length"


class Batched(LLaDAManager):
    """Requests together, by the model's continuous batching; a gap before a suffix is filled on a thread of its own.

    Args:
        jobs, model, tokenizer: as for `LLaDAManager`.
        batching_config: transformers' `ContinuousBatchingConfig`.
    """

    def __init__(self, jobs: dict[str, Job], model: Any, tokenizer: Any, batching_config: Any = None):
        super().__init__(jobs, model, tokenizer)
        self.batching = model.init_continuous_batching(continuous_batching_config=batching_config)
        self.batching.start()

    def is_alive(self) -> bool:
        """Whether requests can be answered."""
        status = self.batching.background_thread_status
        # A dying thread tells everybody who waits before it is gone.
        return super().is_alive() and status.fatal_error is None and self.batching.is_running()

    def stop(self) -> None:
        """End the work at the border of a pass."""
        super().stop()
        self.batching.stop(block=True, timeout=10, hard_stop=True)

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: Any,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, BlockStreamer]:
        """See `BaseGenerateManager`."""
        job, ids, config = self.prepare(inputs, gen_config, request_id)
        queue, streamer = self.make_streamer(
            job, response_parser, on_cancel=lambda: self.batching.cancel_request(job.key)
        )
        if job.suffix is not None:
            self.stream(job, streamer, lambda: self.stream_gap(streamer, ids, job, config))
            return queue, streamer

        def report(output: Any) -> None:
            if output.error is not None:
                streamer.fail(output.error)
                return
            streamer.tell(output.generated_tokens[streamer.total_tokens :])
            if output.is_finished():
                self.note(job, output.generated_tokens, output.num_forward_passes, output.finish_reason)
                streamer.finish()

        self.submit(ids, job, config, report, streaming=True)
        return queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, list[int]]:
        """See `BaseGenerateManager`."""
        job, ids, config = self.prepare(inputs, gen_config, request_id)
        if job.suffix is not None:
            answer = await self.answer(job, lambda: self.fill_in(ids, job, config))
            return self.text(job, answer), job.num_prompt_tokens, answer
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def report(output: Any) -> None:
            if output.is_finished() and not future.done():
                future.set_result(output)

        self.submit(ids, job, config, report, streaming=False)
        try:
            output = await future
        except asyncio.CancelledError:
            job.is_cancelled.set()
            self.batching.cancel_request(job.key)
            raise
        if output.error is not None:
            raise CBWorkerDeadError(output.error) if not self.is_alive() else RuntimeError(output.error)
        answer = self.note(job, output.generated_tokens, output.num_forward_passes, output.finish_reason)
        return self.text(job, answer), job.num_prompt_tokens, answer

    def submit(self, ids: list[int], job: Job, config: Any, report: Callable[[Any], None], streaming: bool) -> None:
        """Queue a request; `report` is called in the event loop.

        Raises:
            RequestError: for options that cannot be used.
            CBWorkerDeadError: if the thread takes no requests any more.
        """
        self.batching.register_result_handler(job.key, report)
        try:
            added = self.batching.add_request(
                ids,
                request_id=job.key,
                streaming=streaming,
                generation_config=config,
                seed=job.seed,
                tokenizer=self.tokenizer,
            )
        except ValueError as error:
            raise RequestError(str(error)) from error
        if added is None:
            raise CBWorkerDeadError("The worker takes no more requests; restart the server.")


class OneModel(GenerationState):
    """transformers' shared state, for a server with one model and one manager."""

    def __init__(self, manager: LLaDAManager):
        super().__init__(continuous_batching=isinstance(manager, Batched))
        self.manager = manager

    def use_continuous_batching(self, model: Any, modality: Any) -> bool:
        """Whether prompts are lists of ids."""
        return self._continuous_batching

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        """The manager."""
        return self.manager

    def is_cb_alive(self) -> bool:
        """Whether requests can be answered; `/health` asks."""
        return self.manager.is_alive()

    def shutdown(self) -> None:
        """End the work."""
        self.manager.stop()


def check_prompt_fits(ids: list[int], job: Job, config: Any, max_length: int) -> None:
    """Refuse a prompt that cannot be answered.

    Raises:
        RequestError: for a prompt without a token, one that holds masks, and one that is too long with its answer.
    """
    if not ids:
        raise RequestError("The prompt must hold at least one token, got an empty text.")
    if config.mask_token_id in ids or config.mask_token_id in job.suffix_ids:
        raise RequestError(
            "The prompt must not contain the mask token; to fill a gap, send what follows it as the `suffix` of "
            "/v1/completions."
        )
    num_given, num_new = len(ids) + len(job.suffix_ids), config.max_new_tokens
    if num_given + (num_new or 1) > max_length:
        parts = f"{len(ids)} of the prompt" + (f", {len(job.suffix_ids)} of the suffix" if job.suffix_ids else "")
        room = f" and {num_new} of `max_tokens`" if num_new else ""
        raise RequestError(
            f"The model reads at most {max_length} tokens, got {parts}{room}; send a shorter text"
            f"{' or a smaller `max_tokens`' if num_new else ''}.",
            code="context_length_exceeded",
        )
