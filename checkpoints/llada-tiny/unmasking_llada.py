"""Which predicted tokens to commit: guidance, candidates, confidence measures and commit rules, on tensors only.

Nothing here knows a model, a tokenizer or a config.

Shape legend: B batch, L positions of a block, K positions scored (masked ones, rows one after the other),
V vocabulary.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor

Generators = Union[torch.Generator, list[torch.Generator], None]


def guide(conditional: Tensor, unconditional: Tensor, cfg_scale: float) -> Tensor:
    """Logits under unsupervised guidance, u + (1 + w) (c - u).

    Args:
        conditional: c, logits of the text; [num_scored, vocab].
        unconditional: u, logits of the text with its prompt masked out; [num_scored, vocab].
        cfg_scale: w, at least 0.

    Returns:
        [num_scored, vocab].

    Source: LLaDA (arXiv:2502.09992), Eq. 16.
    """
    return unconditional + (1 + cfg_scale) * (conditional - unconditional)


def process(processors: Iterable[Callable[[Tensor, Tensor], Any]], ids: Tensor, logits: Tensor) -> Tensor:
    """Run logits processors one after the other.

    Args:
        processors: each maps (ids, logits) to logits.
        ids: the canvas of each scored position; int64 [num_scored, seq].
        logits: [num_scored, vocab].

    Returns:
        [num_scored, vocab].

    Raises:
        ValueError: if one returns anything but logits of the same shape.
    """
    for processor in processors:
        processed = processor(ids, logits)
        if not isinstance(processed, Tensor) or processed.shape != logits.shape:
            got = tuple(processed.shape) if isinstance(processed, Tensor) else repr(processed)
            name = getattr(processor, "__name__", type(processor).__name__)
            raise ValueError(
                f"`logits_processor` must return logits of the shape that it got, {tuple(logits.shape)}; `{name}` "
                f"returned {got}."
            )
        logits = processed
    return logits


def broken_logits(dtype: torch.dtype) -> ValueError:
    """The error for logits that decide on nothing."""
    return ValueError(
        f"`logits` must be finite, with a token other than the mask to choose, at every masked position; got {dtype} "
        "logits with NaN, infinity, or nothing left to choose. Check the weights (`float16` overflows: load the model "
        'with dtype="bfloat16" or "float32"), and what `logits_processor`, `cfg_scale` and `logits_eos_inf` leave.'
    )


def low_confidence(logits: Tensor, candidates: Tensor, mask_token_id: int) -> Tensor:
    """Probability of each candidate under the model, in [0, 1]: commit the most probable, remask the rest.

    The mask token keeps its share of the distribution, as in the released sampler. NaN where the candidate's logit or
    the sum over the vocabulary is not finite.

    Args:
        logits: float32 [num_scored, vocab].
        candidates: int64 [num_scored].
        mask_token_id: not used; the measures share one signature.

    Returns:
        float32 [num_scored].

    Source: LLaDA (arXiv:2502.09992), section 2.4, low-confidence remasking.
    """
    chosen = logits.gather(-1, candidates[:, None])[:, 0]
    log_probability = chosen - logits.logsumexp(-1)
    # 0 times a finite number changes no bit of the sum; 0 times an infinite one is NaN.
    return log_probability.exp().add(log_probability, alpha=0)


def margin(logits: Tensor, candidates: Tensor, mask_token_id: int) -> Tensor:
    """Probability of the best token minus that of the second best, in [0, 1]; the mask token is left out.

    Args and result are those of `low_confidence`; the candidates do not enter.

    Source: Kim et al., Train for the Worst, Plan for the Best (arXiv:2502.06768), top probability margin.
    """
    best = _proposable(logits, mask_token_id).softmax(-1).topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def entropy(logits: Tensor, candidates: Tensor, mask_token_id: int) -> Tensor:
    """One minus the prediction's entropy over its maximum, in [0, 1]; the mask token is left out.

    Args and result are those of `low_confidence`; the candidates do not enter.

    Source: the ordering of Ben-Hamu et al., EB-Sampler (arXiv:2505.24857), scaled to the range of the other measures.
    """
    # One token besides the mask: its entropy is 0, whatever it is divided by.
    return 1.0 - prediction_entropy(logits, mask_token_id) / math.log(max(logits.shape[-1] - 1, 2))


def prediction_entropy(logits: Tensor, mask_token_id: int) -> Tensor:
    """Entropy of the prediction in nats, the mask token left out.

    Args:
        logits: float32 [num_scored, vocab].
        mask_token_id: left out.

    Returns:
        float32 [num_scored].
    """
    return torch.special.entr(_proposable(logits, mask_token_id).softmax(-1)).sum(-1)


# `remasking` names one of these, or `random`: a uniform number instead of a measure.
CONFIDENCE_MEASURES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "low_confidence": low_confidence,
    "margin": margin,
    "entropy": entropy,
}


@dataclass(frozen=True)
class Proposer:
    """Turns logits into one candidate per position and a confidence in it.

    Attributes:
        mask_token_id: never proposed.
        measure: a key of `CONFIDENCE_MEASURES`, or `random`.
        warp: maps (ids, logits) to the logits to draw from, e.g. a `LogitsProcessorList`; None takes the most
            probable token.
        needs_entropy: whether to compute the entropies too.
        suppressed_ids: tokens that are never proposed and hold no probability (the paper's App. B.4, `logits_eos_inf`).
        last_ids: tokens that may be proposed but with no confidence, so that they are committed last
            (App. B.4, `confidence_eos_eot_inf`).
    """

    mask_token_id: int
    measure: str = "low_confidence"
    warp: Optional[Callable[[Optional[Tensor], Tensor], Tensor]] = None
    needs_entropy: bool = False
    suppressed_ids: tuple[int, ...] = ()
    last_ids: tuple[int, ...] = ()

    def __call__(
        self, logits: Tensor, candidate_draws: Optional[Tensor] = None, order_draws: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """Choose a candidate at each scored position.

        Args:
            logits: [num_scored, vocab]; may be overwritten.
            candidate_draws: uniforms in [0, 1); [num_scored]. Needed if `warp` is given.
            order_draws: uniforms in [0, 1); [num_scored]. Needed if `measure` is `random`.

        Returns:
            Candidates, int64 [num_scored]; confidences, float32 [num_scored], NaN where logits are NaN or +inf or where
            no token may be proposed; entropies of the predictions in nats, float32 [num_scored], or None.
        """
        logits = logits.float()
        if self.suppressed_ids:
            logits[:, list(self.suppressed_ids)] = -torch.inf
        if self.warp is None:
            candidates = most_probable(logits, self.mask_token_id)
        else:
            candidates = sample(self.warp(None, _proposable(logits, self.mask_token_id)), candidate_draws)
            # Draws among logits that are not finite end at the last token, whatever it is.
            last = logits.shape[-1] - 1
            candidates = candidates.clamp(max=last - 1 if self.mask_token_id == last else last)
        entropies = prediction_entropy(logits, self.mask_token_id) if self.needs_entropy else None
        if self.measure != "random" and not self.last_ids:
            return candidates, CONFIDENCE_MEASURES[self.measure](logits, candidates, self.mask_token_id), entropies
        # Random order and last tokens hide logits that are not finite, but the probability does not.
        probability = low_confidence(logits, candidates, self.mask_token_id)
        confidence = order_draws
        if self.measure != "random":
            logits[:, list(self.last_ids)] = -torch.inf
            # NaN where nothing but last tokens is left.
            confidence = CONFIDENCE_MEASURES[self.measure](logits, candidates, self.mask_token_id).nan_to_num(0.0)
        return candidates, confidence.add(probability, alpha=0), entropies


def most_probable(logits: Tensor, mask_token_id: int) -> Tensor:
    """The most probable token of each row, the mask token left out, even where nothing else has a finite logit.

    Args:
        logits: [num_scored, vocab]; written to and restored, which saves a copy.
        mask_token_id: left out.

    Returns:
        int64 [num_scored].
    """
    if mask_token_id == 0:  # the first of equals, where all are -inf
        return logits[:, 1:].argmax(-1) + 1
    of_mask = logits[:, mask_token_id]
    saved = of_mask.clone()
    of_mask.fill_(-torch.inf)
    candidates = logits.argmax(-1)
    of_mask.copy_(saved)
    return candidates


def _proposable(logits: Tensor, mask_token_id: int) -> Tensor:
    """The logits without the mask token; a copy."""
    proposable = logits.clone()
    proposable[:, mask_token_id] = -torch.inf
    return proposable


def sample(logits: Tensor, draws: Tensor) -> Tensor:
    """Draw from softmax(logits) by inverting the cumulative distribution at one uniform per row.

    The result has the distribution of the released sampler's Gumbel-max at a fraction of its work.

    Args:
        logits: float32 [num_scored, vocab]; -inf is never drawn.
        draws: uniforms in [0, 1); [num_scored].

    Returns:
        int64 [num_scored].
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, draws[:, None] * total, right=True)
    # Rounding may carry a draw close to 1 past the last token that has probability.
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(drawn, last)[:, 0]


def draw_uniform(shape: tuple[int, ...], generator: Generators = None, device: Optional[torch.device] = None) -> Tensor:
    """Draw uniforms in [0, 1) from one generator, or row by row from one generator per row.

    With a generator per row, a row's numbers do not depend on its neighbours in the batch.

    Args:
        shape: shape of the result; the first dimension counts the rows.
        generator: one `torch.Generator`, a list with one per row, or None for torch's global one.
        device: device of the result. The numbers are drawn where the generator lives and moved.

    Returns:
        float32 tensor of the given shape.

    Raises:
        ValueError: if the list's length is not the number of rows.
    """
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(
                f"`generator` must be one torch.Generator or a list with one per row ({shape[0]}), "
                f"got a list of {len(generator)}."
            )
        rows = [torch.rand(shape[1:], generator=g, device=g.device) for g in generator]
        return torch.stack(rows).to(device)
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=source).to(device)


def schedule_share(num_masked: Tensor, steps_left: Union[int, Tensor]) -> Tensor:
    """Tokens that this step must commit so that the remaining steps suffice: 7 over 3 steps are 3, 2, 2.

    Args:
        num_masked: masked positions of the block; int64 [batch].
        steps_left: steps that the block still has, this one included, at least 1; one number, or int64 [batch].

    Returns:
        int64 [batch].

    Source: LLaDA (arXiv:2502.09992), linear schedule: every step commits equally many, larger shares first.
    """
    return -(-num_masked // steps_left)


def least_confident(confidence: Tensor, share: float) -> Tensor:
    """Mark a share of the committed tokens, the least confident ones, to be masked again.

    Args:
        confidence: confidence with which each token was committed, inf where none may be masked again;
            float32 [batch, block].
        share: in [0, 1); the count is rounded down.

    Returns:
        bool [batch, block].

    Source: Wang et al., ReMDM (arXiv:2503.00307), remasking by confidence, here without its random draw.
    """
    counts = (confidence.isfinite().sum(-1) * share).long()
    return most_confident(-confidence, counts)


def most_confident(confidence: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` most confident positions of each row; the earlier position wins a tie.

    Args:
        confidence: -inf where nothing may be committed; float32 [batch, block].
        counts: positions to mark, if so many are finite; int64 [batch].

    Returns:
        bool [batch, block].
    """
    return CommitRule()(confidence, counts)


@dataclass(frozen=True)
class CommitRule:
    """How many of the most confident tokens a pass commits beyond the schedule's share; none of them here.

    A rule only counts the most confident tokens that it allows. The schedule's share (or one) is committed at least;
    what the rule does not allow of it is chosen by the fallback.

    Attributes:
        value: the rule's parameter.
        fallback: one of `FALLBACKS`: `confident` fills the share up with the next most confident tokens, `leftmost`
            with the first masked ones.

    Source: `leftmost` is the rollout rule of ForkGRPO; without a parallel rule it decodes from left to right.
    """

    value: float = 0.0
    fallback: str = "confident"
    # Whether `is_allowed` reads the entropies.
    needs_entropy = False

    def __call__(self, confidence: Tensor, at_least: Union[int, Tensor], entropies: Optional[Tensor] = None) -> Tensor:
        """Mark the tokens to commit.

        Args:
            confidence: -inf or NaN where nothing may be committed; float32 [batch, block].
            at_least: tokens that the pass commits in any case, if so many are masked; a number, or int64 [batch].
            entropies: entropy of each prediction in nats, 0 where nothing may be committed; float32 [batch, block].

        Returns:
            bool [batch, block].
        """
        ranked, order = confidence.sort(dim=-1, descending=True, stable=True)
        counts = at_least if isinstance(at_least, int) else at_least[:, None]
        is_allowed = self.is_allowed(ranked, None if entropies is None else entropies.gather(-1, order))
        if self.fallback == "leftmost":
            is_masked = confidence > -torch.inf
            if is_allowed is None:
                is_allowed = torch.zeros_like(is_masked)
            is_allowed = torch.zeros_like(is_masked).scatter(-1, order, is_allowed) & is_masked
            is_left = is_masked & ~is_allowed
            return is_allowed | is_left & (is_left.cumsum(-1) <= counts - is_allowed.sum(-1, keepdim=True))
        if is_allowed is not None:
            # Every rule holds for a prefix of the ranking.
            counts = (is_allowed & (ranked > -torch.inf)).sum(-1, keepdim=True).clamp(min=counts)
        is_first = torch.arange(1, order.shape[-1] + 1, device=order.device) <= counts
        is_first = is_first.expand_as(order)
        return is_first.scatter(-1, order, is_first) & (confidence > -torch.inf)

    def is_allowed(self, ranked: Tensor, entropies: Optional[Tensor]) -> Optional[Tensor]:
        """Whether the rule allows to commit the first n tokens, for n = 1..block.

        Args:
            ranked: confidences from the highest to the lowest; float32 [batch, block].
            entropies: in the same order; float32 [batch, block], or None.

        Returns:
            bool [batch, block], True and then False; None if no n is allowed.
        """
        return None


@dataclass(frozen=True)
class Threshold(CommitRule):
    """Commit every token whose confidence reaches `value`, in (0, 1].

    Source: Fast-dLLM (arXiv:2505.22618), confidence-aware parallel decoding.
    """

    def is_allowed(self, ranked: Tensor, entropies: Optional[Tensor]) -> Tensor:
        """See `CommitRule.is_allowed`."""
        return ranked >= self.value


@dataclass(frozen=True)
class Factor(CommitRule):
    """Commit the largest n with (n + 1) (1 - c_n) < `value`, where c_n is the n-th highest confidence.

    Source: Fast-dLLM (arXiv:2505.22618), factor-based decoding.
    """

    def is_allowed(self, ranked: Tensor, entropies: Optional[Tensor]) -> Tensor:
        """See `CommitRule.is_allowed`."""
        return (_ranks(ranked) + 1) * (1 - ranked) < self.value


@dataclass(frozen=True)
class Frechet(CommitRule):
    """Commit the largest n with c_1 + … + c_n - (n - 1) - (1 - c_n) > `value`: a bound on the joint probability.

    Source: Fast-dLLM++, Fréchet profile.
    """

    def is_allowed(self, ranked: Tensor, entropies: Optional[Tensor]) -> Tensor:
        """See `CommitRule.is_allowed`."""
        return ranked.cumsum(-1) - (_ranks(ranked) - 1) - (1 - ranked) > self.value


@dataclass(frozen=True)
class EntropyBound(CommitRule):
    """Commit the largest n whose entropies sum, without the largest, to at most `value` nats.

    Source: Ben-Hamu et al., EB-Sampler (arXiv:2505.24857).
    """

    needs_entropy = True

    def is_allowed(self, ranked: Tensor, entropies: Optional[Tensor]) -> Tensor:
        """See `CommitRule.is_allowed`."""
        return entropies.cumsum(-1) - entropies.cummax(-1).values <= self.value


def _ranks(ranked: Tensor) -> Tensor:
    return torch.arange(1, ranked.shape[-1] + 1, device=ranked.device)


# Who is committed where the parallel rule allows fewer than the schedule's share.
FALLBACKS = ("confident", "leftmost")
# The option of each parallel rule.
COMMIT_RULES: dict[str, type[CommitRule]] = {
    "threshold": Threshold,
    "factor": Factor,
    "frechet": Frechet,
    "entropy_bound": EntropyBound,
}
