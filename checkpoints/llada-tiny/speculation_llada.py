"""Lossless self-speculation: fewer passes of the model for the very same text.

A pass predicts all masked tokens of the block and commits a few of them. The others are a draft of what the next steps
will commit. The next pass therefore runs the canvas, and as extra rows the canvases that the following steps give if
no prediction changes. A later step whose canvas is among them finds its logits there and takes no pass.

The loop goes through the same steps with the same canvases as without; only where the logits of a step come from
differs. So whatever reads or changes them (commit rules, draws, processors, stop strings, streamers) does not notice,
and nothing needs an option for it.

Shape legend: R rows that take part, C canvases of each row (its own, then the drafts), L block, V vocabulary.

Source: FreeDave (arXiv:2510.00294), draft and verification by the model itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from .cache_llada import WindowPolicy
from .canvas_llada import Canvas
from .unmasking_llada import CommitRule, schedule_share

# A pass of the model: `LLaDAGenerationMixin._score` behind its first three arguments.
Run = Callable[..., Tensor]


class Proposals(NamedTuple):
    """What a step proposed for the block of each row that takes part.

    Attributes:
        candidates: int64 [active, block].
        confidence: float32 [active, block].
        entropies: float32 [active, block], or None.
        steps_left: steps of the block after this one: a number, int64 [active], or None.
    """

    candidates: Tensor
    confidence: Tensor
    entropies: Optional[Tensor]
    steps_left: Union[int, Tensor, None]


class Scored(NamedTuple):
    """What a pass computed for canvases that later steps may have.

    Attributes:
        blocks: their blocks; int64 [canvases, active, block].
        starts: the first row of each one's logits; int64 [canvases, active].
        logits: [num_scored of all canvases, vocab].
    """

    blocks: Tensor
    starts: Tensor
    logits: Tensor


@dataclass
class Speculation:
    """Drafts the next canvases of a call, and keeps the logits of those that a pass has computed.

    All rows of a batch go through their steps together: a step takes no pass if the canvases of all of them were
    foreseen. It saves most for one row.

    Attributes:
        run: a pass of the model.
        canvas: the canvas of the call.
        rule: the call's commit rule, which drafts too.
        num_drafts: most drafts of a row in one pass.
        windows: what chooses the columns of a pass, or None without a cache. A pass that computes everything anew
            changes the keys and values that later passes read, so it runs alone and ends all drafts.
    """

    run: Run
    canvas: Canvas
    rule: CommitRule
    num_drafts: int
    windows: Optional[WindowPolicy] = None
    _proposals: Optional[Proposals] = None
    _scored: Optional[Scored] = None

    def score(self, is_masked: Tensor, step: int, start: int, end: int) -> Tensor:
        """Logits of the block's masked positions, from an earlier pass or a new one; [num_scored, vocab].

        Args:
            is_masked: bool [active, block].
            step: number of the step in its block.
            start, end: columns of the block.
        """
        block, num_drafts, is_full = self.canvas.ids[self.canvas.rows, start:end], self.num_drafts, step == 0
        if self.windows is not None:
            passes_left = self.windows.passes_until_full(step)
            num_drafts, is_full = min(num_drafts, passes_left - 1), passes_left == 0
        found = None if is_full else self._find(block, is_masked)
        if found is not None:
            self.canvas.num_passes[self.canvas.rows] -= 1  # every step is counted when the row leaves
            return found
        self._scored = None
        drafts = [] if is_full else self._draft(block, is_masked, num_drafts)
        if not drafts:
            return self.run(is_masked, step, start, end)
        blocks = torch.stack([block, *(draft for draft, _ in drafts)])
        is_scored = torch.cat([is_masked, *(is_left for _, is_left in drafts)])
        logits = self.run(is_scored, step, start, end, blocks)
        counts = is_scored.sum(-1)
        self._scored = Scored(blocks, (counts.cumsum(0) - counts).view(len(blocks), -1), logits)
        # A copy: what follows may overwrite it.
        return logits[: int(is_masked.sum())].clone()

    def _find(self, block: Tensor, is_masked: Tensor) -> Optional[Tensor]:
        """The logits of the canvases as they are now; None if those of any row were not computed."""
        if self._scored is None:
            return None
        is_equal = (self._scored.blocks == block).all(-1)  # [C, R]
        if not is_equal.any(0).all():
            return None
        starts = self._scored.starts.gather(0, is_equal.int().argmax(0, keepdim=True))[0]
        return self._scored.logits[(starts[:, None] + is_masked.cumsum(-1) - 1)[is_masked]]

    def _draft(self, block: Tensor, is_masked: Tensor, num_drafts: int) -> list[tuple[Tensor, Tensor]]:
        """The blocks and their masked positions after 1, 2, … further steps by the last step's proposals."""
        candidates, confidence, entropies, steps_left = self._proposals
        drafts: list[tuple[Tensor, Tensor]] = []
        while len(drafts) < num_drafts:
            at_least = 1 if steps_left is None else schedule_share(is_masked.sum(-1), _at_least_one(steps_left))
            left = confidence.masked_fill(~is_masked, -torch.inf)
            is_committed = self.rule(left, at_least, None if entropies is None else entropies * is_masked)
            block, is_masked = torch.where(is_committed, candidates, block), is_masked & ~is_committed
            if not is_masked.any():
                break  # nothing to predict
            drafts.append((block, is_masked))
            steps_left = None if steps_left is None else steps_left - 1
        return drafts

    def note(
        self,
        candidates: Tensor,
        is_masked: Tensor,
        confidence: Tensor,
        entropies: Optional[Tensor],
        steps_left: Union[int, Tensor, None],
    ) -> None:
        """Keep what a step proposed.

        Args:
            candidates: int64 [num_scored].
            is_masked: positions that have a candidate; bool [active, block].
            confidence: float32 [active, block].
            entropies: float32 [active, block], or None.
            steps_left: steps of the block, this one included: a number, int64 [active], or None.
        """
        grid = torch.zeros(is_masked.shape, dtype=candidates.dtype, device=candidates.device)
        grid = grid.masked_scatter(is_masked, candidates)
        self._proposals = Proposals(grid, confidence, entropies, None if steps_left is None else steps_left - 1)

    def end_pass(self, is_kept: Optional[Tensor]) -> None:
        """Let rows leave.

        Args:
            is_kept: rows that take part in the block's next pass; bool [active]. None: all.
        """
        if is_kept is None:
            return
        candidates, confidence, entropies, steps_left = self._proposals
        self._proposals = Proposals(
            candidates[is_kept],
            confidence[is_kept],
            None if entropies is None else entropies[is_kept],
            steps_left[is_kept] if isinstance(steps_left, Tensor) else steps_left,
        )
        if self._scored is not None:
            blocks, starts, logits = self._scored
            self._scored = Scored(blocks[:, is_kept], starts[:, is_kept], logits)


def _at_least_one(steps_left: Union[int, Tensor]) -> Union[int, Tensor]:
    return steps_left.clamp(min=1) if isinstance(steps_left, Tensor) else max(steps_left, 1)
