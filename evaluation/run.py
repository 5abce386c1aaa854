"""Runs a suite: finds tasks and data, loads the model, asks the harness benchmark by benchmark, writes the records."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from lm_eval import evaluate
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model
from transformers import PretrainedConfig, set_seed

from llada_core.digests import checkpoint_hash, json_digest
from llada_core.records import EvaluationRecord, Score, environment, utc_now, write_record
from modeling_llada.configuration_llada import MODEL_TYPES

from .likelihood import is_number
from .suite import Benchmark, Suite, check_unsafe_code, dataset_of, find_tasks, load_tasks

BACKENDS = ("llada", "hf")
# Where results of single requests are kept, in the output folder.
CACHE_FOLDER = "cache"

# The harness's choice of few-shot examples; the released commands leave it at this default.
FEWSHOT_SEED = 1234
# What the harness reports beside metrics.
_NO_METRICS = ("name", "alias", "sample_len", "sample_count")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a suite is run; every default of an evaluation is here, in the suite or in the model's class.

    Attributes:
        output: folder of the records, and in `cache` of the requests' results, from which the same run goes on.
        model: folder or Hub id; None is the bundled model, with the back end `llada`.
        backend: `llada`, or `hf` for other causal models.
        arguments: of the back end's model; they override a suite's.
        limit: questions of each task, the first ones; None is all.
        chat: put questions as a user's turn; None as the suite says.
        seed: of the model's draws and of tasks that shuffle.
        offline_data: folder of the packages that carry test sets; None is where they are installed.
        confirm_run_unsafe_code: allow tasks that run what the model writes.
    """

    output: Path
    model: str | None = None
    backend: str = "llada"
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    limit: int | None = None
    chat: bool | None = None
    seed: int = 0
    offline_data: str | None = None
    confirm_run_unsafe_code: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"`--backend` must be one of {', '.join(BACKENDS)}, got {self.backend!r}.")
        if "seed" in self.arguments:
            raise ValueError(f"`seed` is not taken in --model-args here, got {self.arguments['seed']}; pass --seed.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"`--limit` must be at least 1, got {self.limit}; leave it out for all questions.")


def run_suite(
    suite: Suite, options: RunOptions, report: Callable[[EvaluationRecord, Path], None] | None = None
) -> list[EvaluationRecord]:
    """Evaluate a model on every benchmark of a suite.

    Args:
        suite: what to ask.
        options: how.
        report: called with each record and its file as soon as it is written.

    Returns:
        The records, in the order of the suite; empty in all but the first of several processes.

    Raises:
        ValueError: for a task that does not exist, code that may not run, and arguments that make no sense.
        OSError: for data or a checkpoint that is not available.
    """
    suite, manager = find_tasks(suite, options.offline_data)
    check_unsafe_code(suite, manager, options.confirm_run_unsafe_code)
    tasks = load_tasks(suite, manager, options.seed)
    _check_methods(suite, tasks)
    backend = _load_llada(options) if options.backend == "llada" else _load_hf(options)
    records = []
    for row in suite.benchmarks:
        record = _run_benchmark(suite, row, tasks[row.name], dataset_of(manager, row.task), backend, options)
        if record is None:
            continue
        path = write_record(options.output, record)
        records.append(record)
        if report is not None:
            report(record, path)
    return records


@dataclasses.dataclass(frozen=True)
class Backend:
    """A loaded model.

    Attributes:
        description: of `describe_model`.
        has_published_scores: whether a suite's published scores are about such a model.
        options: returns what decides a benchmark's result besides the model: the suite's options, and the arguments.
        prepare: returns the model with those options, as the harness wants it; it keeps the results of requests on
            disk.
        generation_kwargs: returns what replaces a task's own `generation_kwargs`.
    """

    description: dict[str, Any]
    has_published_scores: bool
    options: Callable[[Benchmark], dict[str, Any]]
    prepare: Callable[[Benchmark], Any]
    generation_kwargs: Callable[[Benchmark], dict[str, Any]]


def _load_llada(options: RunOptions) -> Backend:
    """Load a LLaDA checkpoint; every benchmark's options go to `LLaDAHarnessModel`."""
    arguments, model_of = options.arguments, get_model("llada")
    common = {"result_cache": str(options.output / CACHE_FOLDER), "seed": options.seed}
    first = model_of(pretrained=options.model, **common | arguments)
    loaded = {"pretrained": first.model, "tokenizer": first.tokenizer}
    return Backend(
        description=describe_model(first.model.name_or_path, "llada", arguments.get("revision", "main")),
        has_published_scores=True,
        options=lambda row: row.options | arguments,
        prepare=lambda row: model_of(**common | row.options | arguments | loaded),
        # The model's arguments override a task's anyway.
        generation_kwargs=lambda row: {},
    )


def _load_hf(options: RunOptions) -> Backend:
    """Load any causal model of transformers by the harness's `hf`; of a benchmark's options only the length counts."""
    if options.model is None:
        raise ValueError("`--model` must name a checkpoint with --backend hf, got none.")
    arguments, device = options.arguments, "cuda" if torch.cuda.is_available() else "cpu"
    places = {name: arguments[name] for name in ("revision", "subfolder", "gguf_file") if name in arguments}
    if PretrainedConfig.get_config_dict(options.model, **places)[0].get("model_type") in MODEL_TYPES:
        raise ValueError(
            f"`--backend` must be llada for the LLaDA model {options.model}, got 'hf', which takes the logits of a "
            "position for the next token's."
        )
    loaded = get_model("hf")(pretrained=options.model, **{"device": device} | arguments)
    description = describe_model(options.model, "hf", arguments.get("revision", "main"))
    # The harness's cache knows requests only, not the model that answered them.
    identity = json_digest([description, {name: str(value) for name, value in arguments.items()}])
    model = CachingLM(loaded, str(options.output / CACHE_FOLDER / f"hf-{identity[:16]}-{loaded.rank}.db"))

    def generation_kwargs(row: Benchmark) -> dict[str, Any]:
        length = row.options.get("max_new_tokens")
        return {} if length is None else {"max_gen_toks": length}

    return Backend(
        description=description,
        has_published_scores=False,
        options=lambda row: generation_kwargs(row) | arguments,
        prepare=lambda row: model,
        generation_kwargs=generation_kwargs,
    )


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


def _run_benchmark(
    suite: Suite, row: Benchmark, loaded: Any, dataset: str | None, backend: Backend, options: RunOptions
) -> EvaluationRecord | None:
    """Ask the harness; None in all but the first of several processes."""
    chat = suite.chat if options.chat is None else options.chat
    started, begun = utc_now(), time.monotonic()
    method = _configure_tasks(loaded["tasks"].values(), row, backend)
    set_seed(options.seed)
    model = backend.prepare(row)
    results: Any = evaluate(
        lm=model,
        task_dict=loaded,
        limit=options.limit,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=options.confirm_run_unsafe_code,
        log_samples=False,
    )
    if results is None:
        return None
    num_questions = sum(counts["effective"] for counts in results["n-samples"].values())
    shown = {"shots": results["n-shot"].get(row.task), "method": method, "chat": chat, "limit": options.limit}
    scores = _scores(row, results["results"][row.task])
    first = next(iter(scores))
    # The first metric of each member of a group, such as the subjects of MMLU.
    parts = {name: found[first] for name, found in results["results"].items() if name != row.task and first in found}
    remarks = {"note": row.note, "num_truncated": getattr(model, "num_truncated", None), "parts": parts or None}
    return EvaluationRecord(
        name=row.name,
        suite=suite.name,
        dataset=dataset,
        model=backend.description,
        settings={"task": row.task, **shown, "options": backend.options(row), "fewshot_seed": FEWSHOT_SEED},
        results=scores,
        published=suite.published_score(row, num_questions) if backend.has_published_scores else None,
        num_questions=num_questions,
        seed=options.seed,
        started=started,
        seconds=round(time.monotonic() - begun, 2),
        remarks={name: value for name, value in remarks.items() if value is not None},
        **environment(),
    )


def _configure_tasks(tasks: Iterable[Any], row: Benchmark, backend: Backend) -> str:
    """Set what the suite says about a benchmark's tasks, and return their method.

    A task that fixes the number of its examples at 0 keeps it, as with the harness's own command.
    """
    method = ""
    for task in tasks:
        method = _method(task)
        if method == "generation":
            task.set_config("generation_kwargs", backend.generation_kwargs(row), update=True)
        if (fixed := task.get_config("num_fewshot")) != 0:
            task.set_config("num_fewshot", (fixed or 0) if row.shots is None else row.shots)
        task.set_fewshot_seed(FEWSHOT_SEED)
    return method


def _check_methods(suite: Suite, loaded: dict[str, Any]) -> None:
    for row in suite.benchmarks:
        method = _method(next(iter(loaded[row.name]["tasks"].values())))
        if row.method not in (None, method):
            raise ValueError(f"`method` of {row.name} in {suite.name} is {row.method}, but its task asks for {method}.")


def _method(task: Any) -> str:
    """Tell whether a task asks for text or for likelihoods."""
    return "generation" if task.get_config("output_type") == "generate_until" else "likelihood"


def _scores(row: Benchmark, metrics: dict[str, Any]) -> dict[str, Score]:
    """Read the harness's flat mapping; a metric that is no finite number is left out, that of the suite comes first."""
    found = {}
    for key, value in metrics.items():
        name, _, chosen = key.partition(",")
        if key in _NO_METRICS or name.endswith("_stderr") or not _is_finite(value):
            continue
        error: Any = metrics.get(f"{name}_stderr,{chosen}")
        found[key] = Score(float(value), float(error) if _is_finite(error) else None)
    if not found or (row.metric is not None and row.metric not in found):
        raise ValueError(
            f"`metric` of {row.name} is {row.metric}, but the task `{row.task}` gives {', '.join(found) or 'none'}."
        )
    return dict(sorted(found.items(), key=lambda score: score[0] != row.metric))


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
