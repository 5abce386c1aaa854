"""Laws of the forward process; exact ones by enumeration over a tiny vocabulary."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from llada_core.diffusion import (
    add_noise,
    draw_uniform,
    low_discrepancy_noise_levels,
    mask_exact_count,
    mask_independently,
    masked_counts,
    masking_probability,
    row_generators,
    row_seed,
    uniform_noise_levels,
    weighted_cross_entropy,
)
from modeling_llada import LLaDAModelLM

MASK = 3


@torch.no_grad()
def subset_losses(model: LLaDAModelLM, text: Tensor) -> dict[tuple[int, ...], Tensor]:
    """Cross-entropy of every token of every masked subset; float64, in the order of the subset."""
    losses = {}
    for size in range(1, len(text) + 1):
        for subset in itertools.combinations(range(len(text)), size):
            noisy = text.clone()
            noisy[list(subset)] = MASK
            log_probs = model(noisy[None]).logits[0].double().log_softmax(-1)
            losses[subset] = -log_probs[list(subset), text[list(subset)]]
    return losses


def equation_3(losses: dict, length: int) -> float:
    """Integral over t of (1/t) times the expected sum of cross-entropies: Beta integrals, exactly."""
    total = 0.0
    for subset, loss in losses.items():
        masked = len(subset)
        # The integral of t^(masked - 1) (1 - t)^(length - masked) over [0, 1].
        weight = math.gamma(masked) * math.gamma(length - masked + 1) / math.gamma(length + 1)
        total += weight * loss.sum().item()
    return total


def equation_6(losses: dict, length: int) -> float:
    """Mean over l of (L/l) times the mean over subsets of size l of the summed cross-entropies."""
    total = 0.0
    for subset, loss in losses.items():
        total += length / len(subset) / length / math.comb(length, len(subset)) * loss.sum().item()
    return total


def any_order(losses: dict, length: int) -> float:
    """Mean over all orders of the autoregressive negative log-likelihood in that order."""
    total = 0.0
    orders = list(itertools.permutations(range(length)))
    for order in orders:
        for step, position in enumerate(order):
            subset = tuple(sorted(order[step:]))
            total += losses[subset][subset.index(position)].item()
    return total / len(orders)


@pytest.mark.parametrize("text", [[0], [2, 1], [0, 1, 2, 1], [1, 1, 0, 2, 2]], ids=str)
def test_equation_3_equation_6_and_the_any_order_average_are_one_number(toy_model, text) -> None:
    losses = subset_losses(toy_model, torch.tensor(text))
    expected = any_order(losses, len(text))
    assert equation_3(losses, len(text)) == pytest.approx(expected, rel=1e-10)
    assert equation_6(losses, len(text)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("exact_count", [True, False])
def test_the_weighted_loss_of_noisy_batches_estimates_that_number_without_bias(toy_model, exact_count) -> None:
    text, num_draws = torch.tensor([0, 1, 2, 1]), 20_000
    losses = subset_losses(toy_model, text)
    generator = torch.Generator().manual_seed(0)
    levels = uniform_noise_levels(draw_uniform((num_draws,), generator))
    uniforms = draw_uniform((num_draws, 4), generator)
    ids = text.expand(num_draws, -1)
    noisy = add_noise(ids, torch.ones_like(ids, dtype=torch.bool), MASK, levels, uniforms, exact_count, eps=0.0)
    token_losses = [losses[tuple(row.nonzero()[:, 0].tolist())] for row in noisy.is_masked if row.any()]
    estimates = weighted_cross_entropy(torch.cat(token_losses), noisy.is_masked, noisy.weights)
    error = estimates.std() / num_draws**0.5
    assert abs(estimates.mean() - any_order(losses, 4)) < 4 * error


def test_exact_counts_estimate_with_less_variance_than_independent_masks(toy_model) -> None:
    text, num_draws = torch.tensor([0, 1, 2, 1, 0]), 4000
    losses = subset_losses(toy_model, text)
    ids = text.expand(num_draws, -1)
    variances = []
    for exact_count in (True, False):
        generator = torch.Generator().manual_seed(1)
        levels = uniform_noise_levels(draw_uniform((num_draws,), generator))
        uniforms = draw_uniform((num_draws, 5), generator)
        noisy = add_noise(ids, torch.ones_like(ids, dtype=torch.bool), MASK, levels, uniforms, exact_count)
        token_losses = [losses[tuple(row.nonzero()[:, 0].tolist())] for row in noisy.is_masked if row.any()]
        variances.append(weighted_cross_entropy(torch.cat(token_losses), noisy.is_masked, noisy.weights).var())
    assert variances[0] < 0.8 * variances[1]


def test_masking_equals_the_recorded_masks(reference) -> None:
    _, recorded = reference
    case = recorded["loss"]["pretrain"]
    probability = masking_probability(case["t"], case["eps"])
    assert torch.allclose(probability[:, None].expand_as(case["p_mask"]), case["p_mask"])
    everything = torch.ones_like(case["input_ids"], dtype=torch.bool)
    assert torch.equal(mask_independently(everything, probability, case["u"]), case["masked_indices"])
    noisy = add_noise(case["input_ids"], everything, 488, case["t"], case["u"], eps=case["eps"])
    assert torch.equal(noisy.input_ids, case["noisy"])
    assert torch.allclose(noisy.weights, 1 / probability)


def test_nothing_but_maskable_positions_is_ever_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    is_maskable = draw_uniform((64, 12), generator) < 0.4
    ids = torch.zeros(64, 12, dtype=torch.long)
    for exact_count in (True, False):
        noisy = add_noise(ids, is_maskable, MASK, torch.ones(64), draw_uniform((64, 12), generator), exact_count)
        assert torch.equal(noisy.is_masked, is_maskable)
        assert torch.equal(noisy.input_ids == MASK, noisy.is_masked)


def test_exact_counts_mask_exactly_that_many_and_every_subset_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    num_draws = 6000
    is_maskable = torch.tensor([True, False, True, True, True]).expand(num_draws, -1)
    counts = torch.full((num_draws,), 2)
    is_masked = mask_exact_count(is_maskable, counts, draw_uniform((num_draws, 5), generator))
    assert (is_masked.sum(-1) == 2).all()
    subsets = (is_masked * 2 ** torch.arange(5)).sum(-1).unique(return_counts=True)[1]
    assert len(subsets) == 6
    assert ((subsets - 1000.0) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees of freedom, 99.9 %


@pytest.mark.parametrize("length", range(1, 9))
def test_counts_are_uniform_from_one_to_the_length(length) -> None:
    levels = (torch.arange(840) + 1) / 840
    counts = masked_counts(levels, torch.full((840,), length))
    assert torch.bincount(counts, minlength=length + 1).tolist()[0] == 0
    assert (torch.bincount(counts)[1:] - 840 / length).abs().max() <= 1


def test_nothing_maskable_masks_nothing() -> None:
    ids = torch.zeros(1, 3, dtype=torch.long)
    noisy = add_noise(ids, torch.zeros(1, 3, dtype=torch.bool), MASK, torch.ones(1), torch.zeros(1, 3), True)
    assert not noisy.is_masked.any()
    assert noisy.weights.isfinite().all()


def test_noise_levels_lie_in_zero_to_one_and_low_discrepancy_ones_cover_it_evenly() -> None:
    assert uniform_noise_levels(torch.tensor([0.0, 0.25])).tolist() == [1.0, 0.75]
    levels = low_discrepancy_noise_levels(torch.arange(1000), offset=0.3)
    assert levels.min() > 0 and levels.max() <= 1
    assert (levels.sort().values - (torch.arange(1000) + 0.5) / 1000).abs().max() < 0.003
    assert (low_discrepancy_noise_levels(torch.tensor([0, 10**12])) > 0).all()


def test_a_rows_draws_depend_on_seed_step_and_example_alone() -> None:
    one = draw_uniform((3, 8), row_generators(1, 5, torch.tensor([7, 8, 9])))
    other = draw_uniform((2, 8), row_generators(1, 5, torch.tensor([9, 7])))
    assert torch.equal(one[2], other[0]) and torch.equal(one[0], other[1])
    seeds = {row_seed(seed, step, example) for seed in range(6) for step in range(6) for example in range(6)}
    assert len(seeds) == 216
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_list_of_generators_must_match_the_rows() -> None:
    with pytest.raises(ValueError, match=r"one per row \(2\), got a list of 1"):
        draw_uniform((2, 3), [torch.Generator()])


def test_weighted_cross_entropy_sums_each_rows_losses_times_its_weight() -> None:
    is_masked = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    result = weighted_cross_entropy(torch.tensor([1.0, 2.0, 4.0]), is_masked, torch.tensor([2.0, 9.0, 0.5]))
    assert result.tolist() == [6.0, 0.0, 2.0]
