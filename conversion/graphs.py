"""The graphs that are exported, a pass over whole rows and one over some columns, and how far they are from the model.

Keys are cached after rotation and attention reads positions, not columns, so the cached columns may stand in any order.
With no cached column at all, the block graph is a full pass too.

Shape legend: B batch, T columns, P cached columns, L columns computed, H key/value heads, D head width.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeling_llada import LLaDAModelLM
from modeling_llada.cache_llada import BlockCache

Axes = dict[str, dict[int, str]]
KeysAndValues = list[tuple[Tensor, Tensor]]
Tensors = dict[str, Tensor]
# An exported graph, opened: inputs by name to outputs by name, on the CPU.
Runner = Callable[[Tensors], Tensors]

# Sizes of the inputs that a graph is traced with: all different, and above 1, which tracers take for constants.
_EXAMPLE_BATCH, _EXAMPLE_BLOCK, _EXAMPLE_PAST = 2, 5, 3
# Rows and columns; the second row is padded at the left, by this share of the columns.
_CASES = ((1, 1), (1, 48), (2, 33), (3, 300))
_PADDING = 0.4
# float32 rounds differently in every engine: this much, and this much of the largest logit.
ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 1e-4, 1e-5


@dataclass(frozen=True)
class Graph:
    """What an exporter needs to know of a graph.

    Attributes:
        module: computes it.
        example: inputs to trace with, by the names of the module's arguments.
        inputs, outputs: in order, the dynamic axes of each and what they are called.
    """

    module: nn.Module
    example: dict[str, Any]
    inputs: Axes
    outputs: Axes


class _ModelGraph(nn.Module):
    def __init__(self, model: LLaDAModelLM):
        super().__init__()
        self.model = model
        self.config = model.config


class FullGraph(_ModelGraph):
    """Ids int64 [B, T] and mask int64 [B, T] to logits [B, T, vocab], at the positions 0..T-1."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class BlockGraph(_ModelGraph):
    """Logits of some columns, and their keys and values, from their ids and the keys and values of all others.

    Ids int64 [B, L], mask int64 [B, P + L] (cached columns first), positions int64 [B, L], and for each layer keys and
    values [B, H, P, D]; out come logits [B, L, vocab] and for each layer keys and values [B, H, L, D].
    """

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: KeysAndValues
    ) -> tuple[Tensor, ...]:
        cache = _CacheBeside(past)
        logits = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache
        ).logits
        return logits, *cache.present


def full_graph(model: LLaDAModelLM) -> Graph:
    """The pass over whole rows; the inputs and outputs are those of Optimum's task `fill-mask`."""
    ids = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_BLOCK, dtype=torch.long)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Graph(FullGraph(model), example, *full_axes())


def block_graph(model: LLaDAModelLM) -> Graph:
    """The pass over some columns beside cached ones."""
    ids = torch.zeros(_EXAMPLE_BATCH, _EXAMPLE_BLOCK, dtype=torch.long)
    example = {
        "input_ids": ids,
        "attention_mask": torch.ones(_EXAMPLE_BATCH, _EXAMPLE_PAST + _EXAMPLE_BLOCK, dtype=torch.long),
        "position_ids": torch.arange(_EXAMPLE_BLOCK)[None].expand_as(ids).contiguous(),
        "past": empty_past(model.config, _EXAMPLE_BATCH, _EXAMPLE_PAST),
    }
    return Graph(BlockGraph(model), example, *block_axes(model.config.num_hidden_layers))


def full_axes() -> tuple[Axes, Axes]:
    """Inputs and outputs of the full graph with their dynamic axes."""
    axes = {0: "batch_size", 1: "sequence_length"}
    return {"input_ids": axes, "attention_mask": axes}, {"logits": axes}


def block_axes(num_layers: int) -> tuple[Axes, Axes]:
    """Inputs and outputs of the block graph with their dynamic axes."""
    block, past_length = "block_length", "past_length"
    names = [f"{layer}.{kind}" for layer in range(num_layers) for kind in ("key", "value")]
    inputs: Axes = {
        "input_ids": {0: "batch_size", 1: block},
        "attention_mask": {0: "batch_size", 1: f"{past_length} + {block}"},
        "position_ids": {0: "batch_size", 1: block},
    }
    inputs |= {f"past.{name}": {0: "batch_size", 2: past_length} for name in names}
    outputs: Axes = {"logits": {0: "batch_size", 1: block}}
    return inputs, outputs | {f"present.{name}": {0: "batch_size", 2: block} for name in names}


def empty_past(config: Any, batch_size: int, length: int = 0) -> KeysAndValues:
    """Keys and values, zero, of `length` columns for every layer; float32 [batch, heads, length, head_dim] each."""
    head_dim = config.hidden_size // config.num_attention_heads
    shape = (batch_size, config.num_key_value_heads, length, head_dim)
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]


def run_block(
    run: Runner, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: KeysAndValues
) -> tuple[Tensor, KeysAndValues]:
    """Run an opened block graph; shapes as in `BlockGraph`, the mask of any type.

    Returns:
        The logits, and for each layer the keys and values of the columns computed.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask.long(), "position_ids": position_ids}
    for layer, (key, value) in enumerate(past):
        inputs |= {f"past.{layer}.key": key, f"past.{layer}.value": value}
    outputs = run(inputs)
    states = [(outputs[f"present.{layer}.key"], outputs[f"present.{layer}.value"]) for layer in range(len(past))]
    return outputs["logits"], states


class _CacheBeside(BlockCache):
    """Hands the layers given keys and values beside their own, and collects their own."""

    def __init__(self, past: KeysAndValues):
        super().__init__(num_layers=len(past), num_columns=0)
        self.past = past
        self.present: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.present += [key, value]
        past_key, past_value = self.past[layer_idx]
        return torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)


# --- comparison with the model ---------------------------------------------------------------------------------------


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
def measure_gaps(model: Any, full: Runner, block: Runner | None = None) -> list[Gap]:
    """Compare the full graph; and the block graph as a full pass and as a step beside the keys and values of the rest.

    Args:
        model: the model in float32.
        full: the full graph.
        block: the block graph, None if there is none.
    """
    pairs: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for ids, mask in _cases(model.config):
        expected = model(ids, attention_mask=mask).logits
        is_valid, positions = mask.bool(), torch.arange(ids.shape[1])[None].repeat(len(ids), 1)
        logits = full({"input_ids": ids, "attention_mask": mask})["logits"]
        pairs["full graph"].append((logits[is_valid], expected[is_valid]))
        if block is None:
            continue
        logits, states = run_block(block, ids, mask, positions, empty_past(model.config, len(ids)))
        pairs["block graph, full pass"].append((logits[is_valid], expected[is_valid]))
        start = ids.shape[1] // 2
        past = [(key[:, :, :start], value[:, :, :start]) for key, value in states]
        logits, _ = run_block(block, ids[:, start:], mask, positions[:, start:], past)
        is_valid[:, :start] = False
        pairs["block graph, one block"].append((logits[is_valid[:, start:]], expected[is_valid]))
    return [_gap(name, *(torch.cat(each) for each in zip(*rows))) for name, rows in pairs.items()]


def check_gaps(gaps: list[Gap]) -> None:
    """Refuse graphs whose logits are not the model's.

    Raises:
        ValueError: for a difference above the tolerance.
    """
    for gap in gaps:
        if not gap.difference <= gap.tolerance:  # a difference that is NaN fails too
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


def _gap(name: str, logits: Tensor, expected: Tensor) -> Gap:
    return Gap(
        graph=name,
        difference=float((logits - expected).abs().max()),
        agreement=float((logits.argmax(-1) == expected.argmax(-1)).float().mean()),
        tolerance=ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * float(expected.abs().max()),
    )
