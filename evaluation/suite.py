"""Suites: which benchmarks a paper reports, how each was run, and what came out; and the harness's tasks behind them.

Suites are YAML files. Whatever is wrong with one, or not available, is said before any model is loaded.
"""

import dataclasses
import difflib
import math
import os
import random
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

from llada_core.records import PublishedScore

from .offline import OFFLINE_SETS

SUITES = Path(__file__).with_name("suites")
TASKS = Path(__file__).with_name("tasks")
METHODS = ("likelihood", "generation")
# How far a faithful run may lie from a published one: this many binomial standard errors, and the suite's allowance.
STANDARD_ERRORS = 2.0


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One row of a suite.

    Attributes:
        name: as the paper calls it.
        task: name of the harness's task or group of tasks.
        method: likelihood or generation; None is whatever the task asks for.
        metric: the score that counts, name and filter as the harness joins them: acc,none; None is the task's first.
        shots: solved examples before each question; None leaves it to the task.
        num_questions: size of the whole set.
        published: the paper's score in per cent, if it has one.
        options: arguments of the LLaDA model: mc_num, cfg_scale, or max_new_tokens, steps, block_length ….
        note: where these settings depart from the paper's, or what the paper leaves open.
    """

    name: str
    task: str
    method: str | None = None
    metric: str | None = None
    shots: int | None = None
    num_questions: int | None = None
    published: float | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str | None = None

    def __post_init__(self) -> None:
        if self.method not in (None, *METHODS):
            raise ValueError(f"`method` of {self.name} must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if self.published is not None and not (0 <= self.published <= 100 and self.num_questions and self.metric):
            raise ValueError(
                f"`published` of {self.name} must be in per cent, with `metric` and `num_questions` beside it, got "
                f"{self.published}, {self.metric} and {self.num_questions}."
            )


@dataclasses.dataclass(frozen=True)
class Suite:
    """Benchmarks of one model.

    Attributes:
        name: name of the file without its ending.
        description: one sentence.
        benchmarks: in the order of the paper's table.
        model: Hub id of the checkpoint that the published scores belong to, if any.
        source: where scores and settings come from.
        chat: put every question as a user's turn.
        allowance: per cent points that a score may differ beyond chance, for another prompt or arithmetic.
    """

    name: str
    description: str
    benchmarks: tuple[Benchmark, ...]
    model: str | None = None
    source: str | None = None
    chat: bool = False
    allowance: float = 1.0

    def published_score(self, benchmark: Benchmark, num_questions: int) -> PublishedScore | None:
        """Return what the paper reports, with the tolerance for a run over `num_questions` of the questions."""
        if benchmark.published is None or benchmark.metric is None:
            return None
        share = benchmark.published / 100
        by_chance = STANDARD_ERRORS * math.sqrt(share * (1 - share) / num_questions)
        tolerance = by_chance + self.allowance / 100
        return PublishedScore(benchmark.metric, round(share, 6), round(tolerance, 6), self.source or self.name)


def suite_names() -> list[str]:
    """List the suites that come with the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def read_suite(name: str | Path) -> Suite:
    """Read a suite by its name, or from a YAML file of the same form.

    Raises:
        ValueError: for an unknown name, a key that is unknown or missing, and a value that makes no sense.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"`--suite` must be one of {', '.join(suite_names())}, or a YAML file that exists, got {str(name)!r}."
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The suite `{path}` is not YAML: {error}") from None
    rows = fields.pop("benchmarks", None) if isinstance(fields, dict) else None
    if not (isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values())):
        raise ValueError(
            f"`benchmarks` of the suite `{path}` must map each benchmark's name to its settings, got {rows!r}; "
            f"{SUITES / 'offline.yaml'} is an example."
        )
    benchmarks = tuple(
        _build(Benchmark, {"name": title, **row}, f"{path.name}: {title}") for title, row in rows.items()
    )
    return _build(Suite, {"name": path.stem, "benchmarks": benchmarks, **fields}, path.name)


def choose(suite: str | None, names: Sequence[str]) -> Suite:
    """Pick what to run: a suite, some rows of a suite, or the harness's tasks as they are.

    Args:
        suite: name or file of a suite, or None.
        names: of benchmarks or tasks of the suite, empty for all; without a suite, of tasks, with nothing published.

    Raises:
        ValueError: if there is nothing to run, and for a name that the suite lacks.
    """
    if suite is None:
        if not names:
            raise ValueError(f"`--suite` ({', '.join(suite_names())}) or `--tasks` must say what to run, got neither.")
        return Suite("tasks", "Tasks of the harness.", tuple(Benchmark(name, task=name) for name in names))
    found = read_suite(suite)
    known = [row.name for row in found.benchmarks]
    for name in names:
        if not any(name in (row.name, row.task) for row in found.benchmarks):
            raise ValueError(f"`--tasks` must name benchmarks of {found.name} ({', '.join(known)}), got {name!r}.")
    rows = [row for row in found.benchmarks if not names or row.name in names or row.task in names]
    return dataclasses.replace(found, benchmarks=tuple(rows))


def find_tasks(suite: Suite, offline_data: str | None = None) -> tuple[Suite, TaskManager]:
    """Look every task of a suite up, ours before the harness's; `offline_data` is that of `RunOptions`.

    Returns:
        The suite, in which every tag of the harness is replaced by the tasks that carry it, and where to load them.

    Raises:
        ValueError: for a task that does not exist.
    """
    metadata = {"offline_data": offline_data} if offline_data is not None else {}
    ours = {path.stem for path in TASKS.glob("*.yaml")}
    # The harness takes a while to read its thousands of tasks.
    only_ours = all(benchmark.task in ours for benchmark in suite.benchmarks)
    manager = TaskManager(include_path=str(TASKS), include_defaults=not only_ours, metadata=metadata)
    check_tasks(suite, manager.all_tasks)
    rows: list[Benchmark] = []
    for row in suite.benchmarks:
        if row.task in manager.all_tags:
            tagged = sorted(manager.task_index[row.task].tags)
            rows += [dataclasses.replace(row, name=name, task=name) for name in tagged]
        else:
            rows.append(row)
    return dataclasses.replace(suite, benchmarks=tuple(rows)), manager


def check_unsafe_code(suite: Suite, manager: TaskManager, confirmed: bool) -> None:
    """Raise if a task runs what the model writes without confirmation; else allow it to the harness's metric.

    Raises:
        ValueError: naming the benchmarks.
    """
    unsafe = [
        row.name for row in suite.benchmarks if any(leaf.get("unsafe_code") for leaf in leaf_configs(manager, row.task))
    ]
    if unsafe and not confirmed:
        safe = [row.name for row in suite.benchmarks if row.name not in unsafe]
        others = f", or name the others: --tasks {','.join(safe)}" if safe else ""
        raise ValueError(
            f"`--confirm-run-unsafe-code` is needed for {', '.join(unsafe)}, where programs that the model writes are "
            f"run on this machine; pass it{others}."
        )
    if unsafe:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"


def load_tasks(suite: Suite, manager: TaskManager, seed: int) -> dict[str, Any]:
    """Load the data of every benchmark of what `find_tasks` returned; tasks that shuffle options draw from `seed`.

    Returns:
        Name of the benchmark to what the harness loaded: its tasks by name, and their groups.

    Raises:
        OSError: naming every benchmark whose data or packages are not available, and how to get them.
    """
    loaded: dict[str, Any] = {}
    missing: dict[str, BaseException] = {}
    for row in suite.benchmarks:
        random.seed(seed)
        try:
            loaded[row.name] = manager.load([row.task])
        except (OSError, ImportError, AssertionError) as error:
            missing[row.name] = error
    if missing:
        raise OSError(
            f"Not everything that `{suite.name}` needs is available, so nothing was run. "
            + _how_to_get({row.name: row.task for row in suite.benchmarks if row.name in missing}, missing, manager)
        )
    return loaded


def leaf_configs(manager: TaskManager, name: str) -> Iterator[dict[str, Any]]:
    """Yield the configurations, as their files have them, of a task or of all tasks in a group or with a tag."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    if name in manager.all_tags:
        for task in sorted(entry.tags):
            yield from leaf_configs(manager, task)
    elif "group" in (config := entry.cfg or {}):
        yield from _members(manager, config)
    else:
        yield config


def dataset_of(manager: TaskManager, task: str) -> str | None:
    """Name the data of a task, or of a group's first one: a Hub id, or a package and its file."""
    leaf = next(leaf_configs(manager, task), {})
    offline_set = (leaf.get("dataset_kwargs") or {}).get("offline_set")
    return OFFLINE_SETS[offline_set].source if offline_set in OFFLINE_SETS else leaf.get("dataset_path")


def check_tasks(suite: Suite, known: Collection[str]) -> None:
    """Raise if a task of the suite is not among the `known` names of tasks and groups, and name the nearest ones."""
    missing = [benchmark.task for benchmark in suite.benchmarks if benchmark.task not in known]
    if missing:
        near = [f"{name} (near: {', '.join(difflib.get_close_matches(name, known)) or 'none'})" for name in missing]
        raise ValueError(
            f"The harness has no task {'; '.join(near)}, which `{suite.name}` asks for; lm_eval ls tasks lists them."
        )


def _members(manager: TaskManager, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the configurations of a group, which names its members or holds groups."""
    for child in group.get("task") or []:
        if isinstance(child, dict) and isinstance(child.get("task"), list):
            yield from _members(manager, child)
        else:
            name = child if isinstance(child, str) else child.get("task") or child["group"]
            yield from leaf_configs(manager, name)


def _how_to_get(tasks: dict[str, str], errors: dict[str, BaseException], manager: TaskManager) -> str:
    """Say for each benchmark what it lacks; what is to come from the Hub in one sentence."""
    on_hub, sentences = {}, []
    for name, task in tasks.items():
        leaf = next(leaf_configs(manager, task), {})
        reason = " ".join(str(errors[name]).split()).rstrip(".")
        if isinstance(errors[name], (ImportError, AssertionError)) or leaf.get("dataset_path") is None:
            sentences.append(f"{name}: {reason}.")
            continue
        # The harness's tasks that run code take their metric from the Hub too.
        metric = " and the metric code_eval" if leaf.get("unsafe_code") else ""
        on_hub[f"{name} ({leaf['dataset_path']}{metric})"] = reason
    if on_hub:
        sentences.append(
            f"From the Hub: {', '.join(on_hub)}; the first says: {next(iter(on_hub.values()))}. Run once with a "
            "network and copy the folder HF_HOME, or fetch data with: hf download --repo-type dataset NAME (gated "
            "ones, such as GPQA, after accepting their terms on the Hub and hf auth login). HF_HUB_OFFLINE=1 spares "
            "waiting for a network that is not there."
        )
    return " ".join(sentences)


def _build(kind: Any, fields: dict[str, Any], where: str) -> Any:
    """Make a dataclass of a mapping whose keys are exactly its fields, those with a default left out or not."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"`{key}` in {where} is unknown; the keys are {', '.join(known)}.{hint}")
    for field in known.values():
        if field.name not in fields and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"`{field.name}` is missing in {where}; add it.")
    return kind(**fields)
