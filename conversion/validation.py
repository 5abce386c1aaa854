"""Compares exported graphs with the model they were made of, at several batches, lengths and paddings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .graphs import KeysAndValues, Runner, block_inputs, block_keys_and_values, empty_past

# Rows and columns; the second row is padded at the left, by this share of the columns.
_CASES = ((1, 1), (1, 48), (2, 33), (3, 300))
_PADDING = 0.4
# float32 rounds differently in every engine: this much, and this much of the largest logit.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5


@dataclass(frozen=True)
class Gap:
    """How far a graph is from the model, over all valid positions of all cases.

    Attributes:
        graph: which one, in words.
        difference: the largest difference of two logits.
        agreement: share of positions whose most probable token is the same, in [0, 1].
        tolerance: the largest difference that rounding explains.
    """

    graph: str
    difference: float
    agreement: float
    tolerance: float


@torch.no_grad()
def measure_gaps(model: Any, run_full: Runner, run_block: Runner | None = None) -> list[Gap]:
    """Compare the full graph; and the block graph as a full pass and as a step beside the keys and values of the rest.

    Args:
        model: the model in float32.
        run_full: the full graph.
        run_block: the block graph, None if there is none.
    """
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for ids, mask in _cases(model.config):
        expected = model(ids, attention_mask=mask).logits
        is_valid = mask.bool()
        logits = run_full({"input_ids": ids, "attention_mask": mask})["logits"]
        pairs.setdefault("full graph", []).append((logits[is_valid], expected[is_valid]))
        if run_block is None:
            continue
        logits, states = _block_pass(run_block, ids, mask, empty_past(model.config, len(ids)), 0)
        pairs.setdefault("block graph, full pass", []).append((logits[is_valid], expected[is_valid]))
        start = ids.shape[1] // 2
        past = [(key[:, :, :start], value[:, :, :start]) for key, value in states]
        logits, _ = _block_pass(run_block, ids, mask, past, start)
        is_valid = is_valid[:, start:]
        pairs.setdefault("block graph, one block", []).append((logits[is_valid], expected[:, start:][is_valid]))
    return [_gap(name, *(torch.cat(each) for each in zip(*rows))) for name, rows in pairs.items()]


def check_gaps(gaps: list[Gap]) -> None:
    """Refuse graphs whose logits are not the model's.

    Raises:
        ValueError: for a difference above the tolerance.
    """
    for gap in gaps:
        if not gap.difference <= gap.tolerance:  # NaN is no difference at all
            raise ValueError(
                f"The {gap.graph} must give the model's logits to {gap.tolerance:.1e}, got a difference of "
                f"{gap.difference:.1e}; nothing was written. The versions of the exporter and the runtime may not fit "
                "each other: install those of constraints/."
            )


def _cases(config: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids int64 [batch, length] of all tokens, and the mask int64 [batch, length]."""
    generator = torch.Generator().manual_seed(0)
    for num_rows, length in _CASES:
        ids = torch.randint(config.vocab_size, (num_rows, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1:2, : int(_PADDING * length)] = 0
        yield ids, mask


def _block_pass(
    run: Runner, ids: Tensor, mask: Tensor, past: KeysAndValues, start: int
) -> tuple[Tensor, KeysAndValues]:
    """Run the columns from `start` on; return their logits, keys and values."""
    position_ids = torch.arange(start, ids.shape[1])[None].repeat(len(ids), 1)
    outputs = run(block_inputs(ids[:, start:], mask, position_ids, past))
    return outputs["logits"], block_keys_and_values(outputs)


def _gap(name: str, logits: Tensor, expected: Tensor) -> Gap:
    return Gap(
        graph=name,
        difference=float((logits - expected).abs().max()),
        agreement=float((logits.argmax(-1) == expected.argmax(-1)).float().mean()),
        tolerance=ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * float(expected.abs().max()),
    )
