"""Laws of the noise of likelihoods: no bias, counts spread evenly, and what standard errors are worth.

The predictor is a table of random probabilities, one for each token and each set of masked tokens: the laws of bias
hold for any predictor.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from llada_evaluation.likelihood import (
    LikelihoodOptions,
    estimate_log_likelihoods,
    mask_copies,
    successive_variance,
)


def random_table(num_tokens):
    """log p(token i | the tokens that are not masked), masks as bits; float64 [2^L, L]."""
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.rand(2**num_tokens, num_tokens, generator=generator, dtype=torch.float64).log()


def log_probabilities(table, is_masked):
    """Log-probabilities summed over the masked tokens of each row."""
    bits = (is_masked.long() << torch.arange(is_masked.shape[1])).sum(-1)
    return (table[bits] * is_masked).sum(-1)


def average_over_orders(table):
    """The autoregressive log-likelihood, averaged over all orders of the tokens."""
    num_tokens = table.shape[1]
    orders = torch.tensor(list(itertools.permutations(range(num_tokens))))
    bits, total = torch.full((len(orders),), 2**num_tokens - 1), 0.0
    for token in orders.T:
        total = total + table[bits, token]
        bits = bits - (1 << token)
    return total.mean().item()


@pytest.mark.parametrize("num_tokens", range(1, 9))
def test_eq_6_is_the_average_over_all_orders(num_tokens):
    table = random_table(num_tokens)
    orders = torch.tensor(list(itertools.permutations(range(num_tokens)))) / num_tokens
    # As many samples as counts times orders: every mask is met as often as chance would have it.
    draws = torch.cat([torch.full((len(orders) * num_tokens, 1), 0.5), orders.repeat(num_tokens, 1)], dim=1)
    noisy = mask_copies(draws, "exact_count")
    assert torch.equal(noisy.is_masked.sum(-1).bincount()[1:], torch.full((num_tokens,), len(orders)))
    mean = (log_probabilities(table, noisy.is_masked) * noisy.weights).mean().item()
    assert mean == pytest.approx(average_over_orders(table), rel=1e-6)


@pytest.mark.parametrize("num_tokens", range(1, 9))
def test_eq_3_is_the_average_over_all_orders(num_tokens):
    table, mean = random_table(num_tokens), 0.0
    # These nodes integrate the polynomials t^l (1 - t)^(L - l) / t without error.
    for node, node_weight in zip(*np.polynomial.legendre.leggauss(8)):
        t = float(node + 1) / 2
        masks = torch.tensor(list(itertools.product([0.0, 1.0 - 1e-9], repeat=num_tokens)), dtype=torch.float64)
        levels = torch.full((len(masks), 1), 1 - t, dtype=torch.float64)
        noisy = mask_copies(torch.cat([levels, masks], dim=1), "independent")
        counts = noisy.is_masked.double().sum(-1)
        assert torch.equal(noisy.is_masked, masks == 0)
        chances = t**counts * (1 - t) ** (num_tokens - counts) * node_weight / 2
        mean += (chances * log_probabilities(table, noisy.is_masked) * noisy.weights).sum().item()
    assert mean == pytest.approx(average_over_orders(table), rel=1e-9)


@pytest.mark.parametrize("num_tokens", range(1, 9))
@pytest.mark.parametrize("num_samples", [1, 2, 3, 5, 8, 16])
def test_every_count_has_the_same_chance_over_the_samples(num_samples, num_tokens):
    # The count of a sample changes where its level passes a multiple of 1/L: the middles between are a fair sum.
    middles = (torch.arange(num_tokens) + 0.5) / num_tokens
    counts = [
        mask_copies(torch.full((num_samples, 1 + num_tokens), middle), "exact_count").is_masked.sum(-1)
        for middle in middles.tolist()
    ]
    assert torch.equal(torch.cat(counts).bincount(minlength=num_tokens + 1)[1:], torch.full((num_tokens,), num_samples))


@pytest.mark.parametrize("num_tokens", range(1, 9))
def test_the_counts_of_one_draw_are_spread_evenly(num_tokens):
    generator = torch.Generator().manual_seed(0)
    for num_samples in (3 * num_tokens, 3 * num_tokens + 1):
        noisy = mask_copies(torch.rand(num_samples, 1 + num_tokens, generator=generator), "exact_count")
        found = noisy.is_masked.sum(-1).bincount(minlength=num_tokens + 1)[1:]
        # Each count has 3 samples of its own; a part of (0, 1] that lies across two counts may go to either.
        assert (found - num_samples / num_tokens).abs().max() < (1 if num_samples % num_tokens == 0 else 2)
        assert torch.allclose(noisy.weights * noisy.is_masked.sum(-1), torch.tensor(float(num_tokens)))


def test_independent_masks_may_be_empty_and_then_count_as_zero(tiny_model):
    draws = torch.tensor([[0.25, 0.9, 0.1], [0.25, 0.8, 0.8]])
    noisy = mask_copies(draws, "independent")
    assert noisy.is_masked.tolist() == [[False, True], [False, False]]
    assert noisy.weights.tolist() == pytest.approx([1 / 0.75] * 2)
    options = LikelihoodOptions(num_samples=1, estimator="independent")
    values = [
        estimate_log_likelihoods(tiny_model, [([seed], [7, 8])], options)[0].log_likelihood for seed in range(1, 40)
    ]
    # Two tokens at a uniform level stay both clean once in three draws.
    assert 5 < values.count(0.0) < 21


def test_the_successive_variance_by_hand():
    # (1 + 4 + 16) / 2, and once more 1 / 2 and 16 / 2.
    assert successive_variance(torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)) == 19.0
    assert successive_variance(torch.tensor([1.0], dtype=torch.float64)) == math.inf


def many_estimates(model, pair, num_seeds, **options):
    """Estimates of one pair with different noise: values and standard errors."""
    estimates = [
        estimate_log_likelihoods(model, [pair], LikelihoodOptions(seed=seed, **options))[0] for seed in range(num_seeds)
    ]
    return np.array([estimate[:2] for estimate in estimates]).T


@pytest.mark.parametrize("num_samples", [1, 8])
def test_eq_6_has_less_variance_than_eq_3_with_as_many_passes(tiny_model, num_samples):
    pair = ([344, 352, 271], [414, 65, 144, 133, 108, 90, 12, 77])
    exact, _ = many_estimates(tiny_model, pair, 100, num_samples=num_samples)
    independent, _ = many_estimates(tiny_model, pair, 100, num_samples=num_samples, estimator="independent")
    assert exact.var() < independent.var() / 4


@pytest.mark.parametrize("num_samples", [8, 32])
def test_standard_errors_say_how_far_estimates_scatter(tiny_model, num_samples):
    pair = ([344, 352, 271], [414, 65, 144, 133, 108, 90, 12, 77])
    values, errors = many_estimates(tiny_model, pair, 100, num_samples=num_samples)
    # 100 draws know their scatter to 7 %.
    assert 0.85 < np.sqrt((errors**2).mean()) / values.std() < 1.3


def test_strata_take_out_the_variance_between_levels_and_standard_errors_know_it():
    # A token costs 1 nat for each token that is masked with it, so that a sample's value is 8 times its count.
    generator = torch.Generator().manual_seed(0)

    def values(num_samples):
        noisy = mask_copies(torch.rand(num_samples, 9, generator=generator), "exact_count")
        return (noisy.is_masked.sum(-1) ** 2 * noisy.weights).double()

    stratified = torch.stack([values(16) for _ in range(400)])
    # One sample has no strata: the variance of 8 l, l uniform on 1..8, is 64 * 63 / 12 = 336.
    assert torch.cat([values(1) for _ in range(400)]).var().item() == pytest.approx(336, rel=0.15)
    scatter, claimed = stratified.sum(-1).var(), np.mean([successive_variance(draw) for draw in stratified])
    assert scatter <= claimed < 16 * 336 / 20
