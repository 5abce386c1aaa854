"""The runtimes that exported models run in: what each needs, and how it writes, quantises and opens a graph."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from packaging.requirements import Requirement
from torch import Tensor
from torch.export import Dim

from llada_core.lazy import install_line

from .graphs import Graph, Runner, Tensors

# Runtime -> the distributions its exporter and its classes need, in the versions of the extra `optimum`.
NEEDED = {
    "onnx": ("transformers", "optimum", "optimum-onnx", "onnxruntime"),
    "openvino": ("transformers", "optimum", "optimum-intel", "openvino"),
}
_WAY_OUT = "make an environment for it: make setup-optimum, or pip install '.[optimum]' in a new one."
# A protocol buffer holds 2 GiB; above this many bytes the weights of an ONNX file go to a file of their own.
LARGEST_FILE = 2**31 - 2**27
_OPSET = 18
# OpenVINO computes in bfloat16 where the processor can; this keeps it at float32.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
# Weights that share a scale at 4 bits: the largest power of two in this range that divides every width.
_SMALLEST_GROUP, _LARGEST_GROUP = 16, 128


class OnnxRuntime:
    """ONNX files, in float32 or with int8 weights, and ONNX Runtime.

    Attributes:
        full_file, block_file: names of the two graphs in an exported folder.
        weights: types that it can store weights in.
        plain_exporter: what writes its graphs where Optimum does not.
    """

    full_file, block_file = "model.onnx", "block_model.onnx"
    weights = ("float32", "int8")
    plain_exporter = "torch.onnx.export"

    def check_installed(self, weights: str) -> None:
        """Raise an ImportError that says what to install, if anything is missing."""
        with_torch = optimum_problem("onnx") is not None
        require_packages(["onnx", "onnxruntime"] + ["onnxscript"] * with_torch, extra="onnx")

    def write_graph(self, graph: Graph, path: Path, weights: str, with_optimum: bool) -> None:
        """Write a graph.

        Args:
            graph: the graph.
            path: the file to make; weights that do not fit go to another one beside it.
            weights: `float32`, or `int8`: 8 bits for the weights of the linear layers, one scale per output, and for
                their inputs, with a scale found in every pass. The embedding, products of two computed tensors
                (attention, rotary angles) and each block's `ff_out` stay float32: the input of `ff_out` is itself a
                product, whose outliers leave no room in 8 bits for the rest.
            with_optimum: export by Optimum instead of by torch.
        """
        is_large = sum(p.nbytes for p in graph.module.parameters()) > LARGEST_FILE
        write = _write_onnx_with_optimum if with_optimum else partial(_write_onnx_with_torch, is_large=is_large)
        if weights == "float32":
            write(graph, path)
            return
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with TemporaryDirectory(dir=path.parent) as folder:
            float_path = Path(folder) / path.name
            write(graph, float_path)
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

    def open_graph(
        self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), options: Any = None
    ) -> Runner:
        """Open an ONNX file with ONNX Runtime's execution providers, the preferred one first, and `SessionOptions`."""
        from onnxruntime import InferenceSession

        session = InferenceSession(str(path), sess_options=options, providers=list(providers))
        names = [output.name for output in session.get_outputs()]

        def run(inputs: Tensors) -> Tensors:
            outputs = session.run(None, {name: tensor.numpy(force=True) for name, tensor in inputs.items()})
            return {name: torch.from_numpy(array) for name, array in zip(names, outputs)}

        return run


class OpenVINORuntime:
    """OpenVINO's files, in float32 or with int8 or int4 weights; attributes as of `OnnxRuntime`."""

    full_file, block_file = "openvino_model.xml", "openvino_block_model.xml"
    weights = ("float32", "int8", "int4")
    plain_exporter = "openvino.convert_model"

    def check_installed(self, weights: str) -> None:
        require_packages(["openvino"], extra="openvino")
        if weights != "float32":
            require_packages(["nncf"], extra="optimum")

    def write_graph(self, graph: Graph, path: Path, weights: str, with_optimum: bool) -> None:
        """Write a graph: `path` (.xml) and the weights beside it (.bin); arguments as of `OnnxRuntime.write_graph`.

        Args:
            weights: `float32`; `int8`: one scale per output; `int4`: one scale per group of inputs (per output where
                the widths share no group), embedding and head at 8 bits. Computation is in floats in every case. The
                latter two need NNCF.
        """
        import openvino

        converted = _convert_with_optimum(graph, path.parent) if with_optimum else _convert_to_openvino(graph)
        if weights != "float32":
            converted = _compress(converted, weights, graph.module.config)
        openvino.save_model(converted, path, compress_to_fp16=False)

    def open_graph(self, path: Path, options: dict[str, Any] | None = None, device: str = "CPU") -> Runner:
        """Open a .xml file with OpenVINO's properties, `FLOAT32` for None, on the device that it calls `device`."""
        import openvino

        compiled = openvino.Core().compile_model(path, device, FLOAT32 if options is None else options)
        names = [output.get_any_name() for output in compiled.outputs]

        def run(inputs: Tensors) -> Tensors:
            outputs = compiled({name: tensor.numpy(force=True) for name, tensor in inputs.items()})
            return {name: torch.from_numpy(outputs[index]) for index, name in enumerate(names)}

        return run


# Both have the same attributes and methods.
RUNTIMES: dict[str, Any] = {"onnx": OnnxRuntime(), "openvino": OpenVINORuntime()}


# --- what is installed -----------------------------------------------------------------------------------------------


def _installed_version(name: str) -> str | None:
    """Return a distribution's version, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def require_packages(modules: Iterable[str], extra: str, user: str = "The export") -> None:
    """Raise unless every module can be imported.

    Raises:
        ImportError: naming the extra of this package that brings them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{user} needs {', '.join(f'`{name}`' for name in missing)}; install it with: {install_line(extra)}"
        )


def optimum_problem(runtime: str) -> str | None:
    """Say what keeps Optimum from working with LLaDA in a runtime of `NEEDED`; None if nothing does."""
    return find_problem(NEEDED[runtime], requires("llada-hf") or [], _installed_version)


def require_optimum(runtime: str, name: str) -> None:
    """Raise an ImportError that says what is missing or too new for `name`, unless Optimum works with `runtime`."""
    problem = optimum_problem(runtime)
    if problem is not None:
        raise ImportError(f"`{name}` needs Optimum, and {problem}; {_WAY_OUT}")


def find_problem(
    names: Iterable[str], requirements: Iterable[str], find_version: Callable[[str], str | None]
) -> str | None:
    """Compare what is installed with the requirements of the extra `optimum`.

    Args:
        names: distributions to look at.
        requirements: requirements of this package, as its metadata lists them.
        find_version: the installed version of a distribution, None if there is none.
    """
    parsed = [Requirement(text) for text in requirements]
    wanted = {each.name: each for each in parsed if each.marker and each.marker.evaluate({"extra": "optimum"})}
    for name in names:
        found = find_version(name)
        if found is None:
            return f"`{name}` is not installed"
        if name in wanted and not wanted[name].specifier.contains(found, prereleases=True):
            return f"`{name}` must be {wanted[name].specifier}, got {found}"
    return None


# --- ONNX ------------------------------------------------------------------------------------------------------------


def _nodes_behind_gates(path: Path) -> list[str]:
    """Name the matmuls that take in a product of two computed tensors."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {constant.name for constant in graph.initializer}
    products = {n.output[0] for n in graph.node if n.op_type == "Mul" and constants.isdisjoint(n.input)}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[0] in products]


def _write_onnx_with_torch(graph: Graph, path: Path, is_large: bool) -> None:
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


def _write_onnx_with_optimum(graph: Graph, path: Path) -> None:
    from optimum.exporters.onnx import export

    from .optimum_configs import make_config

    # Optimum finds out itself whether the weights fit; its repair of dynamic axes knows no nested inputs.
    export(graph.module, make_config(graph), path, opset=_OPSET, disable_dynamic_axes_fix=True)


# --- OpenVINO --------------------------------------------------------------------------------------------------------


def _convert_to_openvino(graph: Graph) -> Any:
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


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for pair in value for tensor in pair]


def _convert_with_optimum(graph: Graph, folder: Path) -> Any:
    """Let Optimum write the graph, somewhere in `folder`, and read it again."""
    import openvino
    from optimum.exporters.openvino.convert import export

    from .optimum_configs import make_config

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file will be gone
    with TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / OpenVINORuntime.full_file
        export(graph.module, make_config(graph), path, stateful=False, library_name="transformers")
        return core.read_model(path)


def _compress(converted: Any, weights: str, config: Any) -> Any:
    import nncf

    # The frequencies of the rotary embedding are the constant side of a matmul too, but no weights.
    rest = {"ignored_scope": nncf.IgnoredScope(patterns=[".*aten::matmul.*"], validate=False)}
    if weights == "int8":
        return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM, **rest)
    group = math.gcd(config.hidden_size, config.intermediate_size, _LARGEST_GROUP)
    size = group if group >= _SMALLEST_GROUP else -1  # one scale per output
    return nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=size, **rest)
