"""What is logged beside the loss: masked fraction, masked accuracy, loss by noise level, tokens per second."""

import time
from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor

from llada_core.diffusion import NoisyBatch

from .loss import MaskedPredictions

# Noise levels are grouped into (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1].
NUM_LEVEL_BINS = 4


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


class TrainingMetrics:
    """Sums between two log lines. The clock runs only while training steps do."""

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self._sums: Optional[Tensor] = None
        self._num_maskable = 0.0
        self._num_seen = 0.0
        self._started: Optional[float] = None

    def start_step(self, num_maskable: float, num_seen: float) -> None:
        """Begin an optimizer step, with the tokens of all processes.

        Args:
            num_maskable: tokens that may be masked, counted once per noise draw.
            num_seen: tokens of the data, with prompts and without padding.
        """
        self._started = self._started or time.perf_counter()
        self._num_maskable += num_maskable
        self._num_seen += num_seen

    def update(self, predictions: MaskedPredictions, noisy: NoisyBatch) -> None:
        """Add one batch of this process."""
        sums = level_sums(row_sums(predictions, noisy))
        self._sums = sums if self._sums is None else self._sums + sums

    def flush(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the metrics since the last call and start anew.

        Args:
            reduce: adds a tensor up over all processes.

        Returns:
            The entries of `summarize`, and `tokens_per_second`; empty if nothing was trained.
        """
        if self._sums is None or self._started is None:
            return {}
        metrics = summarize(reduce(self._sums), self._num_maskable)
        metrics["tokens_per_second"] = self._num_seen / max(time.perf_counter() - self._started, 1e-9)
        self._reset()
        return metrics
