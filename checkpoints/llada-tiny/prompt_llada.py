"""Checks of the ids that a caller passes: what cannot be a prompt is refused, with a way out."""

from typing import Optional

from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)


def check_prompt(
    input_ids: Optional[Tensor],
    attention_mask: Optional[Tensor],
    vocab_size: int,
    mask_token_id: int,
    pad_token_id: Optional[int],
) -> Optional[Tensor]:
    """Refuse ids that cannot be a prompt.

    Args:
        input_ids: int64 [batch, prompt].
        attention_mask: nonzero at prompt tokens, [batch, prompt], or None.
        vocab_size: ids that the embedding knows.
        mask_token_id: id of the mask.
        pad_token_id: id that suggests padding where no `attention_mask` is given.

    Returns:
        The padding mask, bool [batch, prompt]; None if nothing is padded.

    Raises:
        ValueError: for no ids, ids outside the vocabulary, a row of nothing but masks or padding, and a mask of another
            shape.
    """
    if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
        shape = None if input_ids is None else tuple(input_ids.shape)
        raise ValueError(f"`input_ids` must hold at least one token per row, int64 [batch, seq], got {shape}.")
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"`input_ids` must lie in the vocabulary, 0..{vocab_size - 1}, got {lowest}..{highest}; "
            "was the text encoded with another model's tokenizer?"
        )
    if (input_ids == mask_token_id).all(-1).any():
        raise ValueError(
            "`input_ids` has a row that is nothing but mask tokens; give every row at least one real token, "
            "for instance the beginning-of-text token."
        )
    if attention_mask is None:
        _warn_of_padding(input_ids, pad_token_id)
        return None
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


def check_no_masks(input_ids: Tensor, mask_token_id: int) -> None:
    """Refuse masks in a prompt that is to be continued; int64, any shape.

    Raises:
        ValueError: if there is a mask token.
    """
    if (input_ids == mask_token_id).any():
        raise ValueError(
            f"`input_ids` holds the mask token ({mask_token_id}); `generate` appends its own masks. "
            "To fill masks where they stand, call `infill`."
        )


def _warn_of_padding(input_ids: Tensor, pad_token_id: Optional[int]) -> None:
    edges = input_ids[:, [0, -1]]
    if input_ids.shape[0] > 1 and pad_token_id is not None and (edges == pad_token_id).any():
        logger.warning_once(
            f"`input_ids` begins or ends with the padding token ({pad_token_id}) in some rows, and no "
            "`attention_mask` was given: padding is read as text. Pass the tokenizer's `attention_mask`."
        )
