"""Laws of candidates, confidence measures and commit counts; expected values by hand."""

import math

import pytest
import torch

from modeling_llada.unmasking_llada import (
    COMMIT_RULES,
    FALLBACKS,
    CommitRule,
    EntropyBound,
    Factor,
    Frechet,
    Proposer,
    Threshold,
    entropy,
    guide,
    least_confident,
    low_confidence,
    margin,
    most_confident,
    prediction_entropy,
    sample,
    schedule_share,
)

# Probabilities 1/2, 1/4, 1/8, 1/8 over tokens 0, 1, 2 and the mask 3.
LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
MASK = 3


def test_guidance_exaggerates_what_the_prompt_adds() -> None:
    conditional, unconditional = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    assert guide(conditional, unconditional, 0.5).tolist() == [[4.0, 0.5]]
    assert torch.equal(guide(conditional, unconditional, 0.0), conditional)


def test_low_confidence_is_the_candidates_probability_with_the_mask_token_counted() -> None:
    assert low_confidence(LOGITS, torch.tensor([1]), MASK).item() == pytest.approx(0.25)


def test_margin_is_the_gap_between_the_two_best_proposable_tokens() -> None:
    assert margin(LOGITS, torch.tensor([0]), MASK).item() == pytest.approx((0.5 - 0.25) / 0.875)
    prefers_mask = torch.tensor([[0.2, 0.1, 0.1, 0.6]]).log()
    assert margin(prefers_mask, torch.tensor([0]), MASK).item() == pytest.approx(0.25)


def test_entropy_confidence_is_one_minus_the_share_of_the_largest_entropy() -> None:
    uniform = torch.zeros(1, 4)
    assert entropy(uniform, torch.tensor([0]), MASK).item() == pytest.approx(0.0, abs=1e-6)
    assert prediction_entropy(uniform, MASK).item() == pytest.approx(math.log(3))
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf, 2.0]])
    assert entropy(certain, torch.tensor([0]), MASK).item() == pytest.approx(1.0)


def test_the_greedy_candidate_is_the_most_probable_token_that_is_not_the_mask() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2, 9.0]])
    candidates, confidence, _ = Proposer(mask_token_id=MASK)(logits.clone())
    assert candidates.tolist() == [1]
    assert confidence.item() == pytest.approx(logits.softmax(-1)[0, 1].item())


def test_suppressed_tokens_are_never_proposed_and_hold_no_probability() -> None:
    candidates, confidence, _ = Proposer(mask_token_id=MASK, suppressed_ids=(0,))(LOGITS.clone())
    assert candidates.tolist() == [1]
    assert confidence.item() == pytest.approx(0.25 / 0.5)


def test_last_tokens_are_proposed_with_no_confidence() -> None:
    candidates, confidence, _ = Proposer(mask_token_id=MASK, last_ids=(0, 2))(LOGITS.clone())
    assert candidates.tolist() == [0]
    assert confidence.tolist() == [0.0]


def test_random_remasking_takes_its_draws_as_confidence() -> None:
    candidates, confidence, _ = Proposer(mask_token_id=MASK, measure="random")(
        LOGITS.clone(), None, torch.tensor([0.7])
    )
    assert candidates.tolist() == [0]
    assert confidence.tolist() == pytest.approx([0.7])


def test_confidence_at_temperature_is_that_of_the_untempered_distribution() -> None:
    proposer = Proposer(mask_token_id=MASK, warp=lambda ids, logits: logits / 0.5)
    candidates, confidence, _ = proposer(LOGITS.clone(), torch.tensor([0.0]))
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
    for num_masked, shares in ((7, [2, 2, 2, 1]), (3, [1, 1, 1, 0]), (0, [0, 0, 0, 0]), (8, [2, 2, 2, 2])):
        left, given = torch.tensor([num_masked]), []
        for steps_left in (4, 3, 2, 1):
            share = schedule_share(left, steps_left)
            left = left - share
            given.append(share.item())
        assert given == shares


def test_the_least_confident_share_of_the_committed_tokens_is_masked_again() -> None:
    confidence = torch.tensor([[0.9, torch.inf, 0.2, 0.5, 0.3], [torch.inf] * 5])
    assert least_confident(confidence, 0.5).tolist() == [[False, False, True, False, True], [False] * 5]
    assert not least_confident(confidence, 0.2).any()


def test_the_most_confident_positions_are_committed_and_the_earlier_wins_a_tie() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.9, -torch.inf], [0.5, 0.5, 0.5, 0.5], [0.3, 0.2, 0.1, 0.0]])
    committed = most_confident(confidence, torch.tensor([1, 3, 0]))
    assert committed.tolist() == [[False, True, False, False], [True, True, True, False], [False] * 4]


NOTHING = -torch.inf


def commit(rule: CommitRule, confidence: list[float], at_least: int = 1, entropies: list[float] | None = None) -> list:
    rows = None if entropies is None else torch.tensor([entropies])
    return rule(torch.tensor([confidence]), torch.tensor([at_least]), rows)[0].long().tolist()


def test_the_plain_schedule_commits_exactly_its_share() -> None:
    assert commit(CommitRule(), [0.2, 0.9, NOTHING, 0.5], 0) == [0, 0, 0, 0]
    assert commit(CommitRule(), [0.2, 0.9, NOTHING, 0.5], 2) == [0, 1, 0, 1]
    assert commit(CommitRule(), [0.2, 0.9, NOTHING, 0.5], 4) == [1, 1, 0, 1]


def test_threshold_commits_every_confidence_that_reaches_it() -> None:
    assert commit(Threshold(0.9), [0.95, 0.9, 0.89, NOTHING]) == [1, 1, 0, 0]
    assert commit(Threshold(0.9), [0.1, 0.2, 0.2, NOTHING]) == [0, 1, 0, 0]
    assert commit(Threshold(0.5), [0.5, 0.5, 0.5, 0.5]) == [1, 1, 1, 1]
    assert commit(Threshold(0.9), [NOTHING, NOTHING]) == [0, 0]


def test_factor_commits_the_largest_n_that_its_inequality_allows() -> None:
    # (n + 1) (1 - c): 2 * 0.1 = 0.2, 3 * 0.2 = 0.6, 4 * 0.3 = 1.2.
    assert commit(Factor(1.0), [0.7, 0.9, 0.8]) == [0, 1, 1]
    assert commit(Factor(1.3), [0.7, 0.9, 0.8]) == [1, 1, 1]
    assert commit(Factor(0.1), [0.7, 0.9, 0.8]) == [0, 1, 0]
    # Equal confidences: 2 * 0.2, 3 * 0.2, 4 * 0.2.
    assert commit(Factor(0.7), [0.8, 0.8, 0.8]) == [1, 1, 0]


def test_frechet_commits_the_largest_n_that_its_inequality_allows() -> None:
    # c1 - 0 - (1 - c1) = 0.8; 0.9 + 0.8 - 1 - 0.2 = 0.5; 2.4 - 2 - 0.3 = 0.1.
    assert commit(Frechet(0.25), [0.7, 0.9, 0.8]) == [0, 1, 1]
    assert commit(Frechet(0.05), [0.7, 0.9, 0.8]) == [1, 1, 1]
    assert commit(Frechet(0.6), [0.7, 0.9, 0.8]) == [0, 1, 0]
    assert commit(Frechet(0.9), [0.1, 0.2]) == [0, 1]
    assert commit(Frechet(0.0), [1.0, 1.0, NOTHING, 1.0]) == [1, 1, 0, 1]


def test_entropy_bound_commits_the_largest_n_whose_entropies_without_the_largest_stay_below_it() -> None:
    # In the order of confidence: entropies 0.1, 0.2, 0.5; sums without the largest: 0, 0.1, 0.3.
    assert commit(EntropyBound(0.11), [0.9, 0.5, 0.8], 1, [0.1, 0.5, 0.2]) == [1, 0, 1]
    assert commit(EntropyBound(0.31), [0.9, 0.5, 0.8], 1, [0.1, 0.5, 0.2]) == [1, 1, 1]
    assert commit(EntropyBound(0.0), [0.9, 0.5, 0.8], 1, [0.1, 0.5, 0.2]) == [1, 0, 0]
    assert commit(EntropyBound(9.0), [NOTHING, 0.5], 1, [0.0, 0.3]) == [0, 1]


def test_the_leftmost_fallback_commits_what_the_rule_allows_and_else_the_first_masked_token() -> None:
    rule = Threshold(0.9, "leftmost")
    assert commit(rule, [NOTHING, 0.1, 0.95, 0.8]) == [0, 0, 1, 0]
    assert commit(rule, [NOTHING, 0.1, 0.2, 0.8]) == [0, 1, 0, 0]
    assert commit(rule, [NOTHING, 0.1, 0.95, 0.8], 2) == [0, 1, 1, 0]
    assert commit(rule, [NOTHING, NOTHING]) == [0, 0]
    assert commit(rule, [0.1, 0.2], 0) == [0, 0]
    plain = CommitRule(fallback="leftmost")
    assert commit(plain, [NOTHING, 0.1, 0.95, 0.8], 2) == [0, 1, 1, 0]


@pytest.mark.parametrize("name", COMMIT_RULES)
def test_both_fallbacks_commit_equally_many_and_all_that_the_rule_allows(name) -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, 6, generator=generator)
    confidence[torch.rand(200, 6, generator=generator) < 0.4] = NOTHING
    entropies = torch.rand(200, 6, generator=generator)
    for at_least in (0, 1, 3):
        left, confident = (COMMIT_RULES[name](0.5, way)(confidence, at_least, entropies) for way in FALLBACKS[::-1])
        allowed = COMMIT_RULES[name](0.5)(confidence, 0, entropies)
        assert torch.equal(left.sum(-1), confident.sum(-1))
        assert (left | ~allowed).all() and not (left & ~confidence.isfinite()).any()


@pytest.mark.parametrize("name", COMMIT_RULES)
def test_every_rule_commits_at_least_the_share_and_never_more_than_is_masked(name) -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, 6, generator=generator)
    confidence[torch.rand(200, 6, generator=generator) < 0.4] = NOTHING
    at_least = torch.randint(1, 5, (200,), generator=generator)
    entropies = torch.rand(200, 6, generator=generator)
    num_masked = confidence.isfinite().sum(-1)
    committed = COMMIT_RULES[name](0.5)(confidence, at_least, entropies)
    assert (committed & ~confidence.isfinite()).sum() == 0
    assert (committed.sum(-1) >= torch.minimum(at_least, num_masked)).all()
    lowest_in = torch.where(committed, confidence, torch.inf).min(-1).values
    highest_out = torch.where(committed, NOTHING, confidence).max(-1).values
    assert (lowest_in >= highest_out).all()
