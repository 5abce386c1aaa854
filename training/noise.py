"""What a training step draws at random: noise levels, masks and lengths, from (seed, step, example id) alone.

The forward process itself stands in `llada_core.diffusion`; here its random numbers are chosen, so that one
process, several processes and a resumed run draw the same.

Shape legend: B batch, T sequence length, N noise draws per example.
"""

import torch
from torch import Tensor

from llada_core.diffusion import (
    NOISE_EPS,
    NoisyBatch,
    add_noise,
    draw_uniform,
    low_discrepancy_noise_levels,
    masking_probability,
    row_generators,
    row_seed,
    uniform_noise_levels,
)

# Labels of positions that are never masked and never scored.
IGNORE_INDEX = -100
# Separate streams of random numbers, so that lengths, levels and masks of one example are independent.
MASK_STREAM, LEVEL_STREAM, LENGTH_STREAM, TURN_STREAM, ATTENTION_STREAM, PROMPT_STREAM, ROLLOUT_STREAM = range(7)
# Stands for the example ids where one draw is for the whole step.
WHOLE_STEP = torch.zeros(1, dtype=torch.long)


def training_noise_levels(
    example_ids: Tensor, slots: Tensor, seed: int, step: int, low_discrepancy: bool = False, num_draws: int = 1
) -> Tensor:
    """Noise levels of a training batch, one per example and draw.

    Args:
        example_ids: number of each example in its data set; int64 [batch].
        slots: place of each example in the optimizer step, counted over accumulation and processes; int64 [batch].
        seed: the run's seed.
        step: optimizer step.
        low_discrepancy: spread the levels of the step evenly over (0, 1] by `slots`, from an offset drawn per step;
            otherwise each level is U(0, 1] on its own, by `example_ids`.
        num_draws: noise draws per example.

    Returns:
        t in (0, 1]; [num_draws * batch], draw by draw.
    """
    if low_discrepancy:
        slots = torch.cat([slots * num_draws + draw for draw in range(num_draws)])
        return low_discrepancy_noise_levels(slots, row_uniforms(WHOLE_STEP, seed, step, LEVEL_STREAM).item())
    uniforms = [row_uniforms(example_ids, seed, step, LEVEL_STREAM, draw=draw) for draw in range(num_draws)]
    return uniform_noise_levels(torch.cat(uniforms)).to(example_ids.device)


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
    complementary: bool = False,
) -> NoisyBatch:
    """Mask a batch at the given noise levels, once or several times.

    Args:
        input_ids: clean ids; int64 [batch, seq].
        labels: the clean id where a position may be masked, -100 elsewhere; int64 [batch, seq].
        noise_levels: t in (0, 1]; [num_draws * batch], draw by draw.
        mask_token_id: id that stands for the mask.
        example_ids, seed: as in `training_noise_levels`.
        step: optimizer step, or -1 for evaluation, whose masks are the same at every step.
        exact_count: mask exactly ceil(t L) maskable tokens, weight L/l, instead of each with p, weight 1/p.
        eps: smallest masking probability of independent masks.
        complementary: follow the draws by their complements (see `with_complements`).

    Returns:
        The noisy batch, [num_draws * batch, seq], draw by draw; twice as many rows with `complementary`. A row's
        masks depend on (seed, step, example id) and its length, not on its neighbours.
    """
    num_draws = len(noise_levels) // len(input_ids)
    width = input_ids.shape[1]
    draws = [row_uniforms(example_ids, seed, step, MASK_STREAM, (width,), draw) for draw in range(num_draws)]
    uniforms = torch.cat(draws).to(input_ids.device)
    clean = input_ids.repeat(num_draws, 1)
    is_maskable = (labels != IGNORE_INDEX).repeat(num_draws, 1)
    noisy = add_noise(clean, is_maskable, mask_token_id, noise_levels, uniforms, exact_count, eps)
    return with_complements(noisy, clean, is_maskable, mask_token_id, exact_count, eps) if complementary else noisy


def with_complements(
    noisy: NoisyBatch,
    input_ids: Tensor,
    is_maskable: Tensor,
    mask_token_id: int,
    exact_count: bool = False,
    eps: float = NOISE_EPS,
) -> NoisyBatch:
    """Follow each noisy row by its complement, which masks just the maskable tokens that the row left clean.

    A complement's masking probability is q = 1 - p, or its count L - l. Where that is one of the levels that rows are
    drawn at (q >= eps, or a count of at least 1), it has its own weight 1/q, or L/(L - l). Elsewhere its weight is 0
    and the row's is doubled. So the mean over both estimates the same bound as rows alone, without bias: levels are
    uniform, every level in the range of the complements is met twice at half weight, and the others once at full.

    Args:
        noisy: drawn rows; [batch].
        input_ids: their clean ids; int64 [batch, seq].
        is_maskable: positions that may be masked; bool [batch, seq].
        mask_token_id: id that stands for the mask.
        exact_count, eps: as `noisy` was drawn with.

    Returns:
        Twice the rows: first those of `noisy`, then their complements.
    """
    is_masked = is_maskable & ~noisy.is_masked
    if exact_count:
        counts = is_masked.sum(-1)
        is_in_range, weights = counts > 0, is_maskable.sum(-1) / counts.clamp(min=1)
    else:
        probability = 1.0 - masking_probability(noisy.noise_levels, eps)
        is_in_range = (probability >= eps) & (probability > 0)
        weights = 1.0 / probability.clamp(min=torch.finfo(torch.float32).tiny)
    weights = torch.where(is_in_range, weights, 0.0)
    own_weights = torch.where(is_in_range, noisy.weights, 2.0 * noisy.weights)
    levels = (1.0 - noisy.noise_levels).clamp(min=torch.finfo(torch.float32).tiny)
    return NoisyBatch(
        torch.cat([noisy.input_ids, input_ids.masked_fill(is_masked, mask_token_id)]),
        torch.cat([noisy.is_masked, is_masked]),
        torch.cat([own_weights, weights]),
        torch.cat([noisy.noise_levels, levels]),
    )


def random_lengths(num_tokens: Tensor, example_ids: Tensor, seed: int, step: int, probability: float) -> Tensor:
    """Cut a share of the sequences to a length drawn uniformly from 1 to the sequence's length.

    Args:
        num_tokens: length of each sequence; int64 [batch].
        example_ids, seed, step: as in `training_noise_levels`.
        probability: chance that a sequence is cut.

    Returns:
        New lengths, at most `num_tokens`; int64 [batch].

    Source: LLaDA (arXiv:2502.09992), section 2.2: 1 % of the sequences, lengths U[1, 4096]. The released code cuts
    a whole batch at once; here each sequence is cut on its own, so that the draw does not depend on the batch.
    """
    uniforms = row_uniforms(example_ids, seed, step, LENGTH_STREAM, (2,)).to(num_tokens.device)  # [B, (cut?, length)]
    drawn = (uniforms[:, 1].double() * num_tokens).long() + 1
    return torch.where(uniforms[:, 0] < probability, torch.minimum(drawn, num_tokens), num_tokens)


def row_uniforms(
    example_ids: Tensor, seed: int, step: int, stream: int, shape: tuple[int, ...] = (), draw: int = 0
) -> Tensor:
    """Numbers in [0, 1) of one `stream`, of the given shape for each example; [batch, *shape], on the CPU."""
    generators = row_generators(row_seed(seed, stream, draw), step, example_ids)
    return draw_uniform((len(example_ids), *shape), generators)
