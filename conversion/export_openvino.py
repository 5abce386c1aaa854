"""Writes graphs for OpenVINO, in float32 or with int8 or int4 weights, and opens them."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .graphs import Graph, Runner, Tensors
from .optimum_support import require_packages

FULL_FILE, BLOCK_FILE = "openvino_model.xml", "openvino_block_model.xml"
WEIGHTS = ("float32", "int8", "int4")
PLAIN_EXPORTER = "openvino.convert_model"
# The engine computes in bfloat16 where the processor can; this keeps it at float32.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
# Weights that share a scale at 4 bits: the largest power of two in this range that divides every width.
_SMALLEST_GROUP, _LARGEST_GROUP = 16, 128


def check_installed(weights: str) -> None:
    """Raise an ImportError that says what to install, if anything is missing."""
    require_packages(["openvino"], extra="openvino")
    if weights != "float32":
        require_packages(["nncf"], extra="optimum")


def write_graph(graph: Graph, path: Path, weights: str, with_optimum: bool) -> None:
    """Write a graph: `path` (.xml) and the weights beside it (.bin).

    Args:
        graph: the graph.
        path: the file to make.
        weights: `float32`; `int8`: one scale per output; `int4`: one scale per group of inputs (per output where the
            widths share no group), embedding and head at 8 bits. Computation is in floats in every case. The latter two
            need NNCF.
        with_optimum: convert by Optimum instead of by `openvino.convert_model`.
    """
    import openvino

    converted = _convert_with_optimum(graph, path.parent) if with_optimum else _convert(graph)
    if weights != "float32":
        converted = _compress(converted, weights, graph.module.config)
    openvino.save_model(converted, path, compress_to_fp16=False)


def open_graph(path: Path, options: dict[str, Any] | None = None, device: str = "CPU") -> Runner:
    """Open a converted graph.

    Args:
        path: the .xml file.
        options: OpenVINO's properties; None is `FLOAT32`.
        device: OpenVINO's name of the device.
    """
    import openvino

    compiled = openvino.Core().compile_model(path, device, FLOAT32 if options is None else options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Tensors) -> Tensors:
        outputs = compiled({name: tensor.numpy(force=True) for name, tensor in inputs.items()})
        return {name: torch.from_numpy(outputs[index]) for index, name in enumerate(names)}

    return run


def _convert(graph: Graph) -> Any:
    import openvino

    examples = [tensor for value in graph.example.values() for tensor in _tensors(value)]
    shapes = []
    for tensor, axes in zip(examples, graph.inputs.values()):
        shape = [-1 if axis in axes else size for axis, size in enumerate(tensor.shape)]
        kind = openvino.Type.f32 if tensor.is_floating_point() else openvino.Type.i64
        shapes.append((openvino.PartialShape(shape), kind))
    with torch.no_grad():
        converted = openvino.convert_model(graph.module, example_input=graph.example, input=shapes)
    for ports, names in ((converted.inputs, graph.inputs), (converted.outputs, graph.outputs)):
        for port, name in zip(ports, names):
            port.get_tensor().set_names({name})
    return converted


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [tensor for pair in value for tensor in pair]


def _convert_with_optimum(graph: Graph, folder: Path) -> Any:
    """Let Optimum write the graph, somewhere in `folder`, and read it again."""
    import openvino
    from optimum.exporters.openvino.convert import export

    from .optimum_configs import make_config

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file will be gone
    with TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / FULL_FILE
        export(graph.module, make_config(graph), path, stateful=False, library_name="transformers")
        return core.read_model(path)


def _compress(converted: Any, weights: str, config: Any) -> Any:
    import nncf

    # The frequencies of the rotary embedding are the constant side of a matmul too, but no weights.
    rest = {"ignored_scope": nncf.IgnoredScope(patterns=[".*aten::matmul.*"], validate=False)}
    if weights == "int8":
        return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM, **rest)
    group = math.gcd(config.hidden_size, config.intermediate_size, _LARGEST_GROUP)
    # -1 is one scale per output.
    group = group if group >= _SMALLEST_GROUP else -1
    return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=group, **rest)
