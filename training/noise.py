"""What a training step draws at random: noise levels, masks and lengths, from (seed, step, example id) alone.

The forward process itself stands in `modeling_llada.diffusion_llada`; here its random numbers are chosen, so that one
process, several processes and a resumed run draw the same.

Shape legend: B batch, T sequence length.
"""

import torch
from torch import Tensor

from modeling_llada.diffusion_llada import (
    NOISE_EPS,
    NoisyBatch,
    add_noise,
    draw_uniform,
    low_discrepancy_noise_levels,
    row_generators,
    row_seed,
    uniform_noise_levels,
)

# Labels of positions that are never masked and never scored.
IGNORE_INDEX = -100
# Separate streams of random numbers, so that lengths, levels and masks of one example are independent.
MASK_STREAM, LEVEL_STREAM, LENGTH_STREAM = 0, 1, 2


def training_noise_levels(
    example_ids: Tensor, slots: Tensor, seed: int, step: int, low_discrepancy: bool = False
) -> Tensor:
    """Noise levels of a training batch.

    Args:
        example_ids: number of each example in its data set; int64 [batch].
        slots: place of each example in the optimizer step, counted over accumulation and processes; int64 [batch].
        seed: the run's seed.
        step: optimizer step.
        low_discrepancy: spread the levels of the step evenly over (0, 1] by `slots`, from an offset drawn per step;
            otherwise each level is U(0, 1] on its own, by `example_ids`.

    Returns:
        t in (0, 1]; [batch].
    """
    stream = row_seed(seed, LEVEL_STREAM, 0)
    if low_discrepancy:
        generator = torch.Generator().manual_seed(row_seed(stream, step, 0))
        return low_discrepancy_noise_levels(slots, offset=draw_uniform((1,), generator).item())
    return uniform_noise_levels(draw_uniform((len(example_ids),), row_generators(stream, step, example_ids))).to(
        example_ids.device
    )


def draw_noise(
    input_ids: Tensor,
    labels: Tensor,
    example_ids: Tensor,
    noise_levels: Tensor,
    mask_token_id: int,
    seed: int,
    step: int,
    exact_count: bool = False,
    eps: float = NOISE_EPS,
) -> NoisyBatch:
    """Mask a batch at the given noise levels.

    Args:
        input_ids: clean ids; int64 [batch, seq].
        labels: the clean id where a position may be masked, -100 elsewhere; int64 [batch, seq].
        example_ids: number of each example in its data set; int64 [batch].
        noise_levels: t in (0, 1]; [batch].
        mask_token_id: id that stands for the mask.
        seed: the run's seed.
        step: optimizer step, or -1 for evaluation, whose masks are the same at every step.
        exact_count: mask exactly ceil(t L) maskable tokens, weight L/l, instead of each with p, weight 1/p.
        eps: smallest masking probability of independent masks.

    Returns:
        The noisy batch. A row's masks depend on (seed, step, example id) and its length, not on its neighbours.
    """
    generators = row_generators(row_seed(seed, MASK_STREAM, 0), step, example_ids)
    uniforms = draw_uniform(tuple(input_ids.shape), generators, device=input_ids.device)
    return add_noise(
        input_ids, labels != IGNORE_INDEX, mask_token_id, noise_levels, uniforms, exact_count=exact_count, eps=eps
    )


def random_lengths(num_tokens: Tensor, example_ids: Tensor, seed: int, step: int, probability: float) -> Tensor:
    """Cut a share of the sequences to a length drawn uniformly from 1 to the sequence's length.

    Args:
        num_tokens: length of each sequence; int64 [batch].
        example_ids: number of each example in its data set; int64 [batch].
        seed: the run's seed.
        step: optimizer step.
        probability: chance that a sequence is cut.

    Returns:
        New lengths, at most `num_tokens`; int64 [batch].

    Source: LLaDA (arXiv:2502.09992), section 2.2: 1 % of the sequences, lengths U[1, 4096]. The released code cuts
    a whole batch at once; here each sequence is cut on its own, so that the draw does not depend on the batch.
    """
    generators = row_generators(row_seed(seed, LENGTH_STREAM, 0), step, example_ids)
    uniforms = draw_uniform((len(example_ids), 2), generators, device=num_tokens.device)  # [B, (cut?, length)]
    drawn = (uniforms[:, 1].double() * num_tokens).long() + 1
    return torch.where(uniforms[:, 0] < probability, torch.minimum(drawn, num_tokens), num_tokens)
