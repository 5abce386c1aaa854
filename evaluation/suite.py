"""Suites: which benchmarks a paper reports, how each was run, and what came out; read from YAML files and checked."""

import dataclasses
import difflib
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from .records import PublishedScore

SUITES = Path(__file__).with_name("suites")
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
        raise ValueError(f"The suite `{path}` is no YAML: {error}") from None
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


def check_tasks(suite: Suite, known: Collection[str]) -> None:
    """Raise if the harness lacks a task of the suite.

    Args:
        suite: the suite.
        known: names of all tasks and groups of the harness.

    Raises:
        ValueError: naming the tasks that are missing and the nearest known ones.
    """
    missing = [benchmark.task for benchmark in suite.benchmarks if benchmark.task not in known]
    if missing:
        near = [f"{name} (near: {', '.join(difflib.get_close_matches(name, known)) or 'none'})" for name in missing]
        raise ValueError(
            f"The harness has no task {'; '.join(near)}, which `{suite.name}` asks for; lm_eval ls tasks lists them."
        )


def _build(kind: Any, fields: dict[str, Any], where: str) -> Any:
    """Make a dataclass of a mapping whose keys are exactly its fields, those with a default left out or not."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"`{key}` in {where} is unknown; the keys are {', '.join(known)}.{hint}")
    needed = [
        field.name
        for field in known.values()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in fields]
    if missing:
        raise ValueError(f"`{missing[0]}` is missing in {where}; add it.")
    return kind(**fields)
