"""Scores along the order of the model's own confidence: cheaper than a likelihood, and not one; the greedy check."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_llada.prepacking_llada import prepacked_weights
from modeling_llada.unmasking_llada import Proposer, most_confident

from .likelihood import (
    Batch,
    LikelihoodOptions,
    MaskedCopies,
    Pair,
    batch_budget,
    check_batch_options,
    check_count,
    check_pairs,
    check_scores,
    longest_first,
    pack,
    pad,
    score_masked,
)

# Maps logits, float32 [some, vocab], and true tokens, int64 [some], to confidences and scores, float32 [some] each.
Judge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def score_in_confidence_order(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    tokens_per_pass: int = 1,
    cfg_scale: float = LikelihoodOptions.cfg_scale,
    max_batch_tokens: Optional[int] = None,
    progress: Optional[Callable[[int], None]] = None,
) -> list[float]:
    """Add up the log-probabilities of the true tokens as they are revealed, the most probable ones first.

    The continuation begins fully masked. Every pass takes the masked positions whose true tokens the model finds most
    probable, adds the logarithms of these probabilities, and puts the tokens in their places. Nothing is random, and a
    continuation of L tokens takes L / `tokens_per_pass` passes.

    This is not a likelihood, nor a bound on one: the order is chosen by looking at the true tokens, so the
    probabilities of all continuations need not add up to 1. Use it to rank the answers to one question, never for
    perplexities or beside likelihoods. For one token it is the log-probability itself.

    Args:
        model: a LLaDA model.
        pairs: ids of context and continuation.
        tokens_per_pass: tokens that a pass reveals, at least 1.
        cfg_scale, max_batch_tokens: see `LikelihoodOptions`.
        progress: called with the number of pairs that have just been finished.

    Returns:
        Score of each pair, nats. Equal pairs are scored once. Rounding depends on the batch: where two tokens are
        equally probable, it may exchange them.

    Raises:
        ValueError: as `check_pairs`, as `check_scores`, and for options outside their ranges.

    Source: after the confidence-based scoring of multiple-choice answers in iLLaDA (arXiv:2606.25331).
    """
    check_count("tokens_per_pass", tokens_per_pass)

    def judge(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_probabilities = -F.cross_entropy(logits, targets, reduction="none")
        return log_probabilities, log_probabilities

    return _reveal_in_order(model, pairs, judge, tokens_per_pass, cfg_scale, max_batch_tokens, progress)


def matches_greedy_decoding(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    cfg_scale: float = LikelihoodOptions.cfg_scale,
    max_batch_tokens: Optional[int] = None,
    progress: Optional[Callable[[int], None]] = None,
) -> list[bool]:
    """Whether greedy decoding from the context gives exactly the continuation.

    Decoding is that of `generate` with the continuation's length, low-confidence remasking and one token a pass, in one
    block, not stopped by an end-of-text token. A pair leaves at its first wrong token.

    Args, errors and rounding are those of `score_in_confidence_order`.

    Returns:
        One answer per pair.

    Source: LLaDA (arXiv:2502.09992), section 2.4; the harness asks for it with every likelihood.
    """

    def judge(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        candidates, confidence, _ = Proposer(model.config.mask_token_id)(logits)
        scores = torch.zeros_like(confidence).masked_fill(candidates != targets, -torch.inf)
        return confidence, scores.masked_fill(confidence.isnan(), torch.nan)

    return [score == 0 for score in _reveal_in_order(model, pairs, judge, 1, cfg_scale, max_batch_tokens, progress)]


@torch.no_grad()
def _reveal_in_order(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    judge: Judge,
    tokens_per_pass: int,
    cfg_scale: float,
    max_batch_tokens: Optional[int],
    progress: Optional[Callable[[int], None]],
) -> list[float]:
    """Put the true tokens in their places by falling confidence and add up their scores, for every pair."""
    check_batch_options(cfg_scale, max_batch_tokens)
    checked = check_pairs(model, pairs)
    num_equal, scores = Counter(checked), dict[Pair, float]()
    rows = (
        MaskedCopies(pair, torch.ones(1, len(pair.continuation), dtype=torch.bool)) for pair in longest_first(checked)
    )
    with prepacked_weights(model, None):
        for pieces in pack(rows, batch_budget(max_batch_tokens, model.device), cfg_scale):
            totals = _reveal(model, pad(pieces, model.device), judge, tokens_per_pass, cfg_scale).tolist()
            check_scores(totals, model)
            finished = [piece.copies.pair for piece in pieces]
            scores.update(zip(finished, totals))
            if progress is not None:
                progress(sum(num_equal[pair] for pair in finished))
    return [scores[pair] for pair in checked]


def _reveal(model: Any, batch: Batch, judge: Judge, tokens_per_pass: int, cfg_scale: float) -> Tensor:
    """Sum of the scores of each row, -inf or NaN as soon as one is; [batch]."""
    totals = torch.zeros(len(batch.ids), device=batch.ids.device)
    rows = torch.arange(len(batch.ids), device=batch.ids.device)
    while len(rows):
        judged = [judge(*chunk) for chunk in score_masked(model, batch, cfg_scale)]
        confidence, scores = (
            torch.zeros(batch.ids.shape, device=batch.ids.device).masked_scatter(
                batch.is_masked, torch.cat(values).to(batch.ids.device)
            )
            for values in zip(*judged)
        )
        # A token of probability 0 still comes before what is not masked.
        confidence = confidence.clamp(min=torch.finfo(confidence.dtype).min).masked_fill(~batch.is_masked, -torch.inf)
        is_revealed = most_confident(confidence, batch.is_masked.sum(-1).clamp(max=tokens_per_pass))
        # A score that is not a number is never revealed, and ends its row at once.
        totals[rows] += scores.masked_fill(~is_revealed & ~scores.isnan(), 0.0).sum(-1)
        batch = batch._replace(is_masked=batch.is_masked & ~is_revealed)
        is_kept = batch.is_masked.any(-1) & totals[rows].isfinite()
        rows, batch = rows[is_kept], batch.keep(is_kept)
    return totals
