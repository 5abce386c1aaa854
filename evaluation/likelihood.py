"""The likelihood of a continuation by the diffusion bound: Eq. 6 or Eq. 3 with standard errors, many pairs at once.

Shape legend: N noisy copies of a pair, L continuation.
"""

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_core.diffusion import (
    NoisyBatch,
    add_noise,
    draw_uniform,
    row_seed,
    uniform_noise_levels,
    weighted_cross_entropy,
)
from modeling_llada.prepacking_llada import prepacked_weights

from .likelihood_batches import (
    Batch,
    MaskedCopies,
    Pair,
    batch_budget,
    check_batch_options,
    check_count,
    check_pairs,
    is_number,
    longest_first,
    pack,
    pad,
    score_masked,
)

# Eq. 6 and Eq. 3 of the paper.
ESTIMATORS = ("exact_count", "independent")
# Samples between two looks at the standard error, where one is asked for.
SAMPLES_PER_ROUND = 16


@dataclass(frozen=True)
class LikelihoodOptions:
    """How likelihoods are estimated.

    Attributes:
        num_samples: noisy copies of each pair, at least 1; one is enough for a continuation of one token, always.
        estimator: "exact_count" masks exactly l tokens, l spread evenly over 1..L (Eq. 6); "independent" masks each
            token on its own (Eq. 3). Both estimate the same bound without bias. The variance of Eq. 3 is infinite, as
            levels near 0 weigh 1/t, so that its standard error is only a rough one: use it to cross-check.
        target_standard_error: stop a pair once its standard error is at most this, above 0, in nats. None takes all
            samples. Stopping looks at the samples, so it leaves a slight bias: pairs whose first samples lie close
            together by chance stop early.
        cfg_scale: w of unsupervised guidance, logits = u + (1 + w) (c - u) with u from the context masked out.
        max_batch_tokens: rows times longest row of one forward pass, padding and guidance counted; a row longer than
            that runs alone. The pass also holds one row of logits for each masked token. None: 16384, on a CPU 2048.
        seed: of the noise; a pair's noise depends on it and on the pair's ids, and on nothing else.

    Raises:
        ValueError: for a value outside these ranges.

    Source: LLaDA (arXiv:2502.09992), App. A for Eq. 6 with 128 samples; Eq. 3; Eq. 16 for guidance.
    """

    num_samples: int = 128
    estimator: str = "exact_count"
    target_standard_error: Optional[float] = None
    cfg_scale: float = 0.0
    max_batch_tokens: Optional[int] = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples)
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"`estimator` must be one of {', '.join(ESTIMATORS)}, got {self.estimator!r}.")
        target = self.target_standard_error
        if target is not None and not (is_number(target) and target > 0):
            raise ValueError(
                f"`target_standard_error` must be above 0 nats, got {target!r}; leave it out to take all samples."
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ValueError(f"`seed` must be a whole number, got {self.seed!r}.")
        check_batch_options(self.cfg_scale, self.max_batch_tokens)


class LikelihoodEstimate(NamedTuple):
    """An estimate of the bound on log p(continuation | context).

    Attributes:
        log_likelihood: the estimate, nats.
        standard_error: its standard error, nats; 0.0 where it is exact, inf where one sample tells nothing of it.
        num_samples: noisy copies that it is the mean of.
    """

    log_likelihood: float
    standard_error: float
    num_samples: int


@torch.no_grad()
def estimate_log_likelihoods(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    options: Optional[LikelihoodOptions] = None,
    progress: Optional[Callable[[int], None]] = None,
) -> list[LikelihoodEstimate]:
    """Estimate the bound on log p(continuation | context) of every pair.

    Neither the order of the pairs nor the batches matter: the noise of a pair depends on the seed and on its ids.
    Estimates of one call are the same for every order of its pairs, and otherwise differ by rounding.

    Args:
        model: a LLaDA model (`config.model_type` is "llada").
        pairs: ids of context and continuation, without padding. The context may be empty; the continuation is scored
            up to its last token, with no end-of-text token added.
        options: how to estimate; None takes the defaults.
        progress: called with the number of pairs that have just been finished; the numbers add up to all pairs.

    Returns:
        One estimate per pair, in their order. Equal pairs are scored once, and so are equal noisy copies of a pair and
        several continuations of one token in one context.

    Raises:
        ValueError: as `check_pairs`; a pair longer than the model is not cut here.

    Source: LLaDA (arXiv:2502.09992), Eq. 6 and Eq. 3.
    Not handled: several devices (share the pairs among processes).

    Example:

    ```python
    >>> from llada_evaluation.likelihood import LikelihoodOptions, estimate_log_likelihoods
    >>> from modeling_llada import LLaDAConfig, LLaDAModelLM
    >>> config = LLaDAConfig(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=64, vocab_size=100,
    ...                      mask_token_id=99, eos_token_id=0, pad_token_id=0)
    >>> model = LLaDAModelLM(config).eval()
    >>> estimates = estimate_log_likelihoods(model, [([5, 6], [7, 8, 9]), ([5, 6], [7])])
    >>> [estimate.num_samples for estimate in estimates], estimates[1].standard_error
    ([128, 1], 0.0)

    ```
    """
    options = options or LikelihoodOptions()
    checked = check_pairs(model, pairs)
    num_equal = Counter(checked)
    estimates: dict[Pair, LikelihoodEstimate] = {}
    with prepacked_weights(model, None):
        for pair, estimate in _estimate_different(model, longest_first(checked), options):
            estimates[pair] = estimate
            if progress is not None:
                progress(num_equal[pair])
    return [estimates[pair] for pair in checked]


def _estimate_different(
    model: Any, pairs: Sequence[Pair], options: LikelihoodOptions
) -> Iterator[tuple[Pair, LikelihoodEstimate]]:
    """Estimate pairs of which no two are equal; yields each as soon as it is finished."""
    for pair, value in _score_single_tokens(model, [pair for pair in pairs if len(pair.continuation) == 1], options):
        yield pair, LikelihoodEstimate(value, 0.0, 1)
    running = [Samples(pair) for pair in pairs if len(pair.continuation) > 1]
    while running:
        for scored in _score_round(model, running, options):
            if scored.is_done(options):
                yield scored.pair, scored.estimate()
        running = [samples for samples in running if not samples.is_done(options)]


@dataclass
class Samples:
    """What is known so far of one pair whose continuation has at least two tokens.

    Attributes:
        pair: the ids.
        num_samples: samples so far.
        total: their sum, nats.
        variance_of_total: estimate of the variance of that sum, nats squared; see `successive_variance`.
    """

    pair: Pair
    num_samples: int = 0
    total: float = 0.0
    variance_of_total: float = 0.0

    def draw(self, options: LikelihoodOptions) -> NoisyBatch:
        """Noise of the next round; [samples, continuation]."""
        num_tokens = len(self.pair.continuation)
        # A generator for each round: kept ones would take kilobytes a pair.
        seed = row_seed(options.seed, self.num_samples, _number_of(self.pair))
        uniforms = draw_uniform((self._round_size(options), 1 + num_tokens), torch.Generator().manual_seed(seed))
        return mask_copies(uniforms, options.estimator)

    def _round_size(self, options: LikelihoodOptions) -> int:
        """Samples of the next round: all, or their equal share if the standard error is looked at in between."""
        if options.target_standard_error is None:
            return options.num_samples
        rounds_left = math.ceil((options.num_samples - self.num_samples) / SAMPLES_PER_ROUND)
        return math.ceil((options.num_samples - self.num_samples) / rounds_left)

    def add(self, values: Tensor) -> None:
        """Take in the samples of a round, in the order of their levels; float64 [samples]."""
        self.num_samples += len(values)
        self.total += values.sum().item()
        self.variance_of_total += successive_variance(values)

    def is_done(self, options: LikelihoodOptions) -> bool:
        """Whether no further sample is needed."""
        if self.num_samples >= options.num_samples:
            return True
        target = options.target_standard_error
        return target is not None and self.num_samples > 0 and self.estimate().standard_error <= target

    def estimate(self) -> LikelihoodEstimate:
        """The estimate from the samples so far."""
        error = math.sqrt(self.variance_of_total) / self.num_samples
        return LikelihoodEstimate(self.total / self.num_samples, error, self.num_samples)


def mask_copies(uniforms: Tensor, estimator: str) -> NoisyBatch:
    """Mask copies of a continuation.

    Args:
        uniforms: numbers in [0, 1): the level's in the first column, then one per token; [samples, 1 + continuation].
        estimator: one of `ESTIMATORS`. With exact counts, the samples' levels lie one in each of as many equal parts of
            (0, 1]. The counts l = ceil(t L) of the samples together are then uniform on 1..L, without bias, and the
            variance of their mean is never above that of independent levels.

    Returns:
        The noise; `input_ids` holds 1 where a token is masked and 0 elsewhere. Independent masks may be empty.
    """
    num_samples, num_tokens = uniforms.shape[0], uniforms.shape[1] - 1
    levels, is_stratified = uniforms[:, 0].double(), estimator == "exact_count"
    if is_stratified:
        levels = (torch.arange(num_samples, device=uniforms.device) + levels) / num_samples
    tokens = torch.zeros(num_samples, num_tokens, dtype=torch.long, device=uniforms.device)
    return add_noise(
        tokens,
        torch.ones_like(tokens, dtype=torch.bool),
        mask_token_id=1,
        noise_levels=uniform_noise_levels(levels),
        uniforms=uniforms[:, 1:],
        exact_count=is_stratified,
        eps=0.0,
    )


def successive_variance(values: Tensor) -> float:
    """Estimate the variance of the sum of independent samples by the differences between neighbours.

    Neighbours in the order of the levels have much the same mean, which their difference takes out; what is left of it
    only adds. So the expectation is never below the variance of the sum. For N samples of one mean and one variance it
    is 1 + 1/N times that variance.

    Args:
        values: samples, each independent of the others, neighbours alike in their means; float64 [samples].

    Returns:
        Half the sum of the squared differences, in which the first and the last one count twice, as the samples at the
        ends have one neighbour only; inf for one sample.

    Source: after the successive difference estimator of survey sampling (Wolter, Introduction to Variance Estimation,
    2007, section 8.2).
    """
    if len(values) == 1:
        return math.inf
    halves = values.diff().square() / 2
    return (halves.sum() + halves[0] + halves[-1]).item()


def _number_of(pair: Pair) -> int:
    """A number for the noise of a pair: 63 bits of the hash of its ids."""
    text = f"{pair.context}{pair.continuation}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _score_round(model: Any, running: Sequence[Samples], options: LikelihoodOptions) -> Iterator[Samples]:
    """Draw and score one round of every pair; yields each pair once its last row has been scored."""
    begun: deque[tuple[Samples, NoisyBatch, Tensor]] = deque()

    def draw_all() -> Iterator[MaskedCopies]:
        # A pair is drawn when the batches reach it, so that the noise of few pairs is held at a time.
        for samples in running:
            noisy = samples.draw(options)
            # A short continuation has few different masks.
            is_masked, row_of_sample = noisy.is_masked.unique(dim=0, return_inverse=True)
            begun.append((samples, noisy, row_of_sample))
            yield MaskedCopies(samples.pair, is_masked)

    scored: list[Tensor] = []
    for pieces in pack(draw_all(), batch_budget(options.max_batch_tokens, model.device), options.cfg_scale):
        row_values = _score_rows(model, pad(pieces, model.device), options.cfg_scale).double().cpu()
        for piece, values in zip(pieces, row_values.split([piece.num_rows for piece in pieces])):
            scored.append(values)
            if piece.is_last:
                samples, noisy, row_of_sample = begun.popleft()
                samples.add(torch.cat(scored)[row_of_sample] * noisy.weights)
                scored = []
                yield samples


def _score_single_tokens(model: Any, pairs: Sequence[Pair], options: LikelihoodOptions) -> Iterator[tuple[Pair, float]]:
    """Log-probabilities of continuations of one token, which can be masked in one way only.

    The answers to one question, A to D for instance, are read from one row.
    """
    by_context: dict[tuple[int, ...], list[Pair]] = {}
    for pair in pairs:
        by_context.setdefault(pair.context, []).append(pair)
    copies = (MaskedCopies(answers[0], torch.ones(1, 1, dtype=torch.bool)) for answers in by_context.values())
    for pieces in pack(copies, batch_budget(options.max_batch_tokens, model.device), options.cfg_scale):
        scores = score_masked(model, pad(pieces, model.device), options.cfg_scale)
        rows = (row for logits, _ in scores for row in logits.log_softmax(-1))
        for piece, row in zip(pieces, rows):
            answers = by_context[piece.copies.pair.context]
            tokens = torch.tensor([pair.continuation[0] for pair in answers], device=row.device)
            yield from zip(answers, row[tokens].tolist())


def _score_rows(model: Any, batch: Batch, cfg_scale: float) -> Tensor:
    """Log-probability of the masked tokens of each row, summed; [batch]."""
    losses = [F.cross_entropy(*chunk, reduction="none") for chunk in score_masked(model, batch, cfg_scale)]
    weights = torch.ones(len(batch.ids), device=losses[0].device)
    return -weighted_cross_entropy(torch.cat(losses), batch.is_masked.to(losses[0].device), weights)
