"""Anneals attention from causal to bidirectional, for training that goes on from an autoregressive checkpoint.

Shape legend: B batch, T sequence length.
"""

from typing import Optional

import torch
from torch import Tensor

from llada_core.diffusion import draw_uniform, row_seed

from .noise import ATTENTION_STREAM


def annealed_attention_mask(
    attention_mask: Optional[Tensor], like: Tensor, step: int, annealing_steps: int, seed: int
) -> Optional[Tensor]:
    """Attention mask of one optimizer step: causal at step 0, without any limit from `annealing_steps` on.

    In between, every pair of a query and a later key is visible with probability step / annealing_steps, drawn anew
    at each step for all its rows. The draw depends on (seed, step) alone: accumulation, processes and a resumed run
    see the same, and a shorter batch sees a corner of it.

    Args:
        attention_mask: nonzero at valid positions, or None if all are; [batch, seq].
        like: gives length and device of the batch; any type, [batch, seq].
        step: optimizer step, from 0.
        annealing_steps: steps until attention is bidirectional; 0 is from the start.
        seed: the run's seed.

    Returns:
        `attention_mask` as it came once everything is visible, else bool [batch or 1, 1, seq, seq], True where a query
        (third dimension) attends to a key (fourth). A position always attends to itself.

    Source: attention mask annealing of DiffuLLaMA (arXiv:2410.17891). It also shifts the logits, so that position i
    goes on predicting token i + 1; LLaDA predicts token i, so nothing is shifted here.
    """
    if step >= annealing_steps:
        return attention_mask
    length = like.shape[1]
    generator = torch.Generator().manual_seed(row_seed(row_seed(seed, ATTENTION_STREAM, 0), step, 0))
    # In the order of the keys, so that the first pairs are the same for every length.
    keys, queries = torch.tril_indices(length, length, offset=-1)
    is_visible = torch.ones(length, length, dtype=torch.bool).tril()
    is_visible[queries, keys] = draw_uniform((len(keys),), generator) < step / annealing_steps
    is_visible = is_visible.to(like.device)[None, None]
    if attention_mask is None:
        return is_visible
    is_valid = attention_mask[:, None, None, :].bool()  # [B, 1, 1, T]
    # A query that sees nothing at all would be divided by zero.
    return (is_visible & is_valid) | torch.eye(length, dtype=torch.bool, device=like.device)
