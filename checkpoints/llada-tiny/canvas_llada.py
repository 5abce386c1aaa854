"""The canvas: a caller's prompt, read and checked, its masks in blocks, and what a streamer sees of it.

The canvas is the one owner of which rows take part in the next pass. It knows neither the model nor the options.

Shape legend: B rows of the call, R rows that take part in the next pass, T canvas, L block, K positions scored.
"""

from collections.abc import Mapping
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.utils import logging

from .cache_llada import Rows
from .generation_config_llada import LLaDAGenerationConfig
from .unmasking_llada import draw_uniform, least_confident

logger = logging.get_logger(__name__)

# First column, end column, and denoising steps: for all rows, for each (int64 [batch]), or None for as many as needed.
Block = tuple[int, int, Union[int, Tensor, None]]


def read_ids(input_ids: Any, device: torch.device) -> Tensor:
    """Token ids as a tensor; int64 [batch, seq].

    Args:
        input_ids: a tensor or array of integers, or lists of one length.
        device: where lists and arrays go.

    Raises:
        ValueError: for text, a whole encoding, rows of different lengths, no ids, and numbers that are not whole.
    """
    if isinstance(input_ids, Mapping):
        raise ValueError("`input_ids` must be token ids, got a whole encoding; pass it as `**encoding`.")
    rows = input_ids if isinstance(input_ids, (list, tuple)) else [input_ids]
    if any(isinstance(row, str) for row in rows):
        raise ValueError("`input_ids` must be token ids, got text; encode it with the model's tokenizer.")
    if input_ids is not None and not isinstance(input_ids, Tensor):
        try:
            input_ids = torch.as_tensor(input_ids, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                "`input_ids` must be rows of token ids of one length; pad them and pass the `attention_mask`, or call "
                "`generate_many`."
            ) from None
    if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
        shape = None if input_ids is None else tuple(input_ids.shape)
        raise ValueError(f"`input_ids` must hold at least one token per row, int64 [batch, seq], got {shape}.")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ValueError(f"`input_ids` must be whole numbers, int64 [batch, seq], got {input_ids.dtype}.")
    return input_ids.long()


def check_prompt(
    input_ids: Tensor,
    attention_mask: Optional[Tensor],
    config: LLaDAGenerationConfig,
    vocab_size: int,
    holds_masks: bool = False,
) -> Optional[Tensor]:
    """Refuse ids that cannot be a prompt.

    Args:
        input_ids: int64 [batch, prompt].
        attention_mask: nonzero at prompt tokens, [batch, prompt], a tensor or lists; or None.
        config: gives the ids of mask and padding.
        vocab_size: ids that the embedding knows.
        holds_masks: whether masks may stand in the prompt.

    Returns:
        The padding mask, bool [batch, prompt]; None if nothing is padded.

    Raises:
        ValueError: for ids outside the vocabulary, a row of nothing but masks or padding, masks where none may
            stand, and a mask of another shape.
    """
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"`input_ids` must lie in the vocabulary, 0..{vocab_size - 1}, got {lowest}..{highest}; "
            "was the text encoded with another model's tokenizer?"
        )
    is_masked = input_ids == config.mask_token_id
    if is_masked.all(-1).any():
        raise ValueError(
            "`input_ids` has a row that is nothing but mask tokens; give every row at least one real token, "
            "for instance the beginning-of-text token."
        )
    if not holds_masks and is_masked.any():
        raise ValueError(
            f"`input_ids` holds the mask token ({config.mask_token_id}); `generate` appends its own masks. "
            "To fill masks where they stand, call `infill`."
        )
    if attention_mask is None:
        if (
            len(input_ids) > 1
            and config.pad_token_id is not None
            and (input_ids[:, [0, -1]] == config.pad_token_id).any()
        ):
            logger.warning_once(
                f"`input_ids` begins or ends with the padding token ({config.pad_token_id}) in some rows, and no "
                "`attention_mask` was given: padding is read as text. Pass the tokenizer's `attention_mask`."
            )
        return None
    attention_mask = torch.as_tensor(attention_mask, device=input_ids.device)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)}, got "
            f"{tuple(attention_mask.shape)}."
        )
    attention_mask = attention_mask.bool()
    is_empty = ~attention_mask.any(-1)
    if is_empty.any():
        raise ValueError(
            f"Row {int(is_empty.nonzero()[0])} of `attention_mask` is all padding; leave empty prompts out, or start "
            "them with the beginning-of-text token."
        )
    return None if attention_mask.all() else attention_mask


def repeat_rows(
    input_ids: Tensor, attention_mask: Optional[Tensor], num_copies: int
) -> tuple[Tensor, Optional[Tensor]]:
    """Prompts and padding mask with every row `num_copies` times, copies next to each other; [batch * copies, seq]."""
    if attention_mask is not None:
        attention_mask = attention_mask.repeat_interleave(num_copies, 0)
    return input_ids.repeat_interleave(num_copies, 0), attention_mask


def answer_blocks(config: LLaDAGenerationConfig, prompt_length: int, max_sequence_length: int) -> list[Block]:
    """The blocks of an answer; the end of the last one is the length of prompt and canvas.

    Raises:
        ValueError: if there are fewer steps than blocks, or no room for an answer that grows.
    """
    end = prompt_length + (config.max_new_tokens or 0)
    if config.max_new_tokens is None:
        end = config.max_length or max_sequence_length
        if end <= prompt_length:
            raise ValueError(
                f"`max_length` must leave room for an answer after the prompt's {prompt_length} tokens, got {end}; "
                "pass a larger one, or `max_new_tokens`."
            )
    length = config.block_length
    return make_blocks([(start, min(start + length, end)) for start in range(prompt_length, end, length)], config)


def make_blocks(spans: list[tuple[int, int]], config: LLaDAGenerationConfig) -> list[Block]:
    """Share the denoising steps over the blocks, larger shares first: 7 over 3 is 3, 2, 2.

    Args:
        spans: (first column, end column) of each block, from left to right.
        config: gives the steps in all. Without them, a block takes as many as its tokens need; one per column if
            tokens may be masked again.

    Raises:
        ValueError: if there are fewer steps than blocks.
    """
    if config.steps is None:
        return [(start, end, end - start if config.remask_rate > 0 else None) for start, end in spans]
    if config.steps < len(spans):
        raise ValueError(
            f"`steps` must be at least the number of blocks ({len(spans)}), got {config.steps}; "
            f"pass steps={len(spans)} or a larger `block_length`."
        )
    share, num_larger = divmod(config.steps, len(spans))
    return [(start, end, share + (index < num_larger)) for index, (start, end) in enumerate(spans)]


class Canvas:
    """The ids being denoised, with what belongs to each row, and the one owner of which rows take part.

    Args:
        ids: prompts and masks; int64 [batch, seq]. Not written to: the canvas is a copy.
        mask_token_id: id of the mask.
        attention_mask: bool [batch, seq], or None if no row is padded.
        generator: source of the draws: one generator, a list with one per row, or None.
        answer_start: first column of the answer; None if masks may stand anywhere (infilling).
        position_ids: int64 [batch, seq]. None counts valid tokens only, so that padding on either side, or between
            prompt and answer, changes nothing.
        is_given: tokens that were there before the first step, which guidance masks out; bool [batch, seq]. None takes
            all that is not masked.

    Attributes:
        rows: rows that take part in the next pass: all (a slice, so that indexing them is free), or int64 [active].
        is_alive: rows whose end has not been found; bool [batch].
        ends: column after each row's last token, the canvas's end while the row is alive; int64 [batch].
        num_passes: passes of the model that each row took part in; int64 [batch]. Complete once the row leaves.
        num_committed: tokens committed in each row; int64 [batch]. Complete once the row leaves.
        confidence: of the tokens that the block's earlier steps committed, inf elsewhere; float32 [active, block]. Kept
            only where tokens are masked again.

    Raises:
        ValueError: if a list of generators is not one per row.
    """

    def __init__(
        self,
        ids: Tensor,
        mask_token_id: int,
        attention_mask: Optional[Tensor] = None,
        generator: Any = None,
        answer_start: Optional[int] = None,
        position_ids: Optional[Tensor] = None,
        is_given: Optional[Tensor] = None,
    ):
        if isinstance(generator, (list, tuple)) and len(generator) != ids.shape[0]:
            raise ValueError(
                f"`generator` must be one torch.Generator or a list with one per row ({ids.shape[0]}), "
                f"got a list of {len(generator)}."
            )
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.ids, self.mask_token_id, self.answer_start = ids.clone(), mask_token_id, answer_start
        self.attention_mask, self.position_ids, self.generator = attention_mask, position_ids, generator
        self.is_given = ids != mask_token_id if is_given is None else is_given
        self.rows: Rows = slice(None)
        self.is_alive = torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
        self.ends = ids.new_full((ids.shape[0],), ids.shape[1])
        self.num_passes, self.num_committed = ids.new_zeros(ids.shape[0]), ids.new_zeros(ids.shape[0])
        self.confidence: Optional[Tensor] = None

    def start_block(self, start: int, end: int) -> Tensor:
        """Let every row that is alive and holds a mask in the block take part.

        Returns:
            The block's masked positions; bool [active, block].
        """
        self.rows, self.confidence = slice(None), None
        is_masked = self.ids[:, start:end] == self.mask_token_id
        if self.attention_mask is not None:
            is_masked &= self.attention_mask[:, start:end]
        is_active = is_masked.any(-1) & self.is_alive
        if not is_active.all():
            self.rows = is_active.nonzero()[:, 0]
            is_masked = is_masked[self.rows]
        # Minus those that are left when a row leaves.
        self.num_committed[self.rows] += is_masked.sum(-1)
        return is_masked

    def steps_left(self, num_steps: Union[int, Tensor], step: int) -> Union[int, Tensor]:
        """Steps that the block has left for the active rows before step number `step`; a number, or int64 [active]."""
        return (num_steps if isinstance(num_steps, int) else num_steps[self.rows]) - step

    def draw(self, is_masked: Tensor, width: int) -> Tensor:
        """One uniform per masked position; float32 [num_scored].

        A row draws for a whole block at every step, also in a shorter last one, so that its numbers depend neither on
        what its neighbours commit nor on the lengths of their blocks.

        Args:
            is_masked: bool [active, block].
            width: columns of the answer's longest block.
        """
        is_masked = F.pad(is_masked, (0, max(0, width - is_masked.shape[1])))
        generator = self.generator
        if isinstance(generator, (list, tuple)):
            rows = range(len(generator))[self.rows] if isinstance(self.rows, slice) else self.rows.tolist()
            generator = [generator[row] for row in rows]
        return draw_uniform(tuple(is_masked.shape), generator, is_masked.device)[is_masked]

    def commit(self, start: int, end: int, is_masked: Tensor, candidates: Tensor, is_committed: Tensor) -> Tensor:
        """Write candidates into columns start..end-1 of the active rows.

        Args:
            start, end: columns of the block.
            is_masked: positions that have a candidate; bool [active, block].
            candidates: int64 [num_scored].
            is_committed: masked positions whose candidate is written; bool [active, block].

        Returns:
            The block as it now is; int64 [active, block].
        """
        block = self.ids[self.rows, start:end]
        block = torch.where(is_committed, block.masked_scatter(is_masked, candidates), block)
        self.ids[self.rows, start:end] = block
        return block

    def mask_again(
        self,
        start: int,
        end: int,
        is_committed: Tensor,
        confidence: Tensor,
        remask_rate: float,
        steps_left: Union[int, Tensor],
    ) -> Tensor:
        """Mask the least confident of the tokens that the block's earlier steps committed, unless this is the last one.

        Args:
            start, end: columns of the block.
            is_committed: positions committed in this step; bool [active, block].
            confidence: of this step's candidates; float32 [active, block].
            remask_rate: share of the earlier tokens.
            steps_left: of the block, this one included; a number, or int64 [active].

        Returns:
            The positions that are masked again; bool [active, block].
        """
        if self.confidence is None:
            self.confidence = torch.full_like(confidence, torch.inf)
        is_doubted = least_confident(self.confidence, remask_rate)
        is_doubted &= torch.as_tensor(steps_left, device=is_doubted.device).reshape(-1, 1) > 1
        self.confidence = torch.where(is_committed, confidence, self.confidence).masked_fill(is_doubted, torch.inf)
        self.ids[self.rows, start:end] = self.ids[self.rows, start:end].masked_fill(is_doubted, self.mask_token_id)
        return is_doubted

    def end_pass(
        self,
        block: Tensor,
        is_masked: Tensor,
        is_broken: Tensor,
        start: int,
        num_passes: int,
        eos_ids: Optional[Tensor],
        config: LLaDAGenerationConfig,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Let rows leave that have nothing left to do in a block: no mask, or an end of text with no mask before it.

        Rows that cannot go on leave too; one look at the device serves both.

        Args:
            block: its ids; int64 [active, block]. They do not matter at masked positions.
            is_masked: bool [active, block].
            is_broken: positions whose logits are not finite; bool [active, block].
            start: first column of the block.
            num_passes: passes in the block so far.
            eos_ids: tokens any of which ends a row; int64 [num_eos]. None looks for no end.
            config: gives the id of the padding, which replaces what follows a row's end.

        Returns:
            The block's masked positions of the rows that stay, bool [active, block]; which rows those are,
            bool [active as it was], or None if all stay.
        """
        is_final = is_masked.cumsum(-1) == 0
        is_done = is_final[:, -1:] | is_broken
        if eos_ids is not None:
            is_end = is_final & torch.isin(block, eos_ids)
            is_done = is_end | is_done
        if not is_done.any():
            return is_masked, None
        rows = torch.arange(len(self.ids), device=self.ids.device)[self.rows]
        is_done = is_done.any(-1)
        leaving = rows[is_done]
        self.num_passes[leaving] += num_passes
        self.num_committed[leaving] -= is_masked[is_done].sum(-1)
        if eos_ids is not None:
            has_end = is_end.any(-1)
            if has_end.any():
                ends = start + 1 + is_end[has_end].int().argmax(-1)
                self.finish(rows[has_end], ends, config.pad_token_id)
        self.rows = rows[~is_done]
        if self.confidence is not None:
            self.confidence = self.confidence[~is_done]
        return is_masked[~is_done], ~is_done

    def fail(self, rows: Tensor, error: ValueError) -> None:
        """Say that rows cannot go on; they have left.

        Args:
            rows: int64 [failed].
            error: why.

        Raises:
            ValueError: the error, as the rows of a call have one caller.
        """
        raise error

    def stop_rows(self, criteria: StoppingCriteriaList, end: int, pad_token_id: int) -> None:
        """Finish the rows for which a criterion is true at column `end`."""
        rows = self.is_alive.nonzero()[:, 0]
        if len(rows):
            rows = rows[criteria(self.ids[rows, :end], None)]
            self.finish(rows, torch.full_like(rows, end), pad_token_id)

    def stop_at_masks(self, is_masked: Tensor, num_passes: int, pad_token_id: int) -> None:
        """Finish all rows before their first mask.

        Args:
            is_masked: the block's masked positions of the rows that take part; bool [active, block].
            num_passes: passes in the block so far.
            pad_token_id: id of the padding.
        """
        self.num_passes[self.rows] += num_passes
        self.num_committed[self.rows] -= is_masked.sum(-1)
        rows = self.is_alive.nonzero()[:, 0]
        is_mask = F.pad(self.ids[rows] == self.mask_token_id, (0, 1), value=True)
        self.finish(rows, is_mask.int().argmax(-1), pad_token_id)

    def finish(self, rows: Tensor, ends: Tensor, pad_token_id: int) -> None:
        """Finish rows: what follows their end becomes padding.

        Args:
            rows: int64 [finished].
            ends: column after each one's last token; int64 [finished].
            pad_token_id: id of the padding.
        """
        is_after = torch.arange(self.ids.shape[1], device=self.ids.device) >= ends[:, None]
        self.ids[rows] = self.ids[rows].masked_fill(is_after, pad_token_id)
        self.is_alive[rows] = False
        self.ends[rows] = ends


class Reporter:
    """Tells a streamer what happens to the canvas, and keeps its history.

    One row is streamed as transformers streams it: its tokens in one dimension, up to its end, without padding. Several
    rows are streamed as columns of the canvas.

    Args:
        canvas: the canvas to report on.
        streamer: has `put` and `end`, and `put_draft` if it shows drafts; or None.
        keeps_history: whether to keep a copy of the canvas after every step.

    Attributes:
        takes_logits: whether the streamer asks for the logits of drafts in place of their tokens.
    """

    def __init__(self, canvas: Canvas, streamer: Optional[Any], keeps_history: bool):
        self.canvas = canvas
        self.streamer = streamer
        self.takes_logits = hasattr(streamer, "put_draft") and getattr(streamer, "_takes_logits", False)
        self.history: Optional[list[Tensor]] = [canvas.ids.clone()] if keeps_history else None
        # An infilled text is final only as a whole.
        self.num_confirmed = canvas.answer_start or 0
        self._scored: Optional[tuple[Tensor, Tensor]] = None
        if streamer is not None:
            self._put(0, canvas.ids.shape[1] if canvas.answer_start is None else canvas.answer_start)

    def keep_logits(self, logits: Tensor, is_masked: Tensor, start: int) -> None:
        """Keep a pass's logits for its draft.

        Args:
            logits: [num_scored, vocab]; copied.
            is_masked: the positions that they belong to; bool [active, block].
            start: first column of the block.
        """
        is_scored = torch.zeros_like(self.canvas.ids, dtype=torch.bool)
        is_scored[self.canvas.rows, start : start + is_masked.shape[1]] = is_masked
        logits = logits.float().clone()
        logits[:, self.canvas.mask_token_id] = -torch.inf
        self._scored = is_scored, logits

    def step_done(self) -> None:
        """Report the canvas after a step: all that is not final yet is a draft."""
        if self.history is not None:
            self.history.append(self.canvas.ids.clone())
        if not hasattr(self.streamer, "put_draft"):
            return
        draft = self.canvas.ids[:, self.num_confirmed :]
        if self._scored is None:
            self.streamer.put_draft(draft.cpu())
            return
        is_scored, logits = self._scored
        # What this pass did not score is certain to be what stands there.
        of_draft = logits.new_full((*draft.shape, logits.shape[-1]), -torch.inf).scatter(-1, draft[..., None], 0.0)
        of_draft[is_scored[:, self.num_confirmed :]] = logits
        self.streamer.put_draft(logits=of_draft.cpu())

    def block_done(self, end: int) -> None:
        """Report a finished block; nothing of it will change."""
        if self.streamer is not None and self.canvas.answer_start is not None:
            self._put(self.num_confirmed, end)
            self.num_confirmed = end

    def all_done(self, end: int) -> Optional[tuple[Tensor, ...]]:
        """Report the end of the call, and return the history, cut to the columns before `end`."""
        if self.streamer is not None:
            if self.canvas.answer_start is None:
                self._put(0, end)
            self.streamer.end()
        return None if self.history is None else tuple(canvas[:, :end] for canvas in self.history)

    def _put(self, start: int, end: int) -> None:
        """Hand finished columns to the streamer, of one row only its own tokens."""
        canvas = self.canvas
        tokens = canvas.ids[:, start:end]
        if len(tokens) == 1:
            tokens = canvas.ids[0, start : min(end, int(canvas.ends[0]))]
            if canvas.attention_mask is not None:
                tokens = tokens[canvas.attention_mask[0, start : start + len(tokens)]]
        if tokens.numel():
            self.streamer.put(tokens.cpu())
