"""The canvas: ids that still hold masks, the rows that still work on them, and the blocks they are shared into.

Shape legend: B rows of the call, R rows that take part in the next pass, T canvas, L block.
"""

from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor

Block = tuple[int, int, Optional[int]]


@dataclass
class Canvas:
    """The ids being denoised, with what belongs to each row.

    Attributes:
        ids: int64 [batch, seq].
        mask_token_id: id of the mask.
        is_given: tokens that were there before the first step, which guidance masks out; bool [batch, seq].
        is_alive: rows whose end has not been found; bool [batch].
        rows: rows that take part in the next pass; int64 [active].
        confidence: confidence with which a token was committed, inf where none was; float32 [batch, seq].
        attention_mask: bool [batch, seq], or None if no row is padded.
        position_ids: int64 [batch, seq], or None if every row's columns are its positions.
        generator: one generator, a list with one per row, or None.
        answer_start: first column of the answer; None if masks may stand anywhere (infilling).
        num_steps: denoising steps of the current block, int64 [batch]; None for as many as its tokens need.
    """

    ids: Tensor
    mask_token_id: int
    is_given: Tensor
    is_alive: Tensor
    rows: Tensor
    confidence: Tensor
    attention_mask: Optional[Tensor]
    position_ids: Optional[Tensor]
    generator: Any
    answer_start: Optional[int]
    num_steps: Optional[Tensor] = None

    @classmethod
    def build(
        cls,
        ids: Tensor,
        mask_token_id: int,
        attention_mask: Optional[Tensor] = None,
        generator: Any = None,
        answer_start: Optional[int] = None,
        position_ids: Optional[Tensor] = None,
        is_given: Optional[Tensor] = None,
    ) -> "Canvas":
        """Lay out a canvas.

        Args:
            ids: prompts and masks; int64 [batch, seq]. Not written to: the canvas is a copy.
            mask_token_id: id of the mask.
            attention_mask: bool [batch, seq] or None.
            generator: see the class.
            answer_start: see the class.
            position_ids: int64 [batch, seq]. None counts valid tokens only, so that padding on either side, or between
                prompt and answer, changes nothing.
            is_given: bool [batch, seq]. None takes all that is not masked.

        Raises:
            ValueError: if a list of generators is not one per row.
        """
        if isinstance(generator, (list, tuple)) and len(generator) != ids.shape[0]:
            raise ValueError(
                f"`generator` must be one torch.Generator or a list with one per row ({ids.shape[0]}), "
                f"got a list of {len(generator)}."
            )
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        return cls(
            ids=ids.clone(),
            mask_token_id=mask_token_id,
            is_given=ids != mask_token_id if is_given is None else is_given,
            is_alive=torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device),
            rows=torch.arange(ids.shape[0], device=ids.device),
            confidence=torch.full(ids.shape, torch.inf, device=ids.device),
            attention_mask=attention_mask,
            position_ids=position_ids,
            generator=generator,
            answer_start=answer_start,
        )

    def is_masked(self, start: int, end: int) -> Tensor:
        """Masked positions of columns start..end-1 of the active rows; bool [active, end - start]."""
        is_masked = self.ids[self.rows, start:end] == self.mask_token_id
        return is_masked if self.attention_mask is None else is_masked & self.attention_mask[self.rows, start:end]

    def start_block(self, start: int, end: int, num_steps: Union[int, list[int], None] = None) -> None:
        """Let every row that is alive and holds a mask in the block take part.

        Args:
            start, end: columns of the block.
            num_steps: denoising steps of the block, for all rows or for each; None for as many as its tokens need.
        """
        self.num_steps = None
        if num_steps is not None:
            self.num_steps = torch.as_tensor(num_steps, device=self.ids.device).expand(self.ids.shape[0])
        self.rows = self.is_alive.nonzero()[:, 0]
        self.rows = self.rows[self.is_masked(start, end).any(-1)]

    def commit(self, start: int, end: int, is_committed: Tensor, candidates: Tensor, confidence: Tensor) -> None:
        """Write tokens into columns start..end-1 of the active rows; three tensors [active, end - start]."""
        columns = slice(start, end)
        self.ids[self.rows, columns] = torch.where(is_committed, candidates, self.ids[self.rows, columns])
        self.confidence[self.rows, columns] = torch.where(is_committed, confidence, self.confidence[self.rows, columns])

    def mask_again(self, start: int, end: int, is_doubted: Tensor) -> None:
        """Mask committed tokens again; bool [active, end - start]."""
        columns = slice(start, end)
        self.ids[self.rows, columns] = self.ids[self.rows, columns].masked_fill(is_doubted, self.mask_token_id)
        self.confidence[self.rows, columns] = self.confidence[self.rows, columns].masked_fill(is_doubted, torch.inf)

    def leave_block(self, start: int, end: int) -> Optional[Tensor]:
        """Let rows without a mask in the block sit out its remaining passes.

        Returns:
            The rows that stay, bool [active as it was]; None if all do.
        """
        is_kept = self.is_masked(start, end).any(-1) & self.is_alive[self.rows]
        if is_kept.all():
            return None
        self.rows = self.rows[is_kept]
        return is_kept

    def active_generator(self) -> Any:
        """The generators of the active rows, or the one for all."""
        if isinstance(self.generator, (list, tuple)):
            return [self.generator[row] for row in self.rows.tolist()]
        return self.generator

    def ends(self, eos_token_ids: tuple[int, ...], end: int) -> Tensor:
        """Find where each active row's answer ends.

        Args:
            eos_token_ids: any of them ends a row.
            end: columns from here on are not looked at.

        Returns:
            Column after the first end-of-text token before which nothing is masked, 0 if there is none;
            int64 [active].
        """
        answer = self.ids[self.rows, self.answer_start : end]
        is_eos = torch.isin(answer, torch.tensor(eos_token_ids, device=answer.device))
        is_open = (answer == self.mask_token_id).cumsum(-1) > 0
        is_end = is_eos & ~is_open
        return torch.where(is_end.any(-1), is_end.int().argmax(-1) + self.answer_start + 1, 0)

    def finish(self, ends: Tensor, pad_token_id: int) -> None:
        """Finish rows: what follows their end becomes padding.

        Args:
            ends: column after each active row's last token, 0 for a row that goes on; int64 [active].
            pad_token_id: id of the padding.
        """
        is_finished = ends > 0
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        is_after = (columns >= ends[:, None]) & is_finished[:, None]
        self.ids[self.rows] = self.ids[self.rows].masked_fill(is_after, pad_token_id)
        self.is_alive[self.rows] &= ~is_finished


def share_out(total: int, num_parts: int) -> list[int]:
    """Share a number over parts, larger shares first: 7 over 3 is 3, 2, 2."""
    quotient, remainder = divmod(total, num_parts)
    return [quotient + (part < remainder) for part in range(num_parts)]


def make_windows(start: int, end: int, block_length: int) -> list[tuple[int, int]]:
    """Cut columns start..end-1 into windows of `block_length`; the last one may be shorter."""
    return [(first, min(first + block_length, end)) for first in range(start, end, block_length)]


def make_blocks(windows: list[tuple[int, int]], steps: Optional[int], is_scheduled: bool = False) -> list[Block]:
    """Share the denoising steps over the blocks.

    Args:
        windows: (first column, end column) of each block, from left to right.
        steps: denoising steps in all; None for as many as the tokens need.
        is_scheduled: whether every block needs a number of steps; with `steps=None` it is then one per column.

    Returns:
        (first column, end column, steps or None) of each block.

    Raises:
        ValueError: if there are fewer steps than blocks.
    """
    if steps is None:
        return [(start, end, end - start if is_scheduled else None) for start, end in windows]
    if steps < len(windows):
        raise ValueError(
            f"`steps` must be at least the number of blocks ({len(windows)}), got {steps}; "
            f"pass steps={len(windows)} or a larger `block_length`."
        )
    return [(start, end, share) for (start, end), share in zip(windows, share_out(steps, len(windows)))]


class Reporter:
    """Tells a streamer, and the history, what happens to the canvas; silent where nobody listens.

    Args:
        canvas: the canvas to report on.
        streamer: has `put` and `end`, and `put_draft` if it shows drafts; or None.
        keeps_history: whether to keep a copy of the canvas after every step.
    """

    def __init__(self, canvas: Canvas, streamer: Optional[Any], keeps_history: bool):
        self.canvas = canvas
        self.streamer = streamer
        self.history: Optional[list[Tensor]] = [canvas.ids.clone()] if keeps_history else None
        # An infilled text is final only as a whole.
        self.num_confirmed = canvas.answer_start or 0
        if streamer is not None:
            streamer.put(canvas.ids[:, : canvas.answer_start].cpu())

    def step_done(self) -> None:
        """Report the canvas after a step: all that is not final yet is a draft."""
        if self.history is not None:
            self.history.append(self.canvas.ids.clone())
        if hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(self.canvas.ids[:, self.num_confirmed :].cpu())

    def block_done(self, end: int) -> None:
        """Report a finished block; nothing of it will change."""
        if self.streamer is not None and self.canvas.answer_start is not None:
            self.streamer.put(self.canvas.ids[:, self.num_confirmed : end].cpu())
            self.num_confirmed = end

    def all_done(self) -> None:
        """Report the end of the call."""
        if self.streamer is None:
            return
        if self.canvas.answer_start is None:
            self.streamer.put(self.canvas.ids.cpu())
        self.streamer.end()
