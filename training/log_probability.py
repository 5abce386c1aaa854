"""The log-probability of an answer by the diffusion bound, with noise that several models share.

Preference and reinforcement learning compare a policy with a reference model. Both see the same noisy batches here,
so that their difference does not carry the noise: it is exactly zero for equal models.

Shape legend: B batch, T sequence length, K masked positions of the batch, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llada_core.diffusion import NoisyBatch, uniform_noise_levels, weighted_cross_entropy

from .loss import score_masked
from .noise import LEVEL_STREAM, draw_noise, row_uniforms

# Maps noisy ids, int64 [batch, seq], and the positions to score, bool [batch, seq], to logits [num_masked, vocab].
LogitsAt = Callable[[Tensor, Tensor], Tensor]


def draw_noises(
    input_ids: Tensor, labels: Tensor, example_ids: Tensor, mask_token_id: int, num_levels: int, seed: int, step: int
) -> list[NoisyBatch]:
    """Mask a batch at several noise levels, once at each.

    A row's levels lie at equal distances from a start drawn for the row, so that together they cover (0, 1] evenly
    while each alone is uniform on one of `num_levels` equal parts. Masks have exact counts, which leave no bias.

    Args:
        input_ids: clean ids of prompt and answer; int64 [batch, seq].
        labels: the clean id in the answer, -100 elsewhere; int64 [batch, seq].
        example_ids, mask_token_id, seed, step: as in `draw_noise`.
        num_levels: noise levels of each row, at least 1. LLaDA 1.5 uses 8.

    Returns:
        One noisy batch per level. A row's noise depends on (seed, step, example id) and not on its neighbours.

    Raises:
        ValueError: if `num_levels` is below 1.

    Source: VRPO in LLaDA 1.5 (arXiv:2505.19223): for a fixed number of passes, many levels with one mask each. There
    the levels are drawn independently of each other.
    """
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1, got {num_levels}; LLaDA 1.5 uses 8.")
    start = row_uniforms(example_ids, seed, step, LEVEL_STREAM).to(input_ids.device).double()
    parts = torch.arange(num_levels, device=input_ids.device)[:, None]
    noise_levels = uniform_noise_levels((parts + start) / num_levels).float()  # [num_levels, B]
    noisy = draw_noise(
        input_ids, labels, example_ids, noise_levels.flatten(), mask_token_id, seed, step, exact_count=True
    )
    return [NoisyBatch(*level) for level in zip(*(values.chunk(num_levels) for values in noisy))]


def elbo_log_probability(logits_at: LogitsAt, noises: list[NoisyBatch], labels: Tensor) -> Tensor:
    """Estimate the bound on log p(answer | prompt) of each row: the mean over the noisy batches.

    Pass the same `noises` for the policy and for the reference, whose call belongs under `torch.no_grad()`:

    ```python
    noises = draw_noises(input_ids, labels, example_ids, policy.config.mask_token_id, 8, seed, step)

    def logits_of(model):
        return lambda noisy_ids, is_masked: model(noisy_ids, attention_mask, logits_positions=is_masked).logits

    with torch.no_grad():
        reference_log_probability = elbo_log_probability(logits_of(reference), noises, labels)
    log_ratio = elbo_log_probability(logits_of(policy), noises, labels) - reference_log_probability
    ```

    Args:
        logits_at: the model: maps noisy ids and the masked positions to logits [num_masked, vocab].
        noises: result of `draw_noises`.
        labels: the clean id in the answer, -100 elsewhere; int64 [batch, seq].

    Returns:
        Log-probabilities in nats, with gradient; float32 [batch]; 0 for a row without an answer. The estimate is
        unbiased for the bound, which is at most the log-probability itself.

    Source: LLaDA (arXiv:2502.09992), Eq. 6; the shared noise from VRPO in LLaDA 1.5 (arXiv:2505.19223).
    Not handled: dropout, which would draw other numbers for the two models; a backward pass level by level (the
    activations of all levels are kept for it).
    """
    bounds = []
    for noisy in noises:
        logits = logits_at(noisy.input_ids, noisy.is_masked)
        token_losses = score_masked(logits, labels, noisy.is_masked).token_losses
        bounds.append(weighted_cross_entropy(token_losses, noisy.is_masked, noisy.weights))
    return -torch.stack(bounds).mean(0)
