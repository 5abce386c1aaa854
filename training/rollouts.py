"""Rollouts for reinforcement learning: answers with a record of how they came about, and their log-probabilities.

A rollout keeps what was committed, in which pass and with which log-probability. So every canvas that the model saw can
be made again and scored, with the masks that stand after the answer's end.

Shape legend: B batch, P prompt, T canvas, N canvases scored, K positions scored, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_core.diffusion import NoisyBatch, row_generators, row_seed
from modeling_llada.unmasking_llada import prediction_entropy

from .diffusion_trainer import without_adapter
from .log_probability import draw_noises, token_terms
from .loss import CHUNK_SIZE, score_masked
from .noise import IGNORE_INDEX, PROMPT_STREAM, ROLLOUT_STREAM, row_uniforms

# The pass of tokens that were given, and of those that were never committed.
GIVEN, NEVER = -1, torch.iinfo(torch.int64).max
# Options of `generate` with which the model would not draw from the distribution that is scored, or would see another
# canvas than the one that is made again; each with the values that do no harm.
UNSCORABLE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "cfg_scale": (0,),
    "remask_rate": (0,),
    "suffix_window": (None,),
    "logits_eos_inf": (False,),
    "confidence_eos_eot_inf": (False,),
    "top_p": (None, 1),
    "top_k": (None,),
}


class Rollout(NamedTuple):
    """Answers of a batch, each on its canvas: the prompt, padded on the left, and columns for the answer.

    Attributes:
        ids: the canvas at the end, masks where nothing was committed; int64 [batch, canvas].
        is_valid: columns that are not padding; bool [batch, canvas].
        passes: number of the model's pass in which a token was committed, `GIVEN` or `NEVER`; int64 [batch, canvas].
        log_probabilities: of the committed tokens under the distribution that they were drawn from, nats;
            float32 [batch, canvas]; 0 elsewhere.
        is_fallback: tokens committed because the commit rule allowed none; bool [batch, canvas].
        is_answer: tokens of the answer, up to its end-of-text token, which belongs to it; bool [batch, canvas].
        keys: number of each answer in the training, which its random numbers come from; int64 [batch].
    """

    ids: Tensor
    is_valid: Tensor
    passes: Tensor
    log_probabilities: Tensor
    is_fallback: Tensor
    is_answer: Tensor
    keys: Tensor

    def rows(self, chosen: Any) -> "Rollout":
        """The chosen rows; anything that indexes a tensor."""
        return Rollout(*(values[chosen] for values in self))

    def answer_columns(self, prompt_width: int) -> "Rollout":
        """The answers alone, without the columns of their prompts; only fields with columns change."""
        return Rollout(*(values[:, prompt_width:] if values.dim() == 2 else values for values in self))


class TokenScores(NamedTuple):
    """What a model says of the tokens of an answer.

    Attributes:
        log_probabilities: nats, with gradient; float32 [batch, canvas]; 0 where nothing was scored. For the bound,
            terms that add up to it.
        entropies: of the predictions, nats, without gradient; float32 [batch, canvas].
    """

    log_probabilities: Tensor
    entropies: Tensor


# --- generation -------------------------------------------------------------------------------------------------------


def generate_rollouts(
    model: Any, input_ids: Tensor, attention_mask: Tensor, keys: Tensor, seed: int, **options: Any
) -> Rollout:
    """Answer prompts by `model.generate`, and keep the record.

    Args:
        model: a `LLaDAModelLM`, plain or with an adapter.
        input_ids: prompts, padded on the left; int64 [batch, prompt].
        attention_mask: nonzero at prompt tokens; [batch, prompt].
        keys: number of each answer; int64 [batch]. It draws from a generator of its own, by (seed, key).
        seed: the run's.
        options: of `generate`, `max_new_tokens` among them.

    Raises:
        ValueError: for one of `UNSCORABLE_OPTIONS`, and as `generate`.
    """
    model, width = without_adapter(model), input_ids.shape[1]
    # With what the model's own generation config says.
    config = model.prepare_options(None, options)
    for name, harmless in UNSCORABLE_OPTIONS.items():
        if getattr(config, name) not in harmless:
            raise ValueError(
                f"`{name}` must be {harmless[0]} for rollouts, whose tokens must be drawn from what is scored, got "
                f"{getattr(config, name)!r}; leave it out, also of the model's generation config."
            )
    passes: list[_Pass] = []
    with _recorded(model, passes):
        output = model.generate(
            input_ids, attention_mask, generator=row_generators(row_seed(seed, ROLLOUT_STREAM, 0), 0, keys),
            **options, return_dict_in_generate=True, output_history=True,
        )  # fmt: skip
    answer = output.sequences[:, width:]
    eos_ids = torch.tensor(config.eos_token_ids, dtype=torch.long, device=answer.device)
    num_ends = torch.isin(answer, eos_ids).cumsum(-1)
    is_answer = num_ends - torch.isin(answer, eos_ids).long() == 0
    prompt_mask = attention_mask.bool()
    rollout = Rollout(
        ids=output.history[0].clone(),
        is_valid=torch.cat([prompt_mask, torch.ones_like(is_answer)], 1),
        passes=torch.cat([torch.full_like(input_ids, GIVEN), torch.full_like(answer, NEVER)], 1),
        log_probabilities=torch.zeros(output.sequences.shape, device=answer.device),
        is_fallback=torch.zeros_like(output.sequences, dtype=torch.bool),
        is_answer=torch.cat([torch.zeros_like(prompt_mask), is_answer], 1),
        keys=keys,
    )
    _replay(rollout, output.history, passes, width, config)
    return rollout


class _Pass(NamedTuple):
    """What was proposed in a pass, at the masked positions of the block: [num_scored] each."""

    log_probabilities: Tensor
    confidence: Tensor
    entropies: Tensor | None


@contextlib.contextmanager
def _recorded(model: Any, passes: list[_Pass]) -> Iterator[None]:
    """Let the proposer of a model's generation note what it proposes; generation itself stays as it is."""
    proposer_class = model.proposer_class

    def make(**options: Any) -> Callable[..., Any]:
        proposer = proposer_class(**options)

        def propose(logits: Tensor, *draws: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
            # A copy: the proposer may overwrite its logits.
            scores = logits.float().index_fill(-1, _ids([proposer.mask_token_id], logits), -torch.inf)
            scores = scores if proposer.warp is None else proposer.warp(None, scores)
            candidates, confidence, entropies = proposer(logits, *draws)
            chosen = scores.gather(-1, candidates[:, None])[:, 0] - scores.logsumexp(-1)
            passes.append(_Pass(chosen, confidence, entropies))
            return candidates, confidence, entropies

        return propose

    model.proposer_class = make
    try:
        yield
    finally:
        del model.proposer_class


def _replay(rollout: Rollout, history: tuple[Tensor, ...], passes: list[_Pass], width: int, config: Any) -> None:
    """Go through the canvases of a generation and fill in the record."""
    mask_id, rule = config.mask_token_id, config.commit_rule
    for number, (found, before, after) in enumerate(zip(passes, history[:-1], history[1:], strict=True)):
        is_masked = (before == mask_id) & rollout.is_valid
        # All rows work on the first block that holds a mask; rows that have ended hold none.
        first = int(is_masked.any(0).int().argmax()) - width
        start = width + first // config.block_length * config.block_length
        block = slice(start, start + config.block_length)
        is_masked = is_masked[:, block]
        entropies = None if found.entropies is None else _on_grid(found.entropies, is_masked, 0.0)
        is_allowed = rule(_on_grid(found.confidence, is_masked, -torch.inf), 0, entropies)
        # The padding of a row that has just ended is no token; no later pass saw what it replaced.
        goes_on = (after == mask_id).any(-1, keepdim=True)
        is_new = is_masked & (after[:, block] != mask_id) & (rollout.is_answer[:, block] | goes_on)
        rollout.ids[:, block] = torch.where(is_new, after[:, block], rollout.ids[:, block])
        rollout.passes[:, block].masked_fill_(is_new, number)
        chosen = torch.where(is_new, _on_grid(found.log_probabilities, is_masked, 0.0), 0.0)
        rollout.log_probabilities[:, block] += chosen
        rollout.is_fallback[:, block] |= is_new & ~is_allowed.any(-1, keepdim=True)


def _on_grid(values: Tensor, is_masked: Tensor, fill: float) -> Tensor:
    return torch.full(is_masked.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(is_masked, values)


def _ids(ids: list[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, device=like.device)


# --- scores -----------------------------------------------------------------------------------------------------------


def fallback_scores(model: Any, rollout: Rollout, mask_token_id: int, temperature: float) -> TokenScores:
    """Log-probability of every fallback token in the canvas that it was committed in, as it was drawn: exact.

    Every such token costs a canvas; all go through the model together.

    Args:
        model: maps noisy ids to logits.
        rollout: answers of a rule that commits one token where it allows none.
        mask_token_id: id of the mask, which is never drawn.
        temperature: of the rollout, above 0.

    Source: ForkGRPO (Fork-dLLM), and JustGRPO (arXiv:2601.15165) where every token is a fallback.
    """
    is_scored = rollout.is_fallback & rollout.is_answer
    rows, columns = is_scored.nonzero(as_tuple=True)
    if not len(rows):
        # Every process must run the model, and its backward pass.
        logits = run_model(model, rollout.ids[:1], rollout.is_valid[:1], rollout.is_answer[:1])
        nothing = (logits.float().sum() * 0.0).expand(is_scored.shape)
        return TokenScores(nothing, nothing.detach())
    is_open = rollout.passes[rows] >= rollout.passes[rows, columns][:, None]
    canvases = rollout.ids[rows].masked_fill(is_open, mask_token_id)
    positions = torch.arange(is_scored.shape[1], device=columns.device) == columns[:, None]
    logits = run_model(model, canvases, rollout.is_valid[rows], positions)
    logits = logits.index_fill(-1, _ids([mask_token_id], logits), -torch.inf) / temperature
    losses = score_masked(logits, rollout.ids[rows], positions).token_losses
    return TokenScores(_spread(-losses, is_scored), _spread(entropies_of(logits, mask_token_id), is_scored))


def elbo_scores(
    model: Any, rollout: Rollout, prompt_width: int, mask_token_id: int, seed: int, step: int, **noise: Any
) -> TokenScores:
    """The bound on the log-probability of each answer, as a sum over its tokens.

    What stands after an answer's end is masked, as it was while the answer was generated. Noise depends on
    (seed, step, key) alone, so every model that is compared sees the same.

    Args:
        model: maps noisy ids to logits.
        rollout: answers.
        prompt_width: columns of the prompts.
        mask_token_id: id of the mask.
        seed: the run's.
        step: numbers the draws of one answer.
        noise: `num_levels`, `levels` and `complementary`, as of `draw_noises`.

    Source: ESPO (arXiv:2512.03759); with quadrature, GDPO (arXiv:2510.08554).
    """
    answers = rollout.answer_columns(prompt_width)
    ids = answers.ids.masked_fill(~answers.is_answer, mask_token_id)
    labels = answers.ids.masked_fill(~answers.is_answer, IGNORE_INDEX)
    # Of the answers' columns alone, so that the neighbours' prompts change nothing.
    draws = draw_noises(ids, labels, rollout.keys, mask_token_id, seed=seed, step=step, **noise)
    noisy = NoisyBatch(*(torch.cat(values) for values in zip(*draws)))
    num_draws, labels = len(draws), labels.repeat(len(draws), 1)
    prompts = rollout.ids[:, :prompt_width].repeat(num_draws, 1)
    positions = torch.cat([torch.zeros_like(prompts, dtype=torch.bool), noisy.is_masked], 1)
    # All draws in one pass: engines that share out gradients expect one.
    is_valid = rollout.is_valid.repeat(num_draws, 1)
    logits = run_model(model, torch.cat([prompts, noisy.input_ids], 1), is_valid, positions)
    losses = score_masked(logits, labels, noisy.is_masked).token_losses
    terms = token_terms(losses, noisy).view(num_draws, *ids.shape).mean(0)
    sums = _spread(entropies_of(logits, mask_token_id), noisy.is_masked).view(num_draws, *ids.shape).sum(0)
    counts = noisy.is_masked.view(num_draws, *ids.shape).sum(0)
    scores = TokenScores(terms, sums / counts.clamp(min=1))
    return TokenScores(*(torch.cat([values.new_zeros(prompts[: len(ids)].shape), values], 1) for values in scores))


def one_pass_scores(
    model: Any, rollout: Rollout, prompt_width: int, mask_token_id: int, seed: int, step: int, prompt_mask_rate: float
) -> TokenScores:
    """Log-probability of every token of the answers where all of them, and some of their prompts, are masked.

    Args:
        model, rollout, prompt_width, mask_token_id, seed, step: as of `elbo_scores`.
        prompt_mask_rate: chance that a token of the prompt is masked, in [0, 1).

    Source: diffu-GRPO of d1 (arXiv:2504.12216).
    """
    uniforms = row_uniforms(rollout.keys.cpu(), seed, step, PROMPT_STREAM, (prompt_width,))
    # From the right, so that padding changes nothing.
    is_hidden = (uniforms.flip(-1) < prompt_mask_rate).to(rollout.ids.device) & rollout.is_valid[:, :prompt_width]
    prompts = rollout.ids[:, :prompt_width].masked_fill(is_hidden, mask_token_id)
    answers = torch.full_like(rollout.ids[:, prompt_width:], mask_token_id)
    logits = run_model(model, torch.cat([prompts, answers], 1), rollout.is_valid, rollout.is_answer)
    losses = score_masked(logits, rollout.ids, rollout.is_answer).token_losses
    return TokenScores(
        _spread(-losses, rollout.is_answer), _spread(entropies_of(logits, mask_token_id), rollout.is_answer)
    )


def run_model(model: Any, ids: Tensor, is_valid: Tensor, positions: Tensor) -> Tensor:
    """Logits at the positions, computed as in generation; [num_scored, vocab]."""
    if is_valid.all():
        return model(input_ids=ids, logits_positions=positions).logits
    # Counted over valid tokens, as in generation.
    counted = (is_valid.cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=is_valid, position_ids=counted, logits_positions=positions).logits


@torch.no_grad()
def entropies_of(logits: Tensor, mask_token_id: int) -> Tensor:
    """Entropies of the predictions, the mask token left out, some rows at a time; float32 [num_scored]."""
    chunks = logits.detach().split(max(1, CHUNK_SIZE // logits.shape[-1]))
    return torch.cat([prediction_entropy(chunk.float(), mask_token_id) for chunk in chunks])


def _spread(values: Tensor, positions: Tensor) -> Tensor:
    """Put values into the positions that they belong to, rows one after the other; 0 elsewhere."""
    return values.new_zeros(positions.shape).masked_scatter(positions, values)
