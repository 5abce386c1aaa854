"""Laws of rollouts: the record is what happened, the scores are those of the canvases that the model saw."""

import itertools

import pytest
import torch

from llada_core.diffusion import row_generators, row_seed
from llada_training.noise import ROLLOUT_STREAM
from llada_training.rollouts import (
    GIVEN,
    NEVER,
    Rollout,
    elbo_scores,
    fallback_scores,
    generate_rollouts,
    one_pass_scores,
)

MASK, EOS = 488, 481
SEED = 3
# Few tokens may be drawn, so that thresholds are reached and answers end.
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14]]
WAYS = [
    {"threshold": 0.3, "fallback": "leftmost"},
    {"fallback": "leftmost"},
    {"threshold": 0.3},
    {"threshold": 0.3, "stop_at_eos": False},
    {"steps": 4},
    {"frechet": 0.3, "fallback": "leftmost"},
    {"threshold": 0.3, "fallback": "leftmost", "remasking": "margin"},
]
# Ways to estimate the bound.
QUADRATURE = {"num_levels": 2, "levels": "quadrature"}
ESTIMATORS = [{"num_levels": 1}, {"num_levels": 2, "complementary": True}, QUADRATURE]
ESTIMATORS += [QUADRATURE | {"complementary": True}]


@pytest.fixture
def model(make_model):
    """A model that is sure of some tokens and ends some answers: its head favours few ids by chance."""
    model = make_model()
    with torch.no_grad():
        head = model.model.transformer.ff_out.weight
        head.mul_(3.0)
        head[40:EOS] -= head[40:EOS].mean(0)
        head[40:EOS] *= 0.1
    return model.eval()


def padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[EOS] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def roll_out(model, prompts=PROMPTS, keys=None, **options):
    ids, mask = padded(prompts)
    keys = torch.arange(len(prompts)) if keys is None else torch.tensor(keys)
    options = {"max_new_tokens": 12, "block_length": 6, "temperature": 0.8} | options
    return generate_rollouts(model, ids, mask, keys, SEED, **options)


def log_probability_at(model, rollout, row, column, temperature=0.8):
    """Log-probability of a token in the canvas before its pass, by the plain model on the row alone."""
    is_open = rollout.passes[row] >= rollout.passes[row, column]
    canvas = rollout.ids[row].masked_fill(is_open, MASK)[rollout.is_valid[row]]
    place = int(rollout.is_valid[row, :column].sum())
    logits = model(canvas[None]).logits[0, place].detach()
    logits[MASK] = -torch.inf
    return (logits / temperature).log_softmax(-1)[rollout.ids[row, column]]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_every_recorded_log_probability_is_that_of_the_canvas_its_token_was_committed_in(model, options):
    rollout = roll_out(model, **options)
    is_committed = (rollout.passes != GIVEN) & (rollout.passes != NEVER)
    assert (rollout.is_answer & ~is_committed).sum() == 0
    assert (rollout.ids[:, 4:] != MASK).eq(is_committed[:, 4:]).all()
    for row, column in is_committed.nonzero().tolist():
        expected = log_probability_at(model, rollout, row, column)
        assert rollout.log_probabilities[row, column] == pytest.approx(float(expected), abs=1e-5)
    assert not rollout.log_probabilities[~is_committed].any()


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_the_record_changes_nothing_of_the_answers(model, options):
    rollout, (ids, mask) = roll_out(model, **options), padded(PROMPTS)
    options = {"max_new_tokens": 12, "block_length": 6, "temperature": 0.8} | options
    generators = row_generators(row_seed(SEED, ROLLOUT_STREAM, 0), 0, torch.arange(4))
    plain = model.generate(ids, mask, generator=generators, **options)
    assert torch.equal(plain[rollout.is_answer], rollout.ids[rollout.is_answer])
    assert "proposer_class" not in vars(model)


def test_answers_end_with_their_first_end_of_text(model):
    rollout = roll_out(model, [[5, 6]] * 24, threshold=0.3)
    answers, is_answer = rollout.ids[:, 2:], rollout.is_answer[:, 2:]
    lengths = is_answer.sum(-1)
    assert 0 < (lengths < 12).sum() < 24
    for row, length in enumerate(lengths.tolist()):
        found = (answers[row, :length] == EOS).nonzero()[:, 0].tolist()
        assert found == ([length - 1] if length < 12 or EOS in answers[row, :12].tolist()[:length] else [])


@pytest.mark.parametrize("options", [WAYS[0], WAYS[1], WAYS[5], WAYS[6]], ids=str)
def test_a_fallback_commits_the_leftmost_masked_token_and_nothing_else(model, options):
    rollout = roll_out(model, **options)
    num_fallbacks = 0
    for row, column in rollout.is_fallback.nonzero().tolist():
        number = rollout.passes[row, column]
        assert (rollout.passes[row] == number).sum() == 1
        assert (rollout.passes[row, 4:column] < number).all()
        num_fallbacks += 1
    assert num_fallbacks
    if "threshold" not in options and "frechet" not in options:
        assert rollout.is_fallback[:, 4:].eq(rollout.passes[:, 4:] != NEVER).all()


def test_tokens_above_the_threshold_are_no_fallback(model):
    rollout = roll_out(model, threshold=0.3, fallback="leftmost", temperature=1.0)
    num_sure = 0
    for row, column in ((rollout.passes[:, 4:] != NEVER) & ~rollout.is_fallback[:, 4:]).nonzero().tolist():
        # The confidence keeps the mask's share, so the drawn token has at least as much.
        assert rollout.log_probabilities[row, column + 4].exp() >= 0.3 - 1e-6
        num_sure += 1
    assert num_sure


@pytest.mark.parametrize("options", [WAYS[0], WAYS[1], WAYS[5]], ids=str)
def test_the_scores_of_the_fallbacks_are_what_generation_recorded(model, options):
    rollout = roll_out(model, **options)
    with torch.no_grad():
        scores = fallback_scores(model, rollout, MASK, 0.8)
    is_scored = rollout.is_fallback & rollout.is_answer
    gap = (scores.log_probabilities - rollout.log_probabilities)[is_scored].abs().max()
    assert gap < 1e-5
    assert not scores.log_probabilities[~is_scored].any()
    assert (scores.entropies[is_scored] > 0).all()


def test_with_a_cache_the_record_differs_and_the_scores_do_not_depend_on_it(model):
    rollout = roll_out(model, fallback="leftmost", cache="dual")
    with torch.no_grad():
        scores = fallback_scores(model, rollout, MASK, 0.8).log_probabilities
    is_scored = rollout.is_fallback & rollout.is_answer
    assert (scores - rollout.log_probabilities)[is_scored].abs().max() > 1e-5
    for row, column in is_scored.nonzero()[::5].tolist():
        assert float(scores[row, column]) == pytest.approx(
            float(log_probability_at(model, rollout, row, column)), abs=1e-5
        )


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({"cfg_scale": 0.5}, 0),
        ({"remask_rate": 0.5}, 0),
        ({"top_p": 0.5}, None),
        ({"suffix_window": 0}, None),
        ({"logits_eos_inf": True}, False),
    ],
)
def test_options_that_make_the_score_another_distributions_are_refused(model, options, wanted):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"`{name}` must be {wanted} for rollouts, .* got {value}; leave it out"):
        roll_out(model, **options)
    model.generation_config = model.generation_config.updated(**options)
    with pytest.raises(ValueError, match=f"`{name}` must be {wanted} .* also of the model's generation config"):
        roll_out(model)


def test_an_answer_depends_on_its_key_and_not_on_its_neighbours(model):
    together = roll_out(model, keys=[7, 8, 9, 10], threshold=0.3)
    for row in range(4):
        alone = roll_out(model, [PROMPTS[row]], keys=[7 + row], threshold=0.3)
        assert torch.equal(alone.ids[0, -12:], together.ids[row, -12:])
        assert torch.allclose(alone.log_probabilities[0, -12:], together.log_probabilities[row, -12:], atol=1e-5)


# --- an enumerable vocabulary -----------------------------------------------------------------------------------------


@pytest.fixture
def small(make_model):
    """Five tokens, of which 3 ends and 4 is the mask."""
    ids = {"vocab_size": 5, "embedding_size": 5, "mask_token_id": 4, "eos_token_id": 3, "pad_token_id": 3}
    model = make_model(**ids, max_sequence_length=8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


def answers_on_canvas(answers, num_rows=1, prompt=(0, 1)):
    """Rollouts of given answers in the order from left to right, `num_rows` of each with keys of their own."""
    answers = torch.tensor(answers).repeat_interleave(num_rows, 0)
    ids = torch.cat([torch.tensor([prompt]).expand(len(answers), -1), answers], 1)
    is_end = answers == 3
    is_answer = is_end.cumsum(-1) - is_end.long() == 0
    width = len(prompt)
    passes = torch.cat([torch.full((len(ids), width), GIVEN), torch.arange(answers.shape[1]).expand_as(answers)], 1)
    passes[:, width:][~is_answer] = NEVER
    is_answer = torch.cat([torch.zeros(len(ids), width, dtype=torch.bool), is_answer], 1)
    ids = ids.masked_fill(passes == NEVER, 4)
    zeros = torch.zeros(ids.shape)
    return Rollout(ids, torch.ones_like(is_answer), passes, zeros, is_answer, is_answer, torch.arange(len(ids)))


def test_the_exact_scores_of_all_answers_are_one_distribution(small):
    # Every text of 3 tokens, or fewer with an end.
    texts = {text[: text.index(3) + 1] if 3 in text else text for text in itertools.product(range(4), repeat=3)}
    rollout = answers_on_canvas([list(text) + [0] * (3 - len(text)) if 3 in text else list(text) for text in texts])
    for temperature in (1.0, 0.7):
        scores = fallback_scores(small, rollout, 4, temperature)
        assert scores.log_probabilities.sum(-1).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def exact_bound(model, rollout, width=2):
    """The bound of one answer: the mean over counts of the mean over masks of that count (Eq. 6)."""
    places = rollout.is_answer[0].nonzero()[:, 0].tolist()
    canvas = rollout.ids[0].masked_fill(~rollout.is_answer[0], 4)
    canvas[:width] = rollout.ids[0, :width]
    terms = []
    for count in range(1, len(places) + 1):
        masks = list(itertools.combinations(places, count))
        values = []
        for masked in masks:
            noisy = canvas.clone()
            noisy[list(masked)] = 4
            logits = model(noisy[None]).logits[0].log_softmax(-1)
            values.append(sum(float(logits[place, canvas[place]]) for place in masked) * len(places) / count)
        terms.append(sum(values) / len(values))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("answer", [[0, 2, 1], [1, 3, 0]])
@pytest.mark.parametrize("noise", ESTIMATORS, ids=str)
@torch.no_grad()
def test_the_mean_of_the_bounds_is_the_exact_bound(small, answer, noise):
    num_draws = 2000
    rollout = answers_on_canvas([answer], num_draws)
    bounds = elbo_scores(small, rollout, 2, 4, SEED, 0, **noise).log_probabilities.sum(-1).double()
    error = bounds.std() / num_draws**0.5
    assert abs(bounds.mean() - exact_bound(small, rollout)) < 3 * error + 1e-5


@torch.no_grad()
def test_the_mean_of_the_one_pass_scores_is_that_over_all_masks_of_the_prompt(small):
    rate, num_draws, answer = 0.3, 2000, [0, 2, 1]
    rollout = answers_on_canvas([answer], num_draws)
    found = one_pass_scores(small, rollout, 2, 4, SEED, 0, rate).log_probabilities[:, 2:].double()
    exact = torch.zeros(3)
    for hidden in itertools.product([False, True], repeat=2):
        prompt = [4 if is_hidden else token for is_hidden, token in zip(hidden, (0, 1))]
        logits = small(torch.tensor([[*prompt, 4, 4, 4]])).logits[0, 2:].log_softmax(-1)
        chance = torch.tensor([rate if is_hidden else 1 - rate for is_hidden in hidden]).prod()
        exact += chance * logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
    error = found.std(0) / num_draws**0.5
    assert ((found.mean(0) - exact).abs() < 3 * error + 1e-5).all()


@torch.no_grad()
def test_noise_is_that_of_the_key_and_the_pass_whatever_the_neighbours(model):
    together = roll_out(model, keys=[7, 8, 9, 10], threshold=0.3)
    for row in range(4):
        alone = roll_out(model, [PROMPTS[row]], keys=[7 + row], threshold=0.3)
        width = len(PROMPTS[row])
        for score, noise in ((elbo_scores, {"num_levels": 2, "complementary": True}),
                             (one_pass_scores, {"prompt_mask_rate": 0.4})):  # fmt: skip
            one, all_ = (score(model, *place, MASK, SEED, 1, **noise) for place in ((alone, width), (together, 4)))
            for field in range(2):
                assert torch.allclose(one[field][0, -12:], all_[field][row, -12:], atol=1e-4)
            other = score(model, together, 4, MASK, SEED, 2, **noise)
            assert not torch.allclose(other.log_probabilities, all_.log_probabilities)


def test_a_batch_without_fallbacks_still_runs_the_model_and_has_a_gradient_of_zero(model):
    rollout = roll_out(model, threshold=1e-6)
    assert not rollout.is_fallback.any()
    scores = fallback_scores(model, rollout, MASK, 0.8)
    assert not scores.log_probabilities.any()
    scores.log_probabilities.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
