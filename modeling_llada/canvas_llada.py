"""The canvas: ids that still hold masks, the rows that still work on them, and the blocks they are shared into.

Shape legend: B rows of the call, R rows still active, T canvas.
"""

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor


@dataclass
class Canvas:
    """The ids being denoised, with what belongs to each row. Rows leave it when they are finished.

    Attributes:
        full: canvas of every row of the call, in the caller's order; int64 [batch, seq].
        ids: canvas of the active rows; int64 [active, seq].
        rows: place of each active row in `full`; int64 [active].
        mask_token_id: id of the mask.
        is_given: tokens that were there before the first step, which guidance masks out; bool [active, seq].
        attention_mask: bool [active, seq], or None if no row is padded.
        position_ids: int64 [active, seq], or None if no row is padded.
        generator: one generator, a list with one per active row, or None.
        answer_start: first column of the answer; None if masks may stand anywhere (infilling).
    """

    full: Tensor
    ids: Tensor
    rows: Tensor
    mask_token_id: int
    is_given: Tensor
    attention_mask: Optional[Tensor]
    position_ids: Optional[Tensor]
    generator: Any
    answer_start: Optional[int]

    @classmethod
    def build(
        cls,
        ids: Tensor,
        mask_token_id: int,
        attention_mask: Optional[Tensor] = None,
        generator: Any = None,
        answer_start: Optional[int] = None,
    ) -> "Canvas":
        """Lay out a canvas.

        Positions count valid tokens only, so that padding on either side, or between prompt and answer, changes
        nothing.

        Args:
            ids: prompts and masks; int64 [batch, seq]. Not written to: the canvas is a copy.
            mask_token_id: id of the mask.
            attention_mask: bool [batch, seq] or None.
            generator: see the class.
            answer_start: see the class.
        """
        position_ids = None
        if attention_mask is not None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        rows = torch.arange(ids.shape[0], device=ids.device)
        generator = list(generator) if isinstance(generator, (list, tuple)) else generator
        return cls(
            full=ids.clone(),
            ids=ids.clone(),
            rows=rows,
            mask_token_id=mask_token_id,
            is_given=ids != mask_token_id,
            attention_mask=attention_mask,
            position_ids=position_ids,
            generator=generator,
            answer_start=answer_start,
        )

    def is_masked(self, start: int, end: int) -> Tensor:
        """Masked positions of columns start..end-1 of the active rows; bool [active, end - start]."""
        is_masked = self.ids[:, start:end] == self.mask_token_id
        return is_masked if self.attention_mask is None else is_masked & self.attention_mask[:, start:end]

    def write_back(self) -> None:
        """Bring `full` up to date."""
        self.full[self.rows] = self.ids

    def ends(self, eos_token_ids: tuple[int, ...], end: int) -> Tensor:
        """Find where each active row's answer ends.

        Args:
            eos_token_ids: any of them ends a row.
            end: columns from here on are not looked at.

        Returns:
            Column after the first end-of-text token before which nothing is masked, 0 if there is none;
            int64 [active].
        """
        answer = self.ids[:, self.answer_start : end]
        is_eos = torch.isin(answer, torch.tensor(eos_token_ids, device=answer.device))
        is_open = (answer == self.mask_token_id).cumsum(-1) > 0
        is_end = is_eos & ~is_open
        return torch.where(is_end.any(-1), is_end.int().argmax(-1) + self.answer_start + 1, 0)

    def leave(self, ends: Tensor, pad_token_id: int) -> Tensor:
        """Let rows leave: what follows their end becomes padding.

        Args:
            ends: column after each active row's last token, 0 for a row that stays; int64 [active].
            pad_token_id: id of the padding.

        Returns:
            The rows that stay; bool [active as it was].
        """
        is_kept = ends == 0
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        is_after = (columns >= ends[:, None]) & ~is_kept[:, None]
        self.ids = self.ids.masked_fill(is_after, pad_token_id)
        self.write_back()
        self.ids, self.rows, self.is_given = self.ids[is_kept], self.rows[is_kept], self.is_given[is_kept]
        if self.attention_mask is not None:
            self.attention_mask, self.position_ids = self.attention_mask[is_kept], self.position_ids[is_kept]
        if isinstance(self.generator, list):
            self.generator = [g for g, kept in zip(self.generator, is_kept.tolist()) if kept]
        return is_kept


def share_out(total: int, num_parts: int) -> list[int]:
    """Share a number over parts, larger shares first: 7 over 3 is 3, 2, 2."""
    quotient, remainder = divmod(total, num_parts)
    return [quotient + (part < remainder) for part in range(num_parts)]


def make_blocks(windows: list[tuple[int, int]], steps: int) -> list[tuple[int, int, int]]:
    """Share the denoising steps over the blocks.

    Args:
        windows: (first column, end column) of each block, from left to right.
        steps: denoising steps in all.

    Returns:
        (first column, end column, steps) of each block.

    Raises:
        ValueError: if there are fewer steps than blocks.
    """
    if steps < len(windows):
        raise ValueError(
            f"`steps` must be at least the number of blocks ({len(windows)}), got {steps}; "
            f"pass steps={len(windows)} or a larger `block_length`."
        )
    shares = share_out(steps, len(windows))
    return [(start, end, share) for (start, end), share in zip(windows, shares)]


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
        self.history: Optional[list[Tensor]] = [canvas.full.clone()] if keeps_history else None
        # An infilled text is final only as a whole.
        self.num_confirmed = canvas.answer_start or 0
        if streamer is not None:
            streamer.put(canvas.full[:, : canvas.answer_start].cpu())

    def step_done(self) -> None:
        """Report the canvas after a step: all that is not final yet is a draft."""
        if self.streamer is None and self.history is None:
            return
        self.canvas.write_back()
        if self.history is not None:
            self.history.append(self.canvas.full.clone())
        if hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(self.canvas.full[:, self.num_confirmed :].cpu())

    def block_done(self, end: int) -> None:
        """Report a finished block; nothing of it will change."""
        if self.streamer is not None and self.canvas.answer_start is not None:
            self.canvas.write_back()
            self.streamer.put(self.canvas.full[:, self.num_confirmed : end].cpu())
            self.num_confirmed = end

    def all_done(self) -> None:
        """Report the end of the call."""
        if self.streamer is None:
            return
        if self.canvas.answer_start is None:
            self.streamer.put(self.canvas.full.cpu())
        self.streamer.end()
