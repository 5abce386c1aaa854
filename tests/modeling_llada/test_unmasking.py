"""Laws of candidates, confidence measures and commit counts; expected values by hand."""

import math

import pytest
import torch

from modeling_llada.unmasking_llada import (
    Proposer,
    entropy,
    low_confidence,
    margin,
    most_confident,
    sample,
    tokens_per_step,
)

# Probabilities 1/2, 1/4, 1/8, 1/8 over tokens 0, 1, 2 and the mask 3.
LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
MASK = 3


def test_low_confidence_is_the_candidates_probability_with_the_mask_token_counted() -> None:
    assert low_confidence(LOGITS, torch.tensor([1]), MASK).item() == pytest.approx(0.25)


def test_margin_is_the_gap_between_the_two_best_proposable_tokens() -> None:
    assert margin(LOGITS, torch.tensor([0]), MASK).item() == pytest.approx((0.5 - 0.25) / 0.875)
    prefers_mask = torch.tensor([[0.2, 0.1, 0.1, 0.6]]).log()
    assert margin(prefers_mask, torch.tensor([0]), MASK).item() == pytest.approx(0.25)


def test_entropy_confidence_is_the_negative_entropy_of_the_proposable_tokens() -> None:
    uniform = torch.zeros(1, 4)
    assert entropy(uniform, torch.tensor([0]), MASK).item() == pytest.approx(-math.log(3))
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf, 2.0]])
    assert entropy(certain, torch.tensor([0]), MASK).item() == pytest.approx(0.0)


def test_the_greedy_candidate_is_the_most_probable_token_that_is_not_the_mask() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2, 9.0]])
    candidates, confidence = Proposer(mask_token_id=MASK)(logits.clone())
    assert candidates.tolist() == [1]
    assert confidence.item() == pytest.approx(logits.softmax(-1)[0, 1].item())


def test_suppressed_tokens_are_never_proposed_and_hold_no_probability() -> None:
    candidates, confidence = Proposer(mask_token_id=MASK, suppressed_ids=(0,))(LOGITS.clone())
    assert candidates.tolist() == [1]
    assert confidence.item() == pytest.approx(0.25 / 0.5)


def test_last_tokens_are_proposed_with_no_confidence() -> None:
    candidates, confidence = Proposer(mask_token_id=MASK, last_ids=(0, 2))(LOGITS.clone())
    assert candidates.tolist() == [0]
    assert confidence.tolist() == [0.0]


def test_random_remasking_takes_its_draws_as_confidence() -> None:
    candidates, confidence = Proposer(mask_token_id=MASK, measure="random")(LOGITS.clone(), None, torch.tensor([0.7]))
    assert candidates.tolist() == [0]
    assert confidence.tolist() == pytest.approx([0.7])


def test_confidence_at_temperature_is_that_of_the_untempered_distribution() -> None:
    proposer = Proposer(mask_token_id=MASK, warp=lambda ids, logits: logits / 0.5)
    candidates, confidence = proposer(LOGITS.clone(), torch.tensor([0.0]))
    assert candidates.tolist() == [0]
    assert confidence.item() == pytest.approx(0.5)


def test_sampling_inverts_the_cumulative_distribution() -> None:
    draws = torch.tensor([0.0, 0.499, 0.5, 0.749, 0.75, 0.874, 0.876, 1 - 2**-24])
    logits = LOGITS.expand(len(draws), -1)
    assert sample(logits, draws).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    assert sample(logits, torch.tensor([0.0, 0.49, 0.51, 1 - 2**-24])).tolist() == [1, 1, 3, 3]


def test_draws_follow_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 7, generator=generator)
    num_draws = 20_000
    drawn = sample(logits.expand(num_draws, -1), torch.rand(num_draws, generator=generator))
    expected = logits.softmax(-1)[0] * num_draws
    chi_square = ((torch.bincount(drawn, minlength=7) - expected) ** 2 / expected).sum()
    # The 99.9 % quantile with 6 degrees of freedom.
    assert chi_square < 22.5


def test_steps_share_the_masks_larger_shares_first() -> None:
    counts = tokens_per_step(torch.tensor([7, 3, 0, 8]), 4)
    assert counts.tolist() == [[2, 2, 2, 1], [1, 1, 1, 0], [0, 0, 0, 0], [2, 2, 2, 2]]


def test_the_most_confident_positions_are_committed_and_the_earlier_wins_a_tie() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.9, -torch.inf], [0.5, 0.5, 0.5, 0.5], [0.3, 0.2, 0.1, 0.0]])
    committed = most_confident(confidence, torch.tensor([1, 3, 0]))
    assert committed.tolist() == [[False, True, False, False], [True, True, True, False], [False] * 4]
