"""Laws of scores in the order of confidence, and of the greedy check."""

import copy

import pytest
import torch

from llada_evaluation.confidence_order import matches_greedy_decoding, score_in_confidence_order

PAIRS = [([7, 8, 9], [4, 5, 6, 7]), ([1], [2, 3]), ([], [5, 6, 7, 8, 9]), ([3] * 9, [4]), ([1], [2, 3])]


def recorded_pair(recordings):
    recorded = recordings["loglik"]
    return recorded["prompt"].tolist(), recorded["answer"].tolist()


def recorded_losses(recordings):
    """-log p of each token of the recorded answer, by the set of masked ones."""
    recorded = recordings["loglik"]["cfg0.0"]
    return {tuple(mask): losses for mask, losses in zip(recorded["patterns"].tolist(), recorded["pattern_ce"].tolist())}


@pytest.fixture
def rows(tiny_model):
    """Rows of every pass of `tiny_model`."""
    counts = []

    def note(module, args, kwargs):
        counts.append(len(kwargs["input_ids"]))

    handle = tiny_model.model.register_forward_pre_hook(note, with_kwargs=True)
    yield counts
    handle.remove()


@pytest.mark.parametrize("tokens_per_pass", [1, 2, 4, 6])
def test_the_most_probable_true_tokens_are_revealed_first(reference, tokens_per_pass):
    model, recordings = reference
    losses, mask, expected = recorded_losses(recordings), [True] * 6, 0.0
    while any(mask):
        of_pass = losses[tuple(mask)]
        chosen = sorted((i for i in range(6) if mask[i]), key=lambda i: of_pass[i])[:tokens_per_pass]
        expected -= sum(of_pass[i] for i in chosen)
        mask = [is_masked and i not in chosen for i, is_masked in enumerate(mask)]
    (score,) = score_in_confidence_order(model, [recorded_pair(recordings)], tokens_per_pass)
    assert score == pytest.approx(expected, rel=1e-5)


def test_for_one_token_the_score_is_its_log_probability(reference):
    model, recordings = reference
    recorded = recordings["loglik"]["one_token"]
    context, _ = recorded_pair(recordings)
    (score,) = score_in_confidence_order(model, [(context, recorded["answer"].tolist())])
    assert score == pytest.approx(recorded["value"], rel=1e-6)


def test_guidance_scores_with_what_the_context_adds(reference):
    model, recordings = reference
    pair = recorded_pair(recordings)
    # With everything masked and revealed in one pass, Eq. 6 at l = L and this score are one sum.
    expected = -recordings["loglik"]["cfg1.5"]["exact_g_by_masked_count"][-1].item()
    (score,) = score_in_confidence_order(model, [pair], tokens_per_pass=6, cfg_scale=1.5)
    assert score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("score", [score_in_confidence_order, matches_greedy_decoding])
def test_a_batch_gives_each_pair_what_it_gets_alone_in_any_order(tiny_model, score):
    together = score(tiny_model, PAIRS)
    assert together == pytest.approx([score(tiny_model, [pair])[0] for pair in PAIRS], rel=1e-5)
    assert together == pytest.approx(score(tiny_model, PAIRS, max_batch_tokens=10), rel=1e-5)
    assert score(tiny_model, PAIRS[::-1])[::-1] == together


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_the_greedy_check_agrees_with_generate(tiny_model, cfg_scale):
    contexts = torch.randint(0, 480, (6, 5), generator=torch.Generator().manual_seed(0))
    answers = tiny_model.generate(
        contexts, max_new_tokens=6, steps=6, block_length=6, stop_at_eos=False, cfg_scale=cfg_scale
    )[:, 5:]
    right = list(zip(contexts.tolist(), answers.tolist()))
    wrong = [(context, [(answer[0] + 1) % 480, *answer[1:]]) for context, answer in right]
    wrong += [(context, [*answer[:-1], (answer[-1] + 1) % 480]) for context, answer in right]
    found = matches_greedy_decoding(tiny_model, right + wrong, cfg_scale=cfg_scale)
    assert found == [True] * 6 + [False] * 12


def test_a_pair_leaves_at_its_first_wrong_token(tiny_model, rows):
    (context,) = torch.randint(0, 480, (1, 5), generator=torch.Generator().manual_seed(0)).tolist()
    answer = tiny_model.generate(torch.tensor([context]), max_new_tokens=6, steps=6, block_length=6, stop_at_eos=False)
    rows.clear()
    right, wrong = answer[0, 5:].tolist(), [1, 2, 3, 4, 5, 6]
    assert matches_greedy_decoding(tiny_model, [(context, right), (context, wrong)]) == [True, False]
    assert rows == [2, 1, 1, 1, 1, 1]


def test_rows_leave_when_their_tokens_are_revealed(tiny_model, rows):
    score_in_confidence_order(tiny_model, PAIRS)
    assert rows == [4, 3, 2, 2, 1]


def test_progress_counts_every_pair_once(tiny_model):
    finished = []
    score_in_confidence_order(tiny_model, PAIRS, max_batch_tokens=10, progress=finished.append)
    assert sum(finished) == len(PAIRS) and len(finished) > 1


def test_a_token_of_probability_zero_ends_the_score_at_minus_infinity(toy_model):
    def forbid(module, args, output):
        output.logits[..., 2] = -torch.inf

    handle = toy_model.register_forward_hook(forbid)
    scores = score_in_confidence_order(toy_model, [([0], [1, 2, 1]), ([0], [2, 2, 2]), ([0], [1, 1])])
    handle.remove()
    assert scores[:2] == [-torch.inf] * 2 and scores[2] > -20


@pytest.mark.parametrize("score", [score_in_confidence_order, matches_greedy_decoding])
def test_log_probabilities_that_are_not_numbers_are_an_error(tiny_model, score):
    broken = copy.deepcopy(tiny_model)
    broken.model.transformer.ln_f.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"must be numbers, got nan"):
        score(broken, PAIRS)


def test_what_cannot_be_scored_is_refused(tiny_model):
    with pytest.raises(ValueError, match="`tokens_per_pass` must be a whole number of at least 1, got 0"):
        score_in_confidence_order(tiny_model, PAIRS, tokens_per_pass=0)
    for score in (score_in_confidence_order, matches_greedy_decoding):
        with pytest.raises(ValueError, match="got an empty continuation"):
            score(tiny_model, [([1], [])])
        with pytest.raises(ValueError, match="`cfg_scale` must be a number of at least 0"):
            score(tiny_model, PAIRS, cfg_scale=-0.5)
        with pytest.raises(ValueError, match="`max_batch_tokens` must be a whole number"):
            score(tiny_model, PAIRS, max_batch_tokens=0)
