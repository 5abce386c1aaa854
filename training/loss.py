"""The objectives of LLaDA as pure functions: cross-entropy at the masked positions, weighted, then normalised.

Shape legend: B batch, T sequence length, K masked positions of the batch, V vocabulary.
"""

from typing import NamedTuple, Union

import torch
from torch import Tensor

from llada_core.diffusion import NoisyBatch, weighted_cross_entropy

from .cross_entropy import cross_entropy_and_hits
from .noise import IGNORE_INDEX

# What a loss is divided by: the answer's length and then the rows (fine-tuning), or all maskable tokens (pre-training).
LOSS_NORMALIZATIONS = ("answer", "token")


class MaskedPredictions(NamedTuple):
    """What the model said at the masked positions, rows one after the other.

    Attributes:
        token_losses: -log p(x_0 | x_t), nats, float32; [num_masked].
        is_correct: the most probable token is the clean one; bool [num_masked].
    """

    token_losses: Tensor
    is_correct: Tensor


def score_masked(logits: Tensor, labels: Tensor, is_masked: Tensor) -> MaskedPredictions:
    """Cross-entropy, in float32 whatever the model's dtype, and hits at the masked positions.

    Args:
        logits: logits at the masked positions, rows one after the other; [num_masked, vocab].
        labels: clean ids; int64 [batch, seq]. Never shifted.
        is_masked: bool [batch, seq] with num_masked true entries.

    Returns:
        Losses (with gradient) and hits of the masked positions.
    """
    return MaskedPredictions(*cross_entropy_and_hits(logits, labels[is_masked]))


def pretraining_loss(token_losses: Tensor, noisy: NoisyBatch, num_tokens: Union[Tensor, float]) -> Tensor:
    """Pre-training loss: the weighted cross-entropies of the batch, divided by a number of tokens.

    Args:
        token_losses: cross-entropies at the masked positions; [num_masked].
        noisy: the batch after the forward process.
        num_tokens: tokens to divide by: batch times length for one batch, or those of the whole optimizer step.

    Returns:
        A scalar, nats per token.

    Source: LLaDA (arXiv:2502.09992), Eq. 3 and algorithm 1.
    """
    return weighted_cross_entropy(token_losses, noisy.is_masked, noisy.weights).sum() / num_tokens


def sft_loss(token_losses: Tensor, noisy: NoisyBatch, labels: Tensor, num_rows: Union[Tensor, float]) -> Tensor:
    """Fine-tuning loss: each row's bound per answer token, averaged over rows.

    Args:
        token_losses: cross-entropies at the masked positions; [num_masked].
        noisy: the batch after the forward process.
        labels: the clean id in the answer, -100 in the prompt; int64 [batch, seq].
        num_rows: rows to divide by: those of one batch, or of the whole optimizer step.

    Returns:
        A scalar, nats per answer token.

    Source: LLaDA (arXiv:2502.09992), Eq. 5 and algorithm 2.
    """
    answer_lengths = (labels != IGNORE_INDEX).sum(-1).clamp(min=1)
    return (weighted_cross_entropy(token_losses, noisy.is_masked, noisy.weights) / answer_lengths).sum() / num_rows


def normalized_loss(
    token_losses: Tensor, noisy: NoisyBatch, labels: Tensor, num_items: Union[Tensor, float], normalization: str
) -> Tensor:
    """The loss under one of `LOSS_NORMALIZATIONS`, over `num_items` as `count_items` counts them; nats per token."""
    if normalization == "answer":
        return sft_loss(token_losses, noisy, labels, num_items)
    return pretraining_loss(token_losses, noisy, num_items)


def count_items(labels: Tensor, normalization: str) -> Tensor:
    """What the loss of a batch is divided by: rows that have a maskable token, or maskable tokens; int64 scalar."""
    is_maskable = labels != IGNORE_INDEX
    return (is_maskable.any(-1) if normalization == "answer" else is_maskable).sum()


def mean_loss(row_losses: Tensor, num_tokens: Tensor, normalization: str) -> float:
    """Average the bounds of many rows.

    Args:
        row_losses: estimate of each row's bound, nats summed over its tokens; [rows].
        num_tokens: maskable tokens of each row; [rows].
        normalization: one of `LOSS_NORMALIZATIONS`.

    Returns:
        Nats per token.
    """
    if normalization == "answer":
        return (row_losses / num_tokens.clamp(min=1)).sum().item() / max(torch.count_nonzero(num_tokens).item(), 1)
    return row_losses.sum().item() / num_tokens.sum().item()
