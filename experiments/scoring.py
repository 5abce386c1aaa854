"""The log-probability of rows of tokens under either kind of model.

Shape legend: N rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_evaluation.likelihood import LikelihoodOptions, estimate_log_likelihoods

from .fitting import is_diffusion

# Rows that an autoregressive model scores together.
SCORE_BATCH = 128


class RowScores(NamedTuple):
    """Log-probability of each row given its first token.

    Attributes:
        values: nats; float32 [rows]. Of a LLaDA a lower bound, estimated without bias.
        standard_errors: of the estimates, nats; float32 [rows]. 0 of an autoregressive model, which is exact.
    """

    values: Tensor
    standard_errors: Tensor


@torch.no_grad()
def score_rows(model: Any, rows: Sequence[list[int]], num_samples: int) -> RowScores:
    """Score rows of ids.

    Args:
        model: LLaDA (Eq. 6) or autoregressive (the chain rule).
        rows: ids, of any lengths of at least 2.
        num_samples: noisy copies of each row for a LLaDA, at least 2.
    """
    if is_diffusion(model):
        pairs = [(row[:1], row[1:]) for row in rows]
        estimates = estimate_log_likelihoods(model, pairs, LikelihoodOptions(num_samples=num_samples))
        values = torch.tensor([estimate.log_likelihood for estimate in estimates])
        return RowScores(values, torch.tensor([estimate.standard_error for estimate in estimates]))
    values = torch.zeros(len(rows))
    for length in {len(row) for row in rows}:
        numbers = torch.tensor([number for number, row in enumerate(rows) if len(row) == length])
        for part in numbers.split(SCORE_BATCH):
            ids = torch.tensor([rows[number] for number in part])
            logits = model(ids[:, :-1], use_cache=False).logits.float()
            values[part] = -F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").sum(-1)
    return RowScores(values, torch.zeros(len(rows)))
