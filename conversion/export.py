"""Exports a checkpoint to ONNX or OpenVINO: graphs, config and tokenizer in a folder, compared with PyTorch."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from llada_core.hub import fetch_checkpoint
from llada_core.loading import load_model
from modeling_llada import LLaDAMoEConfig

from .folders import check_space, check_target, complete_folder
from .graphs import Gap, block_graph, check_gaps, full_graph, measure_gaps
from .official import read_config, write_descriptions
from .runtimes import RUNTIMES, optimum_problem


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        folder: the folder made.
        exporter: what wrote the graphs, and why not Optimum if it was not.
        gaps: how far each graph is from PyTorch.
    """

    folder: Path
    exporter: str
    gaps: list[Gap]


def export_model(
    source: str | Path,
    target: str | Path,
    runtime: str,
    weights: str = "float32",
    with_block_graph: bool = True,
    force: bool = False,
    revision: str | None = None,
) -> ExportReport:
    """Export a checkpoint.

    The folder holds the full graph (`model.onnx`, or `openvino_model.xml` and `.bin`), which Optimum's own classes read
    too; the block graph (`block_…`), which `cache="prefix"` and `cache="dual"` need; config, generation config and
    tokenizer. Batch, length, block and cached columns are free in both graphs.

    Args:
        source: a folder or a Hub id.
        target: the folder to make; it appears when it is complete.
        runtime: `onnx` or `openvino`.
        weights: `float32` or `int8`, or `int4` for OpenVINO. Below float32 the logits differ; the report says how far.
        with_block_graph: also export the block graph. It doubles the folder.
        force: replace `target` if it is a checkpoint.
        revision: branch, tag or commit of a Hub id.

    Returns:
        What was done. Where Optimum is missing or does not fit the other versions, the graphs are written without it;
        they have the same inputs and outputs.

    Raises:
        ValueError: for an unknown runtime or unknown weights, a checkpoint that is not LLaDA or is quantised, LLaDA-MoE
            (see `docs/models.md`), and float32 graphs whose logits are not the model's.
        ImportError: if the runtime is not installed, or NNCF where OpenVINO's weights are compressed.
        OSError: for a source that is not there, a target that is, and a full disk.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    engine = RUNTIMES[runtime]
    if weights not in engine.weights:
        raise ValueError(f"`weights` must be one of {', '.join(engine.weights)} for {runtime}, got {weights!r}.")
    engine.check_installed(weights)
    folder = fetch_checkpoint(source, revision)
    check_target(target, force, source=folder)
    if isinstance(read_config(folder), LLaDAMoEConfig):
        raise ValueError(
            f"`{folder}` is a LLaDA-MoE, which cannot be exported to {runtime}: which experts run depends on the "
            "tokens, and the exporters have no rule for that. `llada export gguf` writes a file for llama.cpp."
        )
    problem = optimum_problem(runtime)
    model: Any = load_model(folder, dtype="float32").eval()
    files = [engine.full_file, engine.block_file] if with_block_graph else [engine.full_file]
    check_space(target, len(files) * sum(p.nbytes for p in model.parameters()))
    with complete_folder(target, force) as scratch, _quietly():
        for file, make_graph in zip(files, (full_graph, block_graph)):
            engine.write_graph(make_graph(model), scratch / file, weights, with_optimum=problem is None)
        gaps = measure_gaps(model, *(engine.open_graph(scratch / file) for file in files))
        if weights == "float32":
            check_gaps(gaps)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        write_descriptions(folder, scratch, model.config, model.generation_config, tokenizer, with_code=False)
    by = "Optimum" if problem is None else f"{engine.plain_exporter}, without Optimum: {problem}"
    return ExportReport(Path(target), by, gaps)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporters, which warn of every Python number that they trace; the comparison is what counts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
