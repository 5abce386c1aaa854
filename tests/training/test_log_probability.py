"""Laws of the log-probability for preference and reinforcement learning: unbiased, and free of noise where shared."""

import copy

import pytest
import torch
import torch.nn.functional as F

from llada_training import draw_noises, elbo_log_probability

MASK = 488


def logits_of(model, attention_mask=None):
    return lambda noisy_ids, is_masked: model(noisy_ids, attention_mask, logits_positions=is_masked).logits


def questions(num_rows):
    """Random prompts of 6 tokens with answers of 10, and their numbers."""
    ids = torch.randint(0, 480, (num_rows, 16), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[:, :6] = -100
    return ids, labels, torch.arange(num_rows)


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
