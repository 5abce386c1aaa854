"""Laws of likelihoods: they estimate the exact bound, and neither batches nor order matter."""

import copy
import doctest
import math

import pytest
import torch

from llada_evaluation import likelihood
from llada_evaluation.likelihood import LikelihoodOptions, estimate_log_likelihoods

MASK = 488


def random_pairs(*shapes):
    """Pairs of random ids, the lengths of context and continuation given."""
    generator = torch.Generator().manual_seed(5)
    return [
        tuple(torch.randint(0, 480, (length,), generator=generator).tolist() for length in shape) for shape in shapes
    ]


PAIRS = random_pairs((7, 6), (12, 3), (1, 9), (0, 4), (20, 1), (7, 6), (2, 2))


def estimate(model, pairs, progress=None, **options):
    return estimate_log_likelihoods(model, pairs, LikelihoodOptions(**options), progress)


@pytest.fixture
def passes(tiny_model):
    """Shapes of all inputs of `tiny_model`."""
    shapes = []

    def note(module, args, kwargs):
        shapes.append(tuple(args[0].shape))

    handle = tiny_model.register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    handle.remove()


def assert_close(estimates, others):
    for one, other in zip(estimates, others, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("estimator", ["exact_count", "independent"])
def test_an_estimate_lies_within_three_standard_errors_of_the_exact_bound(reference, estimator, cfg_scale):
    model, recordings = reference
    recorded = recordings["loglik"]
    exact = recorded[f"cfg{cfg_scale}"]["exact_elbo"]
    pair = (recorded["prompt"].tolist(), recorded["answer"].tolist())
    for seed in range(5):
        (found,) = estimate(model, [pair], num_samples=2048, estimator=estimator, cfg_scale=cfg_scale, seed=seed)
        assert abs(found.log_likelihood - exact) < 3 * found.standard_error
        assert found.num_samples == 2048
        assert found.standard_error < (0.01 if estimator == "exact_count" else 0.05) * abs(exact)


def test_one_token_takes_one_pass_and_is_exact(reference):
    model, recordings = reference
    recorded = recordings["loglik"]
    pair = (recorded["prompt"].tolist(), recorded["one_token"]["answer"].tolist())
    for estimator in ("exact_count", "independent"):
        (found,) = estimate(model, [pair], estimator=estimator, target_standard_error=0.1)
        assert found.log_likelihood == pytest.approx(recorded["one_token"]["value"], rel=1e-6)
        assert found.standard_error == 0.0 and found.num_samples == 1


def test_one_token_is_one_row_for_the_model_and_two_with_guidance(tiny_model, passes):
    estimate(tiny_model, [([1, 2, 3], [4])])
    estimate(tiny_model, [([1, 2, 3], [4])], cfg_scale=1.0)
    assert passes == [(1, 4), (2, 4)]


def test_answers_of_one_token_to_one_question_are_read_from_one_row(tiny_model, passes):
    pairs = [([1, 2, 3], [4]), ([1, 2, 3], [5]), ([6, 2, 3], [4])]
    together = estimate(tiny_model, pairs)
    assert passes == [(2, 4)]
    assert_close(together, [estimate(tiny_model, [pair])[0] for pair in pairs])


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 1.5}, {"estimator": "independent"}], ids=str)
def test_a_batch_gives_each_pair_what_it_gets_alone(tiny_model, options):
    together = estimate(tiny_model, PAIRS, num_samples=24, **options)
    assert_close(together, [estimate(tiny_model, [pair], num_samples=24, **options)[0] for pair in PAIRS])
    assert_close(together, estimate(tiny_model, PAIRS, num_samples=24, max_batch_tokens=1, **options))
    assert_close(together, estimate(tiny_model, PAIRS, num_samples=24, max_batch_tokens=100, **options))


@pytest.mark.parametrize("options", [{}, {"target_standard_error": 2.0, "num_samples": 64}], ids=str)
def test_the_order_of_the_pairs_does_not_matter_at_all(tiny_model, options):
    forward = estimate(tiny_model, PAIRS, max_batch_tokens=200, **options)
    assert estimate(tiny_model, PAIRS[::-1], max_batch_tokens=200, **options)[::-1] == forward


def test_a_seed_gives_the_same_estimates_and_another_one_others(tiny_model):
    first = estimate(tiny_model, PAIRS, num_samples=4)
    assert estimate(tiny_model, PAIRS, num_samples=4) == first
    other = estimate(tiny_model, PAIRS, num_samples=4, seed=1)
    differs = [one.log_likelihood != two.log_likelihood for one, two in zip(first, other)]
    assert differs == [len(continuation) > 1 for _, continuation in PAIRS]


def test_context_and_continuation_have_noise_of_their_own_wherever_they_are_split(tiny_model):
    joined = estimate(tiny_model, [([1], [2, 34, 5]), ([12], [34, 5]), ([1, 2], [34, 5])], num_samples=1)
    assert len({found.log_likelihood for found in joined}) == 3


def test_a_pass_stays_within_the_token_budget(tiny_model, passes):
    for cfg_scale in (0.0, 1.5):
        estimate(tiny_model, PAIRS, num_samples=24, cfg_scale=cfg_scale, max_batch_tokens=100)
        assert all(rows * width <= 100 for rows, width in passes)
        assert max(rows * width for rows, width in passes) > 75
    passes.clear()
    estimate(tiny_model, PAIRS, num_samples=2, max_batch_tokens=1)
    assert all(rows == 1 for rows, _ in passes)


def test_equal_pairs_and_equal_copies_are_scored_once(tiny_model, passes):
    pair = ([1, 2, 3], [4, 5])
    found = estimate(tiny_model, [pair, pair])
    assert found[0] == found[1] and found[0].num_samples == 128
    # Two tokens can be masked in three ways.
    assert passes == [(3, 5)]


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_logits_are_read_in_chunks_without_a_difference(tiny_model, monkeypatch, cfg_scale):
    whole = estimate(tiny_model, PAIRS, num_samples=8, cfg_scale=cfg_scale)
    monkeypatch.setattr(likelihood, "CHUNK_SIZE", 3 * 512)
    assert_close(estimate(tiny_model, PAIRS, num_samples=8, cfg_scale=cfg_scale), whole)


def test_a_pair_stops_at_the_standard_error_that_was_asked_for(tiny_model):
    everything = estimate(tiny_model, PAIRS, num_samples=256)
    stopped = estimate(tiny_model, PAIRS, num_samples=256, target_standard_error=1.5)
    assert all(found.standard_error <= 1.5 for found in stopped)
    assert sum(found.num_samples for found in stopped) < sum(found.num_samples for found in everything) / 2
    assert len({found.num_samples for found in stopped}) > 2  # each pair at its own time
    for one, other in zip(stopped, everything):
        assert abs(one.log_likelihood - other.log_likelihood) <= 4 * (one.standard_error + other.standard_error)


def test_a_standard_error_out_of_reach_takes_all_samples_and_no_more(tiny_model):
    found = estimate(tiny_model, PAIRS[:2], num_samples=37, target_standard_error=1e-6)
    assert [pair.num_samples for pair in found] == [37, 37]


def test_one_sample_tells_nothing_of_its_standard_error(tiny_model):
    (found,) = estimate(tiny_model, PAIRS[:1], num_samples=1)
    assert math.isinf(found.standard_error) and math.isfinite(found.log_likelihood)


@pytest.mark.parametrize("options", [{}, {"target_standard_error": 1.5}], ids=str)
def test_progress_counts_every_pair_once(tiny_model, options):
    finished = []
    estimate(tiny_model, [*PAIRS, PAIRS[0]], finished.append, num_samples=32, max_batch_tokens=200, **options)
    assert sum(finished) == len(PAIRS) + 1 and len(finished) == len(set(map(str, PAIRS)))


def test_no_pairs_have_no_estimates(tiny_model, passes):
    assert estimate_log_likelihoods(tiny_model, []) == [] and passes == []


def test_tensors_and_half_precision_are_taken(tiny_model):
    pair = tuple(torch.tensor(ids) for ids in PAIRS[0])
    (expected,) = estimate(tiny_model, [PAIRS[0]], num_samples=8)
    (found,) = estimate(copy.deepcopy(tiny_model).to(torch.bfloat16), [pair], num_samples=8)
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=0.02)


def test_the_example_runs():
    result = doctest.testmod(likelihood)
    assert result.attempted > 5 and result.failed == 0


@pytest.mark.parametrize(
    "pair, message",
    [
        (([1, 2], []), r"`pairs\[1\]` must have at least one token to score, got an empty continuation; leave it out"),
        (([1] * 250, [2] * 7), r"`max_sequence_length` \(256\), got 250 \+ 7 tokens; cut the context from the left"),
        (([1, MASK], [2]), r"`pairs\[1\]` must be text without masks, got the mask token \(488\); remove it"),
        (([1], [2, MASK]), "got the mask token"),
        (([1], [512]), r"must hold ids of the vocabulary, 0\.\.511, got 1\.\.512; was it encoded with another"),
        (([-1], [5]), r"got -1\.\.5"),
        (("a", "b"), r"`pairs\[1\]` must hold token ids, got text; encode it with the model's tokenizer"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(tiny_model, pair, message):
    with pytest.raises(ValueError, match=message):
        estimate(tiny_model, [([1], [2]), pair])


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
@pytest.mark.parametrize("pair", [([1, 2], [3]), ([1, 2], [3, 4, 5])])
def test_log_probabilities_that_are_not_numbers_are_an_error(tiny_model, pair, cfg_scale):
    broken = copy.deepcopy(tiny_model)
    broken.model.transformer.ln_f.weight.data[0] = math.nan
    message = r"log-probabilities must be numbers, got nan in float32; load the model in float32 in case"
    with pytest.raises(ValueError, match=message):
        estimate(broken, [pair], cfg_scale=cfg_scale)


def test_a_causal_model_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
    with pytest.raises(
        ValueError, match=r"'llada' or 'illada'\), got 'llama'; score a causal model with the harness's own `hf`"
    ):
        estimate_log_likelihoods(model, [([1], [2])])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": 0}, "`num_samples` must be a whole number of at least 1, got 0"),
        ({"num_samples": True}, "`num_samples` must be a whole number of at least 1, got True"),
        ({"max_batch_tokens": 1.5}, "`max_batch_tokens` must be a whole number of at least 1, got 1.5"),
        ({"estimator": "eq6"}, "`estimator` must be one of exact_count, independent, got 'eq6'"),
        ({"target_standard_error": 0}, "`target_standard_error` must be above 0 nats, got 0; leave it out"),
        ({"cfg_scale": -1}, "`cfg_scale` must be a number of at least 0, got -1; 0 is without guidance"),
        ({"seed": "1"}, "`seed` must be a whole number, got '1'"),
    ],
)
def test_options_outside_their_ranges_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LikelihoodOptions(**options)
