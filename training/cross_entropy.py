"""Cross-entropy of many logits in little memory: some rows at a time, with nothing as large as the logits kept.

A composition of torch's functions keeps the log-probabilities beside the logits, and makes two more tensors of that
size in its backward pass (and a float32 copy of half-precision logits). Here the backward pass computes the
probabilities again from the logits, and the gradient is the only other tensor of their size and dtype.

Shape legend: K rows, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits that are worked on at a time; in float32 they take 16 MiB.
CHUNK_SIZE = 2**22


def cross_entropy_and_hits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row, computed in float32 whatever the dtype, and whether its target is the most probable.

    Args:
        logits: [rows, vocab].
        targets: int64 [rows].

    Returns:
        -log p(target), nats, with gradient; float32 [rows]. The hits; bool [rows].

    Not handled: second derivatives, ignored targets, label smoothing.
    """
    return _ChunkedCrossEntropy.apply(logits, targets)


class _ChunkedCrossEntropy(torch.autograd.Function):
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
