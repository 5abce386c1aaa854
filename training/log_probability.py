"""The log-probability of an answer by the diffusion bound, with noise that several models share.

Preference and reinforcement learning compare a policy with a reference model. Both see the same noisy batches here,
so that their difference does not carry the noise: it is exactly zero for equal models.

Shape legend: B batch, T sequence length, K masked positions of the batch, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llada_core.diffusion import NoisyBatch, uniform_noise_levels

from .loss import score_masked
from .noise import LEVEL_STREAM, draw_noise, row_uniforms

# Maps noisy ids, int64 [batch, seq], and the positions to score, bool [batch, seq], to logits [num_masked, vocab].
LogitsAt = Callable[[Tensor, Tensor], Tensor]


# What the noise levels of a row are: drawn, or the nodes of Gauss quadrature.
LEVEL_CHOICES = ("stratified", "quadrature")


def quadrature_levels(num_levels: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature over the noise level.

    With independent masks the bound is the integral over t of a polynomial of degree L - 1 for an answer of L tokens.
    So the sum over the nodes has no error for answers of at most 2 * num_levels tokens, and a small one for longer
    answers, whose integrand is smooth.

    Args:
        num_levels: nodes, at least 1. GDPO uses 2 or 3.

    Returns:
        Noise levels in (0, 1), ascending, symmetric about 1/2; float64 [num_levels]. Their weights, whose sum is 1;
        float64 [num_levels].

    Raises:
        ValueError: if `num_levels` is below 1.

    Source: GDPO (arXiv:2510.08554), semi-deterministic Monte Carlo: nearly all variance of the bound comes from t.
    """
    _check_num_levels(num_levels)
    nodes, weights = np.polynomial.legendre.leggauss(num_levels)  # on [-1, 1]
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def stratified_levels(example_ids: Tensor, num_levels: int, seed: int, step: int) -> Tensor:
    """Noise levels at equal distances from a start drawn for each row.

    Together a row's levels cover (0, 1] evenly, while each alone is uniform on one of `num_levels` equal parts.

    Args:
        example_ids, seed, step: as in `draw_noise`.
        num_levels: noise levels of each row, at least 1.

    Returns:
        t in (0, 1], descending; float32 [num_levels, batch].

    Raises:
        ValueError: if `num_levels` is below 1.
    """
    _check_num_levels(num_levels)
    start = row_uniforms(example_ids, seed, step, LEVEL_STREAM).to(example_ids.device).double()
    parts = torch.arange(num_levels, device=example_ids.device)[:, None]
    return uniform_noise_levels((parts + start) / num_levels).float()


def draw_noises(
    input_ids: Tensor,
    labels: Tensor,
    example_ids: Tensor,
    mask_token_id: int,
    num_levels: int,
    seed: int,
    step: int,
    levels: str = "stratified",
    complementary: bool = False,
) -> list[NoisyBatch]:
    """Mask a batch at several noise levels, once at each.

    Stratified levels are drawn (see `stratified_levels`), and their masks have exact counts, which leave no bias.
    Quadrature has fixed levels (see `quadrature_levels`), whose weights are part of those of the noisy batches; its
    masks are independent, for which alone the integrand is a polynomial.

    Args:
        input_ids: clean ids of prompt and answer; int64 [batch, seq].
        labels: the clean id in the answer, -100 elsewhere; int64 [batch, seq].
        example_ids, mask_token_id, seed, step: as in `draw_noise`.
        num_levels: noise levels of each row, at least 1. LLaDA 1.5 uses 8.
        levels: one of `LEVEL_CHOICES`.
        complementary: follow the noisy batches by their complements, which mask just the answer tokens that those
            left clean: twice as many batches, whose mean estimates the same bound (see `with_complements`).

    Returns:
        One noisy batch per level and pass. A row's noise depends on (seed, step, example id) and its length, and not
        on its neighbours.

    Raises:
        ValueError: if `num_levels` is below 1, or `levels` is unknown.

    Source: VRPO in LLaDA 1.5 (arXiv:2505.19223): for a fixed number of passes, many levels with one mask each. There
    the levels are drawn independently of each other. Complementary masks from coupled-GRPO (arXiv:2506.20639) and ESPO
    (arXiv:2512.03759); quadrature from GDPO (arXiv:2510.08554).
    """
    if levels not in LEVEL_CHOICES:
        raise ValueError(f"`levels` must be one of {', '.join(LEVEL_CHOICES)}, got {levels!r}; leave it out.")
    is_drawn = levels == "stratified"
    if is_drawn:
        noise_levels = stratified_levels(example_ids, num_levels, seed, step)
    else:
        nodes, node_weights = quadrature_levels(num_levels)
        noise_levels = nodes.float()[:, None].expand(-1, len(input_ids))
    noise_levels = noise_levels.flatten().to(input_ids.device)
    kind: dict[str, Any] = {"exact_count": is_drawn, "eps": 0.0, "complementary": complementary}
    noisy = draw_noise(input_ids, labels, example_ids, noise_levels, mask_token_id, seed, step, **kind)
    num_passes = num_levels * (2 if complementary else 1)
    if not is_drawn:
        # The estimate is a plain mean over the passes. A complement of level t has level 1 - t, whose node weighs as
        # much.
        factors = (node_weights * num_levels).float().repeat(num_passes // num_levels).to(input_ids.device)
        noisy = noisy._replace(weights=noisy.weights * factors.repeat_interleave(len(input_ids)))
    return [NoisyBatch(*level) for level in zip(*(values.chunk(num_passes) for values in noisy))]


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
    return elbo_token_terms(logits_at, noises, labels).sum(-1)


def elbo_token_terms(logits_at: LogitsAt, noises: list[NoisyBatch], labels: Tensor) -> Tensor:
    """The bound of each row as a sum over its tokens.

    Args:
        logits_at, noises, labels: as in `elbo_log_probability`, and its note on memory holds here too.

    Returns:
        The mean over the noisy batches of weight times log p(token | noisy row) where a token is masked, in nats, with
        gradient; float32 [batch, seq]; 0 outside the answer. Rows add up to the bound.
    """
    terms = []
    for noisy in noises:
        predictions = score_masked(logits_at(noisy.input_ids, noisy.is_masked), labels, noisy.is_masked)
        terms.append(token_terms(predictions.token_losses, noisy))
    return torch.stack(terms).mean(0)


def token_terms(token_losses: Tensor, noisy: NoisyBatch) -> Tensor:
    """The terms of one noisy batch, each at its token's place.

    Args:
        token_losses: -log p(token | noisy row) at the masked positions, rows one after the other; [num_masked].
        noisy: the noisy batch.

    Returns:
        Weight times log-probability where a token is masked, 0 elsewhere; float32 [batch, seq].
    """
    rows = noisy.is_masked.nonzero()[:, 0]
    weighted = -token_losses * noisy.weights.to(token_losses.dtype)[rows]
    return weighted.new_zeros(noisy.is_masked.shape).masked_scatter(noisy.is_masked, weighted)


def _check_num_levels(num_levels: int) -> None:
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1, got {num_levels}; LLaDA 1.5 uses 8.")
