"""The likelihood of a continuation by the diffusion bound: Eq. 6 or Eq. 3 with standard errors, many pairs at once.

Noisy copies of many pairs share the batches; scores in the order of confidence use these batches too.

Shape legend: B rows of a batch, T its width, L continuation, K masked positions of the batch, V vocabulary.
"""

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from modeling_llada.configuration_llada import MODEL_TYPES
from modeling_llada.prepacking_llada import prepacked_weights
from modeling_llada.unmasking_llada import guide

# Eq. 6 and Eq. 3 of the paper.
ESTIMATORS = ("exact_count", "independent")
# Samples between two looks at the standard error, where one is asked for.
SAMPLES_PER_ROUND = 16
# Tokens of a pass that keep a GPU busy; a CPU is faster with fewer.
BATCH_TOKENS, CPU_BATCH_TOKENS = 16384, 2048
# Logits that are turned to float32 at a time; they take 64 MiB.
CHUNK_SIZE = 2**24


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
        standard_error: its standard error, nats; 0.0 where it is exact, inf if it cannot be estimated from one sample.
        num_samples: noisy copies that it is the mean of.
    """

    log_likelihood: float
    standard_error: float
    num_samples: int


class Pair(NamedTuple):
    """A continuation and the context that it is scored in, as token ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of context and continuation."""
        return len(self.context) + len(self.continuation)


@dataclass(frozen=True)
class MaskedCopies:
    """Copies of one pair that differ in their masks.

    Attributes:
        pair: the clean ids.
        is_masked: masked positions of the continuation; bool [copies, continuation].
    """

    pair: Pair
    is_masked: Tensor


class Piece(NamedTuple):
    """Copies `start` to `end` - 1 of one pair, which stand in one batch."""

    copies: MaskedCopies
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        """Rows of the batch that it fills."""
        return self.end - self.start

    @property
    def is_last(self) -> bool:
        """Whether no copy of the pair follows in another batch."""
        return self.end == len(self.copies.is_masked)


class Batch(NamedTuple):
    """Padded rows for one forward pass.

    Attributes:
        ids: clean ids, padding on the right; int64 [batch, seq].
        is_context: bool [batch, seq].
        is_masked: positions to mask and to score; bool [batch, seq].
        attention_mask: true at valid positions, bool [batch, seq]; None if nothing is padded.
    """

    ids: Tensor
    is_context: Tensor
    is_masked: Tensor
    attention_mask: Optional[Tensor]

    def keep(self, is_kept: Tensor) -> "Batch":
        """The rows that `is_kept` marks, bool [batch]."""
        attention_mask = None if self.attention_mask is None else self.attention_mask[is_kept]
        return Batch(self.ids[is_kept], self.is_context[is_kept], self.is_masked[is_kept], attention_mask)


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
        ValueError: as `check_pairs`, and as `check_scores`; a pair longer than the model is not cut here.

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
        check_scores(row_values.tolist(), model)
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
            values = row[tokens].tolist()
            check_scores(values, model)
            yield from zip(answers, values)


def _score_rows(model: Any, batch: Batch, cfg_scale: float) -> Tensor:
    """Log-probability of the masked tokens of each row, summed; [batch]."""
    losses = [F.cross_entropy(*chunk, reduction="none") for chunk in score_masked(model, batch, cfg_scale)]
    weights = torch.ones(len(batch.ids), device=losses[0].device)
    return -weighted_cross_entropy(torch.cat(losses), batch.is_masked.to(losses[0].device), weights)


# --- rows of many pairs in one batch ----------------------------------------------------------------------------------


def check_pairs(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Pair]:
    """Refuse a model or pairs that cannot be scored.

    Args:
        model: a LLaDA model.
        pairs: ids of context and continuation; lists or 1-D tensors.

    Returns:
        The pairs, hashable.

    Raises:
        ValueError: for a causal model, text in place of ids, an empty continuation, more tokens than the model has
            positions, ids outside the vocabulary, and mask tokens.
    """
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise ValueError(
            f"`model` must be a masked diffusion model (`config.model_type` is {' or '.join(map(repr, MODEL_TYPES))}), "
            f"got {config.model_type!r}; score a causal model with the harness's own `hf` model."
        )
    checked = []
    for number, (context, continuation) in enumerate(pairs):
        name = f"`pairs[{number}]`"
        pair = Pair(_as_tuple(context, name), _as_tuple(continuation, name))
        _check_pair(pair, name, config)
        checked.append(pair)
    return checked


def _as_tuple(ids: Any, name: str) -> tuple[int, ...]:
    if isinstance(ids, str):
        raise ValueError(f"{name} must hold token ids, got text; encode it with the model's tokenizer.")
    return tuple(torch.as_tensor(ids).tolist())


def _check_pair(pair: Pair, name: str, config: Any) -> None:
    if not pair.continuation:
        raise ValueError(f"{name} must have at least one token to score, got an empty continuation; leave it out.")
    if pair.num_tokens > config.max_sequence_length:
        raise ValueError(
            f"{name} must fit into the model's `max_sequence_length` ({config.max_sequence_length}), got "
            f"{len(pair.context)} + {len(pair.continuation)} tokens; cut the context from the left."
        )
    ids = pair.context + pair.continuation
    if min(ids) < 0 or max(ids) >= config.embedding_size:
        raise ValueError(
            f"{name} must hold ids of the vocabulary, 0..{config.embedding_size - 1}, got {min(ids)}..{max(ids)}; "
            "was it encoded with another model's tokenizer?"
        )
    if config.mask_token_id in ids:
        raise ValueError(
            f"{name} must be text without masks, got the mask token ({config.mask_token_id}); remove it. To fill "
            "masks, call the model's `infill`."
        )


def check_batch_options(cfg_scale: Any, max_batch_tokens: Any) -> None:
    """Raise ValueError unless guidance is a number of at least 0, and the budget None or a count as `check_count`."""
    if not is_number(cfg_scale) or cfg_scale < 0:
        raise ValueError(f"`cfg_scale` must be a number of at least 0, got {cfg_scale!r}; 0 is without guidance.")
    if max_batch_tokens is not None:
        check_count("max_batch_tokens", max_batch_tokens)


def check_scores(scores: Iterable[float], model: Any) -> None:
    """Refuse scores of which one is not a number, as those of broken weights or of an overflow are.

    Args:
        scores: log-probabilities, nats; -inf is taken.
        model: the model that gave them.

    Raises:
        ValueError: in this case.
    """
    if any(map(math.isnan, scores)):
        raise ValueError(
            f"The model's log-probabilities must be numbers, got nan in {str(model.dtype).removeprefix('torch.')}; "
            "load the model in float32 in case it overflows, else its weights are damaged."
        )


def batch_budget(max_batch_tokens: Optional[int], device: torch.device) -> int:
    """Tokens of one forward pass: the number that was asked for, or one that suits the device."""
    if max_batch_tokens is not None:
        return max_batch_tokens
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless an option is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}; leave it out for the default.")


def is_number(value: Any) -> bool:
    """Whether an option is a number, which True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def longest_first(pairs: Iterable[Pair]) -> list[Pair]:
    """The different ones among the pairs, the longest first; the same for every order of the pairs.

    Neighbours of one length need no padding, and the batch that takes most memory is the first one.
    """
    return sorted(set(pairs), key=lambda pair: (-pair.num_tokens, pair))


def pack(all_copies: Iterable[MaskedCopies], max_batch_tokens: int, cfg_scale: float) -> Iterator[list[Piece]]:
    """Share copies into batches within a budget.

    Args:
        all_copies: copies of each pair, the longest pairs first; taken one pair after the other, as room allows.
        max_batch_tokens: rows times longest row of one forward pass; a row longer than that runs alone.
        cfg_scale: guidance, which runs every row twice.

    Returns:
        Iterator of the pieces of each batch, in the order of the copies; at least one row each.
    """
    tokens_per_token = 2 if cfg_scale > 0 else 1
    pieces: list[Piece] = []
    room = 0
    for copies in all_copies:
        start, num_rows = 0, len(copies.is_masked)
        while start < num_rows:
            if not pieces:
                # The first pair is the longest one and sets the width.
                room = max(1, max_batch_tokens // (copies.pair.num_tokens * tokens_per_token))
            end = min(num_rows, start + room)
            pieces.append(Piece(copies, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield pieces
                pieces = []
    if pieces:
        yield pieces


def pad(pieces: Sequence[Piece], device: torch.device) -> Batch:
    """Lay the pieces out as one batch, as wide as the longest pair, padded on the right."""
    num_rows = sum(piece.num_rows for piece in pieces)
    width = max(piece.copies.pair.num_tokens for piece in pieces)
    ids = torch.zeros(num_rows, width, dtype=torch.long)
    is_context, is_masked, is_valid = (torch.zeros(num_rows, width, dtype=torch.bool) for _ in range(3))
    first = 0
    for piece in pieces:
        pair, rows = piece.copies.pair, slice(first, first + piece.num_rows)
        first = rows.stop
        ids[rows, : pair.num_tokens] = torch.tensor(pair.context + pair.continuation)
        is_context[rows, : len(pair.context)] = True
        is_masked[rows, len(pair.context) : pair.num_tokens] = piece.copies.is_masked[piece.start : piece.end]
        is_valid[rows, : pair.num_tokens] = True
    attention_mask = None if is_valid.all() else is_valid.to(device)
    return Batch(ids.to(device), is_context.to(device), is_masked.to(device), attention_mask)


def score_masked(model: Any, batch: Batch, cfg_scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the model once on the masked rows, some masked positions at a time.

    Args:
        model: a LLaDA model.
        batch: the rows.
        cfg_scale: w of unsupervised guidance; the second half of the pass has the context masked out.

    Returns:
        Iterator of logits, float32 [some, vocab], and clean ids, int64 [some]: together the masked positions, rows one
        after the other.

    Source: LLaDA (arXiv:2502.09992), Eq. 16, for guidance.
    """
    mask_token_id, is_guided = model.config.mask_token_id, cfg_scale > 0
    ids, is_scored, attention_mask = batch.ids.masked_fill(batch.is_masked, mask_token_id), batch.is_masked, None
    if is_guided:
        ids = torch.cat((ids, ids.masked_fill(batch.is_context, mask_token_id)))
        is_scored = torch.cat((is_scored, is_scored))
    if batch.attention_mask is not None:
        attention_mask = batch.attention_mask.repeat(len(ids) // len(batch.ids), 1)
    logits = model(ids, attention_mask=attention_mask, logits_positions=is_scored).logits
    targets = batch.ids[batch.is_masked].to(logits.device)  # [K]
    num_rows = max(1, CHUNK_SIZE // logits.shape[-1])
    parts = (part.split(num_rows) for part in (targets, *logits.chunk(2 if is_guided else 1)))
    for some_targets, conditional, *unconditional in zip(*parts):
        some_logits = conditional.float()
        yield guide(some_logits, unconditional[0].float(), cfg_scale) if is_guided else some_logits, some_targets
