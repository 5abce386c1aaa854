"""Writes graphs as ONNX files, in float32 or with int8 weights, and opens them with ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import Dim

from .graphs import Graph, Runner, Tensors
from .optimum_support import optimum_problem, require_packages

FULL_FILE, BLOCK_FILE = "model.onnx", "block_model.onnx"
WEIGHTS = ("float32", "int8")
PLAIN_EXPORTER = "torch.onnx.export"
# A protocol buffer holds 2 GiB; above this many bytes the weights go to a file of their own.
LARGEST_FILE = 2**31 - 2**27
_OPSET = 18


def check_installed(weights: str) -> None:
    """Raise an ImportError that says what to install, if anything is missing."""
    with_torch = optimum_problem("onnx") is not None
    require_packages(["onnx", "onnxruntime"] + ["onnxscript"] * with_torch, extra="onnx")


def write_graph(graph: Graph, path: Path, weights: str, with_optimum: bool) -> None:
    """Write a graph.

    Args:
        graph: the graph.
        path: the file to make; weights that do not fit go to another one beside it.
        weights: `float32`, or `int8`: 8 bits for the weights of the linear layers, one scale per output, and for what
            comes in there, with a scale found in every pass. Float32 stay the embedding, products of two computed
            tensors (attention, rotary angles), and each block's `ff_out`: what comes in there is itself a product,
            whose outliers leave no room in 8 bits for the rest.
        with_optimum: export by Optimum instead of by torch.
    """
    is_large = sum(p.numel() * p.element_size() for p in graph.module.parameters()) > LARGEST_FILE
    write = _write_with_optimum if with_optimum else _write_with_torch
    if weights == "float32":
        write(graph, path, is_large)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory(dir=path.parent) as folder:
        float_path = Path(folder) / path.name
        write(graph, float_path, is_large)
        quantize_dynamic(
            float_path,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_nodes_behind_gates(float_path),
            use_external_data_format=is_large,
            extra_options={"MatMulConstBOnly": True},
        )


def open_graph(path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), options: Any = None) -> Runner:
    """Open an ONNX file.

    Args:
        path: the file.
        providers: ONNX Runtime's execution providers, the preferred one first.
        options: its `SessionOptions`.
    """
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), sess_options=options, providers=list(providers))
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Tensors:
        outputs = session.run(None, {name: tensor.numpy(force=True) for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, outputs)}

    return run


def _nodes_behind_gates(path: Path) -> list[str]:
    """Name the matmuls that take in a product of two computed tensors."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {constant.name for constant in graph.initializer}
    products = {n.output[0] for n in graph.node if n.op_type == "Mul" and constants.isdisjoint(n.input)}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[0] in products]


def _write_with_torch(graph: Graph, path: Path, is_large: bool) -> None:
    torch.onnx.export(
        graph.module,
        kwargs=graph.example,
        f=str(path),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=_dynamic_shapes(graph),
        opset_version=_OPSET,
        dynamo=True,
        external_data=is_large,
        verbose=False,
    )


def _dynamic_shapes(graph: Graph) -> dict[str, Any]:
    """The dynamic axes in the nesting of the example."""
    axes = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in graph.inputs.items()}
    shapes: dict[str, Any] = {name: axes[name] for name in graph.example if name in axes}
    if "past" in graph.example:
        layers = range(len(graph.example["past"]))
        shapes["past"] = [(axes[f"past.{layer}.key"], axes[f"past.{layer}.value"]) for layer in layers]
    return shapes


def _write_with_optimum(graph: Graph, path: Path, _: bool) -> None:
    from optimum.exporters.onnx import export

    from .optimum_configs import make_config

    # Optimum finds out itself whether the weights fit; its repair of dynamic axes knows no nested inputs.
    export(graph.module, make_config(graph), path, opset=_OPSET, disable_dynamic_axes_fix=True)
