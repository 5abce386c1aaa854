"""The forward process of masked diffusion: noise levels, masking and loss weights.

Training and likelihood evaluation share these functions, so there is one noise process. All of them are pure
functions on tensors; the random numbers come in as tensors, drawn by `draw_uniform` from explicit generators.

Shape legend: B batch, T sequence length.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_llada.unmasking_llada import draw_uniform as draw_uniform

# Smallest masking probability of the released training code: p = (1 - eps) t + eps.
NOISE_EPS = 1e-3
# Step of the additive recurrence with the lowest discrepancy: the fractional part of the golden ratio.
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


class NoisyBatch(NamedTuple):
    """A batch after the forward process.

    Attributes:
        input_ids: ids with the masked positions replaced by the mask token; int64 [batch, seq].
        is_masked: positions that were masked; bool [batch, seq].
        weights: factor of each row's cross-entropies (1/p, or L/l with exact counts); [batch].
        noise_levels: t of each row, in (0, 1]; [batch].
    """

    input_ids: Tensor
    is_masked: Tensor
    weights: Tensor
    noise_levels: Tensor


def row_seed(seed: int, step: int, example_id: int) -> int:
    """Mix (seed, step, example id) into one 63-bit seed, the same on every rank and every machine.

    Source: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014), applied once per number.
    """
    state = 0
    for number in (seed, step, example_id):
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state >> 1


def row_generators(seed: int, step: int, example_ids: Tensor) -> list[torch.Generator]:
    """One CPU generator per example, so that noise depends on (seed, step, example) and on nothing else.

    Args:
        seed: the run's seed.
        step: optimizer step (training) or 0 (evaluation).
        example_ids: stable number of each example in its data set; int64 [batch].

    Returns:
        A generator per row, for `draw_uniform`.
    """
    return [torch.Generator().manual_seed(row_seed(seed, step, int(i))) for i in example_ids.tolist()]


def uniform_noise_levels(uniforms: Tensor) -> Tensor:
    """Noise levels t ~ U(0, 1] from uniforms in [0, 1); any shape."""
    return 1.0 - uniforms


def low_discrepancy_noise_levels(example_ids: Tensor, offset: float = 0.0) -> Tensor:
    """Noise levels that cover (0, 1] evenly over consecutive example ids.

    t_i = 1 - frac(offset + i * golden ratio). For an offset drawn uniformly, every single t is U(0, 1].

    Args:
        example_ids: number of each example; int64 [batch].
        offset: shift of the sequence, in [0, 1).

    Returns:
        t in (0, 1]; float32 [batch].

    Source: additive recurrence (Kronecker sequence); for training noise levels, Kingma et al., arXiv:2107.00630,
    section 4 use stratified levels for the same purpose.
    """
    shifted = (example_ids.double() * GOLDEN_RATIO + offset).frac()
    # Rounding to float32 may reach 1.0, and a noise level of 0 would mask nothing.
    return (1.0 - shifted).float().clamp(min=torch.finfo(torch.float32).tiny)


def masking_probability(noise_levels: Tensor, eps: float = NOISE_EPS) -> Tensor:
    """Probability p = (1 - eps) t + eps with which each token is masked; any shape.

    Source: the released pre-training code of LLaDA; the paper's Eq. 3 is eps = 0.
    """
    return (1.0 - eps) * noise_levels + eps


def mask_independently(is_maskable: Tensor, probability: Tensor, uniforms: Tensor) -> Tensor:
    """Mask every maskable position on its own with its row's probability.

    Args:
        is_maskable: bool [batch, seq].
        probability: masking probability, in (0, 1]; [batch].
        uniforms: one number in [0, 1) per position; [batch, seq].

    Returns:
        Masked positions; bool [batch, seq].
    """
    return (uniforms < probability[:, None]) & is_maskable


def mask_exact_count(is_maskable: Tensor, counts: Tensor, uniforms: Tensor) -> Tensor:
    """Mask exactly `counts` maskable positions per row, drawn without replacement.

    Args:
        is_maskable: bool [batch, seq].
        counts: number of positions to mask, at most the row's maskable ones; int64 [batch].
        uniforms: one number in [0, 1) per position, the order of the draw; [batch, seq].

    Returns:
        Masked positions; bool [batch, seq], exactly `counts` per row.
    """
    order = uniforms.masked_fill(~is_maskable, torch.inf).argsort(dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return (rank < counts[:, None]) & is_maskable


def masked_counts(noise_levels: Tensor, num_maskable: Tensor) -> Tensor:
    """Number of tokens to mask, l = ceil(t L): uniform on 1..L when t is U(0, 1].

    Args:
        noise_levels: t in (0, 1]; [batch].
        num_maskable: L of each row; int64 [batch].

    Returns:
        l; int64 [batch], 0 only where L is 0.
    """
    counts = (noise_levels.double() * num_maskable).ceil().long()
    return torch.minimum(counts.clamp(min=1), num_maskable)


def add_noise(
    input_ids: Tensor,
    is_maskable: Tensor,
    mask_token_id: int,
    noise_levels: Tensor,
    uniforms: Tensor,
    exact_count: bool = False,
    eps: float = NOISE_EPS,
) -> NoisyBatch:
    """Run the forward process: draw x_t from x_0 at the given noise levels.

    Args:
        input_ids: clean ids x_0; int64 [batch, seq].
        is_maskable: positions that may be masked (the answer, or all that is not padding); bool [batch, seq].
        mask_token_id: id that stands for the mask.
        noise_levels: t in (0, 1]; [batch].
        uniforms: one number in [0, 1) per position; [batch, seq].
        exact_count: mask exactly l = ceil(t L) tokens (weight L/l, Eq. 6) instead of each with probability p
            (weight 1/p, Eq. 3). Both give unbiased losses; exact counts have less variance.
        eps: smallest masking probability of independent masking; not used with exact counts.

    Returns:
        The noisy ids, which positions are masked, the weight of each row's cross-entropies and t.

    Source: LLaDA (arXiv:2502.09992), Eq. 3 and Eq. 6.
    """
    if exact_count:
        num_maskable = is_maskable.sum(-1)
        counts = masked_counts(noise_levels, num_maskable)
        is_masked = mask_exact_count(is_maskable, counts, uniforms)
        weights = num_maskable / counts.clamp(min=1)
    else:
        probability = masking_probability(noise_levels, eps)
        is_masked = mask_independently(is_maskable, probability, uniforms)
        weights = 1.0 / probability
    return NoisyBatch(input_ids.masked_fill(is_masked, mask_token_id), is_masked, weights, noise_levels)


def weighted_cross_entropy(token_losses: Tensor, is_masked: Tensor, weights: Tensor) -> Tensor:
    """Sum each row's cross-entropies, times the row's weight.

    Args:
        token_losses: -log p(x_0 | x_t) at the masked positions, rows one after the other; [num_masked].
        is_masked: bool [batch, seq] with num_masked true entries.
        weights: 1/p or L/l of each row; [batch].

    Returns:
        One unbiased estimate of the row's bound (nats, summed over tokens); [batch].
    """
    rows = is_masked.nonzero()[:, 0]
    weighted = token_losses * weights.to(token_losses.dtype)[rows]
    return torch.zeros(is_masked.shape[0], dtype=token_losses.dtype, device=token_losses.device).index_add(
        0, rows, weighted
    )
