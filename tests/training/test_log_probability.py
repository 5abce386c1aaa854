"""Laws of the log-probability for preference and reinforcement learning: unbiased, and free of noise where shared."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from llada_training import (
    draw_noises,
    elbo_log_probability,
    elbo_token_terms,
    quadrature_levels,
    score_masked,
    stratified_levels,
)

MASK = 488


def logits_of(model, attention_mask=None):
    return lambda noisy_ids, is_masked: model(noisy_ids, attention_mask, logits_positions=is_masked).logits


def questions(num_rows):
    """Random prompts of 6 tokens with answers of 10, and their numbers."""
    ids = torch.randint(0, 480, (num_rows, 16), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[:, :6] = -100
    return ids, labels, torch.arange(num_rows)


def bound_of_each_mask(model, ids, labels):
    """Every set of masked answer tokens of one row, bool [sets, seq], and its sum of log p(token | noisy row)."""
    answer = (labels[0] != -100).nonzero()[:, 0]
    is_chosen = torch.tensor(list(itertools.product([False, True], repeat=len(answer)))[1:])
    is_masked = torch.zeros(len(is_chosen), ids.shape[1], dtype=torch.bool)
    is_masked[:, answer] = is_chosen
    clean = ids.expand(len(is_masked), -1)
    with torch.no_grad():
        logits = logits_of(model)(clean.masked_fill(is_masked, MASK), is_masked)
    losses = score_masked(logits, clean, is_masked).token_losses
    return is_masked, -torch.stack([part.sum() for part in losses.split(is_masked.sum(-1).tolist())]).double()


def exact_bound(model, ids, labels):
    """The bound of Eq. 6 by enumeration: the mean over counts l of L / l times the mean over the masks of l tokens."""
    is_masked, sums = bound_of_each_mask(model, ids, labels)
    counts, num_answer = is_masked.sum(-1), int((labels != -100).sum())
    return torch.stack([num_answer / count * sums[counts == count].mean() for count in range(1, num_answer + 1)]).mean()


@pytest.fixture
def policy(make_model):
    return make_model()


@pytest.fixture
def trained(policy):
    """The policy, a few updates later."""
    model, generator = copy.deepcopy(policy), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def dpo_loss(policy, reference, noises, reference_noises, labels, beta=0.1):
    """The loss of DPO; the first half of the rows is preferred to the second."""
    with torch.no_grad():
        reference_values = elbo_log_probability(logits_of(reference), reference_noises, labels)
    log_ratio = elbo_log_probability(logits_of(policy), noises, labels) - reference_values
    chosen, rejected = log_ratio.chunk(2)
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


@pytest.mark.parametrize("num_levels", [1, 8])
def test_the_estimate_is_unbiased_for_the_recorded_exact_bound(reference, num_levels):
    model, recordings = reference
    recorded = recordings["loglik"]
    num_rows, num_prompt = 512, len(recorded["prompt"])
    ids = torch.cat([recorded["prompt"], recorded["answer"]]).expand(num_rows, -1)
    labels = ids.clone()
    labels[:, :num_prompt] = -100
    noises = draw_noises(ids, labels, torch.arange(num_rows), recorded["mask_id"], num_levels, seed=0, step=0)
    with torch.no_grad():
        values = elbo_log_probability(logits_of(model), noises, labels)
    error = values.std() / num_rows**0.5
    assert values.shape == (num_rows,) and values.dtype == torch.float32
    assert abs(values.mean() - recorded["cfg0.0"]["exact_elbo"]) < 4 * error


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize(("levels", "num_levels"), [("stratified", 1), ("stratified", 3), ("quadrature", 2)])
def test_every_estimate_has_the_enumerated_bound_as_its_mean(trained, levels, num_levels, complementary):
    ids, labels, _ = questions(1)
    labels[:, :12] = -100  # an answer of 4 tokens, for which 2 nodes have no error
    num_rows = 512
    many = (ids.expand(num_rows, -1), labels.expand(num_rows, -1), torch.arange(num_rows))
    noises = draw_noises(*many, MASK, num_levels, 0, 0, levels=levels, complementary=complementary)
    assert len(noises) == num_levels * (1 + complementary)
    with torch.no_grad():
        values = elbo_log_probability(logits_of(trained), noises, many[1]).double()
    assert abs(values.mean() - exact_bound(trained, ids, labels)) < 3 * values.std() / num_rows**0.5


@pytest.mark.parametrize("num_answer", [1, 2, 5, 6])
def test_quadrature_of_k_nodes_has_no_error_for_answers_of_2k_tokens(trained, num_answer):
    ids, labels, _ = questions(1)
    labels[:, :-num_answer] = -100
    is_masked, sums = bound_of_each_mask(trained, ids, labels)
    counts = is_masked.sum(-1)
    total = sum(
        weight * (t ** (counts - 1) * (1 - t) ** (num_answer - counts) * sums).sum()
        for t, weight in zip(*quadrature_levels((num_answer + 1) // 2))
    )
    assert torch.allclose(total, exact_bound(trained, ids, labels), rtol=1e-10)


def test_quadrature_levels_are_those_of_the_tables():
    levels, weights = quadrature_levels(2)
    half = 1 / 12**0.5
    assert torch.allclose(levels, torch.tensor([0.5 - half, 0.5 + half], dtype=torch.float64))
    assert torch.allclose(weights, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("levels", ["stratified", "quadrature"])
def test_a_pass_and_its_complement_mask_every_answer_token_once(levels):
    ids, labels, example_ids = questions(32)
    noises = draw_noises(ids, labels, example_ids, MASK, 3, 0, 0, levels=levels, complementary=True)
    alone = draw_noises(ids, labels, example_ids, MASK, 3, 0, 0, levels=levels)
    for drawn, complement, single in zip(noises[:3], noises[3:], alone):
        assert torch.equal(drawn.is_masked, single.is_masked)
        assert torch.equal(drawn.is_masked ^ complement.is_masked, labels != -100)
        assert not (drawn.is_masked & complement.is_masked).any()


def test_token_terms_add_up_to_the_bound_and_lie_in_the_answer(policy):
    ids, labels, example_ids = questions(4)
    noises = draw_noises(ids, labels, example_ids, MASK, 8, 0, 0)
    terms = elbo_token_terms(logits_of(policy), noises, labels)
    assert terms.shape == ids.shape and not terms[labels == -100].any()
    assert torch.equal(terms.sum(-1), elbo_log_probability(logits_of(policy), noises, labels))


def test_levels_cover_the_unit_interval_evenly_and_each_row_has_its_own():
    ids, labels, example_ids = questions(64)
    levels = torch.stack([noisy.noise_levels for noisy in draw_noises(ids, labels, example_ids, MASK, 8, 0, 0)])
    assert (levels > 0).all() and (levels <= 1).all()
    assert torch.equal((levels * 8).ceil().sort(dim=0).values, torch.arange(1.0, 9.0)[:, None].expand(8, 64))
    assert len(levels[0].unique()) == 64


def test_masks_lie_in_the_answer_and_differ_between_levels_rows_and_steps():
    ids, labels, example_ids = questions(64)
    same_ids = ids[:1].expand(64, -1)
    noises = draw_noises(same_ids, labels, example_ids, MASK, 2, 0, 0)
    for noisy in noises:
        assert not noisy.is_masked[labels == -100].any()
        assert torch.equal(noisy.is_masked.sum(-1), (noisy.noise_levels.double() * 10).ceil().long())
        assert torch.equal(noisy.input_ids, same_ids.masked_fill(noisy.is_masked, MASK))
    is_first, is_second = noises[0].is_masked, noises[1].is_masked
    # One order of the draw for both levels would nest the masks of every row.
    assert ((is_first & ~is_second).any(-1) & (is_second & ~is_first).any(-1)).float().mean() > 0.3
    assert len({tuple(row.tolist()) for row in noises[0].is_masked}) > 40
    other = draw_noises(same_ids, labels, example_ids, MASK, 2, 0, 1)
    assert not torch.equal(other[0].is_masked, noises[0].is_masked)


def test_with_shared_noise_equal_models_differ_by_exactly_zero_and_dpo_starts_at_ln_2(policy):
    ids, labels, example_ids = questions(8)
    reference, noises = copy.deepcopy(policy), draw_noises(ids, labels, example_ids, MASK, 8, 0, 0)
    values = elbo_log_probability(logits_of(policy), noises, labels)
    assert torch.equal(values, elbo_log_probability(logits_of(reference), noises, labels))
    assert torch.equal(dpo_loss(policy, reference, noises, noises, labels), torch.tensor(2.0).log())
    others = draw_noises(ids, labels, example_ids, MASK, 8, 0, 1)
    assert dpo_loss(policy, reference, noises, others, labels, beta=1.0) > 0.8


def test_shared_noise_takes_most_of_the_variance_out_of_the_log_ratio(policy, trained):
    ids, labels, example_ids = questions(1)
    num_draws = 128
    ids, labels, example_ids = ids.expand(num_draws, -1), labels.expand(num_draws, -1), torch.arange(num_draws)
    noises, others = (draw_noises(ids, labels, example_ids, MASK, 2, 0, step) for step in (0, 1))
    with torch.no_grad():
        values = elbo_log_probability(logits_of(trained), noises, labels)
        shared = values - elbo_log_probability(logits_of(policy), noises, labels)
        unshared = values - elbo_log_probability(logits_of(policy), others, labels)
    assert shared.var() < 0.5 * unshared.var()


def test_more_levels_leave_less_variance_than_their_share(policy):
    ids, labels, _ = questions(1)
    num_draws = 256
    ids, labels = ids.expand(num_draws, -1), labels.expand(num_draws, -1)
    variances = []
    for num_levels in (1, 4):
        noises = draw_noises(ids, labels, torch.arange(num_draws), MASK, num_levels, 0, 0)
        with torch.no_grad():
            variances.append(elbo_log_probability(logits_of(policy), noises, labels).var())
    assert variances[1] < variances[0] / 4


def test_gradients_reach_the_policy_and_nothing_else(policy, trained):
    ids, labels, example_ids = questions(4)
    noises = draw_noises(ids, labels, example_ids, MASK, 2, 0, 0)
    dpo_loss(trained, policy, noises, noises, labels).backward()
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert all(parameter.grad.any() for parameter in trained.parameters())


def test_a_padded_batch_equals_its_rows_alone(policy):
    ids, labels, example_ids = questions(3)
    lengths = torch.tensor([16, 11, 13])
    attention_mask = (torch.arange(16) < lengths[:, None]).long()
    labels = labels.masked_fill(attention_mask == 0, -100)
    ids = ids.masked_fill(attention_mask == 0, 481)
    noises = draw_noises(ids, labels, example_ids, MASK, 4, 5, 2)
    together = elbo_log_probability(logits_of(policy, attention_mask), noises, labels)
    for row, length in enumerate(lengths.tolist()):
        one = (ids[[row], :length], labels[[row], :length])
        alone = draw_noises(*one, example_ids[[row]], MASK, 4, 5, 2)
        assert torch.equal(alone[3].is_masked[0], noises[3].is_masked[row, :length])
        assert torch.allclose(elbo_log_probability(logits_of(policy), alone, one[1]), together[row], rtol=1e-5)


def test_a_row_without_an_answer_has_log_probability_zero(policy):
    ids, labels, example_ids = questions(2)
    labels[1] = -100
    noises = draw_noises(ids, labels, example_ids, MASK, 2, 0, 0)
    values = elbo_log_probability(logits_of(policy), noises, labels)
    assert values[0] < 0 and values[1] == 0


def test_no_level_at_all_is_refused():
    ids, labels, example_ids = questions(1)
    with pytest.raises(ValueError, match="`num_levels` must be at least 1, got 0"):
        draw_noises(ids, labels, example_ids, MASK, 0, 0, 0)
    with pytest.raises(ValueError, match="`num_levels` must be at least 1, got 0"):
        quadrature_levels(0)
    with pytest.raises(ValueError, match="`num_levels` must be at least 1, got -1"):
        stratified_levels(example_ids, -1, 0, 0)


def test_an_unknown_choice_of_levels_is_refused():
    ids, labels, example_ids = questions(1)
    with pytest.raises(ValueError, match="`levels` must be one of stratified, quadrature, got 'gauss'"):
        draw_noises(ids, labels, example_ids, MASK, 2, 0, 0, levels="gauss")
