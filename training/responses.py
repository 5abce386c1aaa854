"""What a fine-tuning step does to its rows before they are masked: draw a turn, fill up with end-of-text tokens.

Shape legend: B batch, T sequence length.
"""

from typing import Optional

import torch
from torch import Tensor

from llada_core.diffusion import draw_uniform, row_generators, row_seed

from .collator import attention_mask_of, cut_to_lengths, row_lengths
from .noise import IGNORE_INDEX, TURN_STREAM


def draw_turns(batch: dict[str, Tensor], seed: int, step: int, pad_token_id: int) -> dict[str, Tensor]:
    """Draw one turn of each row as its response. The turns before become its prompt, what follows is cut off.

    Args:
        batch: as made by `LLaDACollator`, with `is_cut`. A turn is an unbroken run of labels other than -100.
        seed: the run's seed.
        step: optimizer step. A row's draw depends on (seed, step, example id) alone.
        pad_token_id: id that fills up shorter rows.

    Returns:
        A new batch of the same form. `is_cut` is kept only where the last turn was drawn: others are whole.

    Source: LLaDA (arXiv:2502.09992), appendix B.1: an n-turn dialogue is n pairs of history and response.
    """
    is_response = batch["labels"] != IGNORE_INDEX  # [B, T]
    is_start = is_response.clone()
    is_start[:, 1:] &= ~is_response[:, :-1]
    turn = is_start.cumsum(-1)
    num_turns = is_start.sum(-1)
    if bool((num_turns <= 1).all()):
        return batch
    generators = row_generators(row_seed(seed, TURN_STREAM, 0), step, batch["example_id"])
    uniforms = draw_uniform((len(num_turns),), generators, device=turn.device)
    drawn = (uniforms.double() * num_turns).long() + 1
    is_drawn = is_response & (turn == drawn[:, None])
    ends = (is_drawn * torch.arange(1, turn.shape[1] + 1, device=turn.device)).max(-1).values
    changed = {
        "labels": batch["labels"].masked_fill(~is_drawn, IGNORE_INDEX),
        "is_cut": batch["is_cut"] & (drawn == num_turns),
    }
    return cut_to_lengths(batch | changed, ends, pad_token_id)


def lengths_with_eos(batch: dict[str, Tensor], num_extra: Optional[int], max_length: int, longest: int = 0) -> Tensor:
    """Length of each row with the end-of-text tokens after its answer; int64 [batch].

    Args:
        batch: as made by `LLaDACollator`, with `is_cut`. A truncated answer gets none: its end is not known.
        num_extra: tokens beyond the first; None fills up to `longest`.
        max_length: no row is filled beyond it.
        longest: see `num_extra`.
    """
    lengths = row_lengths(batch)
    wanted = (lengths + 1).clamp(min=longest) if num_extra is None else lengths + 1 + num_extra
    filled = torch.maximum(wanted.clamp(max=max_length), lengths)
    return torch.where(batch["is_cut"], lengths, filled)


def fill_with_eos(batch: dict[str, Tensor], lengths: Tensor, eos_token_id: int, pad_token_id: int) -> dict[str, Tensor]:
    """Lengthen the answers by end-of-text tokens, which are masked and learnt like the others.

    Args:
        batch: as made by `LLaDACollator`.
        lengths: length of each row afterwards, at least its own, as given by `lengths_with_eos`; int64 [batch].
        eos_token_id: id of the end-of-text token.
        pad_token_id: id that fills up shorter rows.

    Returns:
        A new batch of the same form.

    Source: LLaDA (arXiv:2502.09992), appendix B.1, pads to the longest of the batch and learns the padding.
    """
    width = int(lengths.max())
    columns = torch.arange(width, device=lengths.device)
    is_new = (columns >= row_lengths(batch)[:, None]) & (columns < lengths[:, None])
    filled = {name: value for name, value in batch.items() if name != "attention_mask"}
    for name, padding in (("input_ids", pad_token_id), ("labels", IGNORE_INDEX)):
        wide = torch.nn.functional.pad(batch[name], (0, width - batch[name].shape[1]), value=padding)
        filled[name] = wide.masked_fill(is_new, eos_token_id)
    return filled | attention_mask_of(lengths, width)
