"""Finds and loads the harness's tasks and ours, and says before any model work which data are not at hand."""

import dataclasses
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from .offline_data import OFFLINE_SETS
from .suite import Benchmark, Suite, check_tasks

TASKS = Path(__file__).with_name("tasks")


def find_tasks(suite: Suite, offline_data: str | None = None) -> tuple[Suite, TaskManager]:
    """Look every task of a suite up, ours before the harness's.

    Args:
        suite: what to run.
        offline_data: folder of the packages that carry test sets; None is where they are installed.

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
    """Raise if a task runs what the model writes and nobody confirmed that; else allow it to the harness's metric.

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
    """Load the data of every benchmark.

    Args:
        suite: as `find_tasks` returns it.
        manager: as `find_tasks` returns it.
        seed: of the tasks that shuffle the options of their questions.

    Returns:
        Name of the benchmark to what the harness loaded: its tasks by name, and their groups.

    Raises:
        OSError: naming every benchmark whose data or packages are not at hand, and how to get them.
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
            f"Not everything that `{suite.name}` needs is at hand, so nothing was run. "
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
