"""A stand-in for flash attention, which needs a GPU: the same inputs and masks, computed in plain torch."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

# transformers looks for a kernel where a name says flash.
NAME = "varlen_stand_in"


def register() -> str:
    """Register the stand-in with transformers, as an implementation that takes flash attention's masks."""
    AttentionInterface.register(NAME, flash_stand_in)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    return NAME


def flash_stand_in(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    scaling: float,
    dropout: float = 0.0,
    cu_seq_lens_q: Optional[Tensor] = None,
    cu_seq_lens_k: Optional[Tensor] = None,
    max_length_q: Optional[int] = None,
    max_length_k: Optional[int] = None,
) -> tuple[Tensor, None]:
    """Attention, one text at a time.

    As in transformers, a mask is [batch, keys], and its padded queries give zeros; there a window of queries would be
    taken for the last positions, which is refused here.
    """
    assert module.is_causal is False and dropout == 0.0
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))  # [B, T, H, D]
    if attention_mask is not None:
        assert cu_seq_lens_q is None and attention_mask.shape == query.shape[:2] == key.shape[:2]
        pieces = places_of_rows(attention_mask.bool())
        pieces = list(zip(pieces, pieces))
    elif cu_seq_lens_q is not None:
        assert len(query) == 1 and cu_seq_lens_q.dtype == cu_seq_lens_k.dtype == torch.int32
        assert max_length_q == int(cu_seq_lens_q.diff().max()) and max_length_k == int(cu_seq_lens_k.diff().max())
        pieces = list(zip(places_between(cu_seq_lens_q), places_between(cu_seq_lens_k)))
    else:
        pieces = [*zip(*(places_of_rows(torch.ones(states.shape[:2]) > 0) for states in (query, key)))]
    attended = torch.zeros_like(query).flatten(0, 1)
    for queries, keys in pieces:
        chosen = [(query, queries), (key, keys), (value, keys)]
        text = [states.flatten(0, 1)[places].transpose(0, 1)[None] for states, places in chosen]
        output = F.scaled_dot_product_attention(*text, scale=scaling, enable_gqa=True)
        attended = attended.index_copy(0, queries, output[0].transpose(0, 1))
    return attended.view(query.shape), None


def places_of_rows(is_valid: Tensor) -> list[Tensor]:
    """Of each row of [batch, seq], the places of its valid positions in [batch * seq]."""
    places = torch.arange(is_valid.numel()).view(is_valid.shape)
    return [row[valid] for row, valid in zip(places, is_valid)]


def places_between(ends: Tensor) -> list[Tensor]:
    """The places from each entry of `ends`, which begins with 0, to the next."""
    return [torch.arange(start, end) for start, end in zip(ends.tolist(), ends[1:].tolist())]
