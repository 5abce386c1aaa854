"""`llada export`: writes checkpoints for other runtimes; each sub-command imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .convert import Force, Revision, Source, Target
from .options import check_choice, quiet_transformers, reports_errors
from .screen import busy

app = typer.Typer(no_args_is_help=True, help="Export a checkpoint; each sub-command has its own --help.")

# What each runtime takes for --weights.
WEIGHTS = {
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "int8", "int4"),
    "gguf": ("f32", "f16", "q8_0"),
}
BlockGraph = Annotated[
    bool,
    typer.Option(
        "--block-graph/--no-block-graph",
        help="Also export the graph for --cache prefix and dual, which doubles the folder.",
    ),
]


@app.command()
@reports_errors
def onnx(
    source: Source,
    target: Target,
    weights: Annotated[str, typer.Option(help="float32 or int8 (linear layers only).")] = "float32",
    block_graph: BlockGraph = True,
    revision: Revision = None,
    force: Force = False,
) -> None:
    """Export to ONNX, for ONNX Runtime and others; generate with: llada generate --model DST."""
    _export(source, target, "onnx", weights, block_graph, revision, force)


@app.command()
@reports_errors
def openvino(
    source: Source,
    target: Target,
    weights: Annotated[str, typer.Option(help="float32, int8 or int4.")] = "float32",
    block_graph: BlockGraph = True,
    revision: Revision = None,
    force: Force = False,
) -> None:
    """Export to OpenVINO; generate with: llada generate --model DST."""
    _export(source, target, "openvino", weights, block_graph, revision, force)


@app.command()
@reports_errors
def gguf(
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="DST", help="File to create.", show_default=False)],
    weights: Annotated[str, typer.Option(help="f32, f16 or q8_0.")] = "f16",
    pre_tokenizer: Annotated[
        str | None, typer.Option(help="llama.cpp's name of the rule that splits text.", show_default=False)
    ] = None,
    revision: Revision = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DST.")] = False,
) -> None:
    """Export to a GGUF file, for llama.cpp."""
    from llada_core.hub import local_folder

    check_choice("weights", weights, WEIGHTS["gguf"])
    local_folder(source)
    with busy("Starting"):
        from llada_conversion import export_gguf

    file = export_gguf(source, target, weights, pre_tokenizer, force=force, revision=revision)
    print(f"GGUF file: {file} ({file.stat().st_size / 1e6:,.1f} MB)")


def _export(
    source: str, target: Path, runtime: str, weights: str, block_graph: bool, revision: str | None, force: bool
) -> None:
    from llada_core.hub import local_folder

    check_choice("weights", weights, WEIGHTS[runtime])
    local_folder(source)
    with busy("Starting"):
        from llada_conversion import export_model

    quiet_transformers()
    report = export_model(
        source, target, runtime, weights, with_block_graph=block_graph, force=force, revision=revision
    )
    print(f"Exported by {report.exporter}")
    for gap in report.gaps:
        print(
            f"{gap.graph}: logits within {gap.difference:.1e} of PyTorch, {gap.agreement:.2%} of the most probable "
            "tokens equal"
        )
    print(f"Exported model: {report.folder}")
