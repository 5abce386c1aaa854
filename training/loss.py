"""The objectives of LLaDA as pure functions on the masked positions, and what is logged beside them.

Shape legend: B batch, T sequence length, K masked positions of the batch, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llada_core.diffusion import NoisyBatch, weighted_cross_entropy

from .noise import IGNORE_INDEX

# What a loss is divided by: the answer's length and then the rows (fine-tuning), or all maskable tokens (pre-training).
LOSS_NORMALIZATIONS = ("answer", "token")
# Logits that the cross-entropy works on at a time; in float32 they take 16 MiB.
CHUNK_SIZE = 2**22
# Noise levels are grouped into (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1].
NUM_LEVEL_BINS = 4


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

    Some rows are worked on at a time, and nothing as large as the logits is kept beside them. A composition of torch's
    functions keeps the log-probabilities too, and makes two more tensors of that size in its backward pass (and a
    float32 copy of half-precision logits); here the backward pass computes the probabilities again from the logits, and
    the gradient is the only other tensor of their size and dtype.

    Args:
        logits: logits at the masked positions, rows one after the other; [num_masked, vocab].
        labels: clean ids; int64 [batch, seq]. Never shifted.
        is_masked: bool [batch, seq] with num_masked true entries.

    Returns:
        Losses (with gradient) and hits of the masked positions.

    Not handled: second derivatives, ignored targets, label smoothing.
    """
    return MaskedPredictions(*_ChunkedCrossEntropy.apply(logits, labels[is_masked]))


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
        token_losses, noisy: as in `pretraining_loss`.
        labels: the clean id in the answer, -100 in the prompt; int64 [batch, seq].
        num_rows: rows to divide by: those of one batch, or of the whole optimizer step.

    Returns:
        A scalar, nats per answer token.

    Source: LLaDA (arXiv:2502.09992), Eq. 5 and algorithm 2.
    """
    answer_lengths = (labels != IGNORE_INDEX).sum(-1).clamp(min=1)
    return (weighted_cross_entropy(token_losses, noisy.is_masked, noisy.weights) / answer_lengths).sum() / num_rows


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


def row_sums(predictions: MaskedPredictions, noisy: NoisyBatch) -> Tensor:
    """Per row: noise level, masked positions, sum of their cross-entropies, correct ones; float32 [batch, 4]."""
    rows = noisy.is_masked.nonzero()[:, 0]
    losses = predictions.token_losses.detach()
    values = torch.stack([torch.ones_like(losses), losses, predictions.is_correct.to(losses)], dim=1)  # [K, 3]
    sums = torch.zeros(len(noisy.noise_levels), 3, device=values.device).index_add_(0, rows, values)
    return torch.cat([noisy.noise_levels[:, None].to(sums), sums], dim=1)


def level_sums(rows: Tensor) -> Tensor:
    """Add up `row_sums` by noise level: masked positions, cross-entropies, correct ones; [bins, 3]."""
    bins = ((rows[:, 0] * NUM_LEVEL_BINS).ceil().long() - 1).clamp(0, NUM_LEVEL_BINS - 1)
    sums = torch.zeros(NUM_LEVEL_BINS, 3, dtype=rows.dtype, device=rows.device)
    return sums.index_add_(0, bins, rows[:, 1:])


def summarize(sums: Tensor, num_tokens: float) -> dict[str, float]:
    """Name the metrics.

    Args:
        sums: result of `level_sums`; [bins, 3].
        num_tokens: tokens that could have been masked.

    Returns:
        `masked_tokens`, `masked_fraction`, `masked_accuracy`, and for each bin that saw a masked token `loss_t_X`: the
        mean cross-entropy of a masked token, unweighted, at noise levels up to X and above the bin before.
    """
    num_masked, _, num_correct = sums.sum(0).tolist()
    metrics = {
        "masked_tokens": num_masked,
        "masked_fraction": num_masked / max(num_tokens, 1),
        "masked_accuracy": num_correct / max(num_masked, 1),
    }
    for index, (count, total, _) in enumerate(sums.tolist()):
        if count:
            metrics[f"loss_t_{(index + 1) / NUM_LEVEL_BINS:.2f}"] = total / count
    return metrics


@dataclass
class TrainingMetrics:
    """Sums between two log lines, over the steps that `start_step` began. The clock starts with the first of them."""

    num_maskable: float = 0.0
    num_seen: float = 0.0
    started: Optional[float] = None
    sums: Optional[Tensor] = None

    def start_step(self, num_maskable: float, num_seen: float) -> None:
        """Begin an optimizer step, with the tokens of all processes.

        Args:
            num_maskable: tokens that may be masked, counted once per noise draw.
            num_seen: tokens of the data, with prompts and without padding.
        """
        self.started = self.started or time.perf_counter()
        self.num_maskable += num_maskable
        self.num_seen += num_seen

    def update(self, predictions: MaskedPredictions, noisy: NoisyBatch) -> None:
        """Add one batch of this process."""
        self.add(level_sums(row_sums(predictions, noisy)))

    def add(self, sums: Tensor) -> None:
        """Add the `level_sums` of one batch of this process."""
        self.sums = sums if self.sums is None else self.sums + sums

    def summarize(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Name the metrics: the entries of `summarize`, and `tokens_per_second`; empty if nothing was trained.

        Args:
            reduce: adds a tensor up over all processes.
        """
        if self.sums is None or self.started is None:
            return {}
        speed = self.num_seen / max(time.perf_counter() - self.started, 1e-9)
        return summarize(reduce(self.sums), self.num_maskable) | {"tokens_per_second": speed}


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropies, float32 [rows], and hits, bool [rows], of logits [rows, vocab] and targets, int64 [rows]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # `max` finds the same index as `argmax`, several times faster in bfloat16 on CPUs.
        largest, indices = logits.detach().max(-1, keepdim=True)  # [K, 1]
        largest = largest.float()
        log_sum = torch.cat(
            [_shifted(*chunk).exp_().sum(-1, keepdim=True).log_() for chunk in _chunks(logits, largest)]
        )
        is_hit = indices[:, 0] == targets
        ctx.save_for_backward(logits, targets, largest, log_sum)
        ctx.mark_non_differentiable(is_hit)
        # Not joined to one log-sum-exp: where p is close to 1, its rounding would be all that is left of the loss.
        return (log_sum - (logits.gather(-1, targets[:, None]).float() - largest))[:, 0], is_hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor, _: Any) -> tuple[Tensor, None]:
        logits, targets, largest, log_sum = ctx.saved_tensors
        grad = torch.empty_like(logits)
        columns = (grad, largest, log_sum, targets[:, None], grad_losses[:, None])
        for rows, out, offset, log_sums, ids, factor in _chunks(logits, *columns):
            probabilities = _shifted(rows, offset).sub_(log_sums).exp_()
            out.copy_(probabilities.mul_(factor).scatter_add_(-1, ids, -factor))
        return grad, None


def _shifted(rows: Tensor, offset: Tensor) -> Tensor:
    return rows.float() - offset


def _chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of every tensor at a time."""
    num_rows = max(1, CHUNK_SIZE // logits.shape[-1])
    return zip(*(tensor.split(num_rows) for tensor in (logits, *others)))
