"""The models that an evaluation runs: LLaDA by our adapter, others by the harness's own `hf`; loaded once."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model

from .records import checkpoint_hash
from .suite import Benchmark

BACKENDS = ("llada", "hf")
# Where results of single requests are kept, in the output folder.
CACHE_FOLDER = "cache"


class Backend(Protocol):
    """A loaded model.

    Attributes:
        description: of `describe_model`.
        has_published_scores: whether a suite's published scores are about such a model.
    """

    description: dict[str, Any]
    has_published_scores: bool

    def options(self, row: Benchmark) -> dict[str, Any]:
        """Return what decides a benchmark's result besides the model: the suite's options, and those named before."""

    def prepare(self, row: Benchmark) -> Any:
        """Return the model with those options, as the harness wants it; it keeps the results of requests on disk."""

    def generation_kwargs(self, row: Benchmark) -> dict[str, Any]:
        """Return what replaces a task's own `generation_kwargs`."""


class LLaDABackend:
    """A LLaDA checkpoint; every benchmark's options go to `LLaDAHarnessModel`.

    Args:
        model: folder or Hub id; None is the bundled model.
        arguments: of `LLaDAHarnessModel`; they come before a benchmark's.
        output: the evaluation's folder.
        seed: of the model's draws.
    """

    has_published_scores = True

    def __init__(self, model: str | None, arguments: dict[str, Any], output: Path, seed: int):
        self._arguments = arguments
        self._common = {"result_cache": str(output / CACHE_FOLDER), "seed": seed}
        first = get_model("llada")(pretrained=model, **self._common | arguments)
        self._loaded = {"pretrained": first.model, "tokenizer": first.tokenizer}
        self.description = describe_model(first.model.name_or_path, "llada", arguments.get("revision", "main"))

    def options(self, row: Benchmark) -> dict[str, Any]:
        """See `Backend`."""
        return row.options | self._arguments

    def prepare(self, row: Benchmark) -> Any:
        """See `Backend`."""
        return get_model("llada")(**self._common | row.options | self._arguments | self._loaded)

    def generation_kwargs(self, row: Benchmark) -> dict[str, Any]:
        """See `Backend`; the model's arguments come before a task's anyway."""
        return {}


class HuggingFaceBackend:
    """Any causal model of transformers, by the harness's `hf`; of a benchmark's options only the length holds.

    Args:
        model: folder or Hub id.
        arguments: of the harness's `hf`.
        output: the evaluation's folder.
    """

    has_published_scores = False

    def __init__(self, model: str, arguments: dict[str, Any], output: Path):
        self._arguments = arguments
        device = {"device": "cuda" if torch.cuda.is_available() else "cpu"}
        loaded = get_model("hf")(pretrained=model, **device | arguments)
        self.description = describe_model(model, "hf", arguments.get("revision", "main"))
        # The harness's cache knows requests only, not the model that answered them.
        identity = json.dumps([self.description, arguments], sort_keys=True, default=str)
        name = f"hf-{hashlib.sha256(identity.encode()).hexdigest()[:16]}-{loaded.rank}.db"
        self._model = CachingLM(loaded, str(output / CACHE_FOLDER / name))

    def options(self, row: Benchmark) -> dict[str, Any]:
        """See `Backend`."""
        return self.generation_kwargs(row) | self._arguments

    def prepare(self, row: Benchmark) -> Any:
        """See `Backend`."""
        return self._model

    def generation_kwargs(self, row: Benchmark) -> dict[str, Any]:
        """See `Backend`."""
        length = row.options.get("max_new_tokens")
        return {} if length is None else {"max_gen_toks": length}


def load_backend(name: str, model: str | None, arguments: dict[str, Any], output: Path, seed: int) -> Backend:
    """Load the model for one of `BACKENDS`; see the classes for the arguments.

    Raises:
        ValueError: for an unknown back end or argument, and for `hf` without a model.
        OSError: for a checkpoint that does not exist or cannot be reached.
    """
    if name == "llada":
        return LLaDABackend(model, arguments, output, seed)
    if name != "hf":
        raise ValueError(f"`--backend` must be one of {', '.join(BACKENDS)}, got {name!r}.")
    if model is None:
        raise ValueError("`--model` must name a checkpoint with --backend hf, got none.")
    return HuggingFaceBackend(model, arguments, output)


def describe_model(name: str, backend: str, revision: str) -> dict[str, Any]:
    """Name a model for a record, without the folders above it.

    Args:
        name: folder or Hub id; one of the Hub was loaded before, so that its files are in the Hub's cache.
        backend: one of `BACKENDS`.
        revision: branch, tag or commit on the Hub.

    Returns:
        `name`, `sha256` (see `checkpoint_hash`), `backend`, and for a Hub id its `revision`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return {"name": folder.resolve().name, "sha256": checkpoint_hash(folder), "backend": backend}
    snapshot = snapshot_download(name, revision=revision, local_files_only=True)
    return {"name": name, "sha256": checkpoint_hash(snapshot), "backend": backend, "revision": revision}
