"""What Optimum needs to know to export LLaDA: a configuration for each graph, registered for the task `fill-mask`.

Importing this file needs Optimum; see `runtimes.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from optimum.exporters.onnx.config import TextEncoderOnnxConfig
from optimum.exporters.onnx.model_patcher import PatchingSpec
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig
from torch import Tensor
from transformers.integrations import sdpa_attention

from .graphs import Axes, Graph, full_axes

TASK = "fill-mask"


class LLaDAOnnxConfig(TextEncoderOnnxConfig):
    """The full graph: `input_ids` and `attention_mask` to `logits`, any batch and length."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    ATOL_FOR_VALIDATION = 1e-4

    @property
    def PATCHING_SPECS(self) -> list[PatchingSpec]:
        """What torch's tracing exporter writes wrongly or not at all.

        Optimum replaces the norm too, but no longer once its OpenVINO exporter was imported. It adds to the list that
        it gets, so every caller gets another one.
        """
        return [
            PatchingSpec(torch, "rms_norm", _rms_norm, torch.rms_norm),
            PatchingSpec(sdpa_attention, "repeat_kv", _repeat_heads, sdpa_attention.repeat_kv),
        ]

    @property
    def inputs(self) -> Axes:
        return full_axes()[0]


class LLaDABlockOnnxConfig(LLaDAOnnxConfig):
    """The block graph; Optimum has no task for it."""

    def __init__(self, graph: Graph):
        super().__init__(graph.module.config, task=TASK)
        self.graph = graph

    @property
    def inputs(self) -> Axes:
        return self.graph.inputs

    @property
    def outputs(self) -> Axes:
        return self.graph.outputs

    def generate_dummy_inputs(self, framework: str = "pt", **kwargs: Any) -> dict[str, Any]:
        return self.graph.example


def make_config(graph: Graph) -> LLaDAOnnxConfig:
    """The configuration by which Optimum exports a graph."""
    return LLaDABlockOnnxConfig(graph) if "past" in graph.example else LLaDAOnnxConfig(graph.module.config, task=TASK)


def register() -> None:
    """Let Optimum's ONNX and OpenVINO exporters find `LLaDAOnnxConfig`; called twice, it does nothing more."""
    for backend in ("onnx", "openvino"):
        TasksManager.create_register(backend, overwrite_existing=True)("llada", TASK)(LLaDAOnnxConfig)


def _repeat_heads(states: Tensor, num_repeats: int) -> Tensor:
    """Repeat every head for the queries that share it, [batch, heads, seq, head_dim], without reading the shape.

    A shape that is read becomes a constant of the graph, for the values' heads.
    """
    return torch.stack([states] * num_repeats, dim=2).flatten(1, 2) if num_repeats > 1 else states


def _rms_norm(states: Tensor, normalized_shape: Sequence[int], weight: None = None, eps: float = 0.0) -> Tensor:
    """The norm over the last axis, written out in float32; ONNX before opset 23 has none."""
    exact = states.float()
    return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)).to(states.dtype)
