"""Records a run of `generate` or `infill` pass by pass: which token stands where, since when, and how sure it was.

Shape legend: T canvas, K positions scored, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .conversation import cut_at_stop, printable

# What a decoder writes for bytes that are no whole character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Frame:
    """One row of the canvas after a pass: the answer of `generate`, the whole text of `infill`.

    Attributes:
        ids: token ids, masks included; up to the end of the answer once that is found.
        passes: the pass that committed each token, from 1; 0 for masks and for text that was given.
        confidences: probability that each token had when it was committed; NaN for masks and for text that was given.
        seconds: since the run began; 0 for the canvas before the first pass.
    """

    ids: tuple[int, ...]
    passes: tuple[int, ...]
    confidences: tuple[float, ...]
    seconds: float

    @property
    def num_committed(self) -> int:
        """Tokens that stand here and were not given."""
        return sum(number > 0 for number in self.passes)


class Recorder(BaseStreamer):
    """Keeps a frame after every pass. It is the streamer and a logits processor of one call, with one row:

        recorder = Recorder(tokenizer)
        model.generate(ids, streamer=recorder, logits_processor=[recorder])

    It changes nothing: the logits go on as they came. The probabilities are those that the last processor before it
    left, at temperature 1. As a streamer only it costs next to nothing, and the confidences are NaN.

    Args:
        tokenizer: with its mask token declared.
        stop_ids: a frame is cut at the first of them once nothing before it is masked.
        block_length: of a canvas that grows; frames then end with the block. None keeps the whole canvas.
        streamer: another one to hand everything on to, or None.
        on_frame: called after every pass; what it raises ends the run.

    Attributes:
        frames: the canvas before the first pass, after each one, and the finished text in place of the last.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Iterable[int] = (),
        block_length: int | None = None,
        streamer: Any = None,
        on_frame: Callable[[], None] | None = None,
    ):
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.block_length = block_length
        self.streamer = streamer
        self.on_frame = on_frame
        self.frames: list[Frame] = []
        self._mask: int = tokenizer.mask_token_id
        self._start: int | None = None
        self._done: list[int] = []
        self._given: list[int] = []
        self._scored: tuple[list[int], Tensor] = [], None  # type: ignore[assignment]
        self._began = time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Keep the probabilities of a pass: int64 [K, T], float [K, V]. The scores are returned as they are."""
        # The block's masks are the first of the canvas: blocks are finished from left to right.
        columns = (input_ids[0] == self._mask).nonzero()[: len(scores), 0]
        self._scored = columns.tolist(), scores.float().softmax(-1)
        if not self.frames:
            self._keep(input_ids[0, self._start :].tolist())
        return scores

    def put(self, value: Any) -> None:
        """Receive the prompt first, int64 [length]; then each finished block, or the whole infilled text."""
        if self.streamer is not None:
            self.streamer.put(value)
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(f"`Recorder` keeps one row, got {len(value)}; generate one answer at a time.")
        ids = value.flatten().tolist()
        if self._start is None:
            self._began = time.perf_counter()
            self._start = 0 if self._mask in ids else len(ids)
            self._given = ids
        elif self._start:
            self._done += ids
        else:
            self._done = ids

    def put_draft(self, value: Any, **kwargs: Any) -> None:
        """Receive what is not finished after a pass, masks included; int64 [1, length]."""
        if self.streamer is not None and hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(value, **kwargs)
        ids = self._done + value[0, : self.block_length].tolist()
        if not self.frames:  # nothing was scored before this pass, so it is not the processor too
            self._keep([self._mask] * len(ids) if self._start else self._given)
        self._keep(ids)
        if self.on_frame is not None:
            self.on_frame()

    def end(self) -> None:
        """Cut the last frame where the answer ends, which a stop string may have moved."""
        if self.streamer is not None:
            self.streamer.end()
        if not self.frames:
            return
        last = self.frames[-1]
        length = len(cut_at_stop(self._done, self.stop_ids, self._mask))
        self.frames[-1] = Frame(last.ids[:length], last.passes[:length], last.confidences[:length], last.seconds)

    def _keep(self, ids: list[int]) -> None:
        """Append a frame; `ids` are the canvas without the prompt."""
        if not self.frames:
            ids = ids[: self.block_length]
            self.frames.append(Frame(tuple(ids), (0,) * len(ids), (math.nan,) * len(ids), 0.0))
            return
        before, seconds = self.frames[-1], time.perf_counter() - self._began
        columns, probabilities = self._scored
        row_of = {column - (self._start or 0): row for row, column in enumerate(columns)}
        passes, confidences = [], []
        ids = cut_at_stop(ids, self.stop_ids, self._mask)
        for column, token in enumerate(ids):
            number, confidence = 0, math.nan
            if column < len(before.ids) and token == before.ids[column]:
                number, confidence = before.passes[column], before.confidences[column]
            elif token != self._mask:
                number = len(self.frames)
                if column in row_of:
                    confidence = float(probabilities[row_of[column], token])
            passes.append(number)
            confidences.append(confidence)
        self.frames.append(Frame(tuple(ids), tuple(passes), tuple(confidences), seconds))


def token_texts(ids: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each token where it stands; control characters are replaced.

    Masks and special tokens have none. A character that lies on several tokens stands at the last of them.

    Args:
        ids: token ids of one row.
        tokenizer: with its special tokens declared.
    """
    texts: list[str] = []
    silent = set(tokenizer.all_special_ids)
    # What is shown already, of which the last tokens decide on spaces; and the bytes of an unfinished character.
    context: list[int] = []
    pending: list[int] = []
    for token in ids:
        texts.append("")
        if token in silent:
            context, pending = [], []
            continue
        pending.append(token)
        before, text = (_decode(tokens, tokenizer) for tokens in (context, context + pending))
        texts[-1] = printable(text[len(before) :])
        if not text.endswith(_INCOMPLETE):
            for place in range(len(texts) - len(pending), len(texts) - 1):
                texts[place] = ""
            context, pending = pending, []
    return texts


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
