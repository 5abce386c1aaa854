"""The graphs that are exported: a pass over whole rows, and a pass over some columns beside cached keys and values.

Keys are cached after rotation and attention reads positions, not columns, so the cached columns may stand in any order.
With no cached column at all, the block graph is a full pass too.

Shape legend: B batch, T columns, P cached columns, L columns computed, H key/value heads, D head width.
"""

from collections.abc import Callable
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


class FullGraph(nn.Module):
    """Ids int64 [B, T] and mask int64 [B, T] to logits [B, T, vocab], at the positions 0..T-1."""

    def __init__(self, model: LLaDAModelLM):
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class BlockGraph(nn.Module):
    """Logits of some columns, and their keys and values, from their ids and the keys and values of all others.

    Ids int64 [B, L], mask int64 [B, P + L] (cached columns first), positions int64 [B, L], and for each layer keys and
    values [B, H, P, D]; out come logits [B, L, vocab] and for each layer keys and values [B, H, L, D].
    """

    def __init__(self, model: LLaDAModelLM):
        super().__init__()
        self.model = model
        self.config = model.config

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


def block_inputs(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: KeysAndValues) -> Tensors:
    """The block graph's inputs by name; shapes as in `BlockGraph`, the mask of any type."""
    tensors = {"input_ids": input_ids, "attention_mask": attention_mask.long(), "position_ids": position_ids}
    for layer, (key, value) in enumerate(past):
        tensors |= {f"past.{layer}.key": key, f"past.{layer}.value": value}
    return tensors


def block_keys_and_values(outputs: Tensors) -> KeysAndValues:
    """The block's own keys and values, layer by layer, from the block graph's outputs by name."""
    num_layers = (len(outputs) - 1) // 2
    return [(outputs[f"present.{layer}.key"], outputs[f"present.{layer}.value"]) for layer in range(num_layers)]


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
