"""What a manager of continuous batching tells: the state of a request, of its thread, and what it has done.

The results are transformers' own, so that what reads those reads these.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Optional

from transformers.generation.continuous_batching import requests as of_transformers

RequestStatus: Any = of_transformers.RequestStatus


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
