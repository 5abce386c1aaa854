"""Computes each request once: in groups, whose results are on disk before the next group begins."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llada_core.resume import RecordFile

FILE_NAME = "results.jsonl"


class Job(NamedTuple):
    """One thing to compute.

    Attributes:
        key: a digest of all that decides the result.
        length: its length in tokens: jobs of like length are computed together, the longest first.
        work: whatever the computation takes.
    """

    key: str
    length: int
    work: Any


class ResultCache:
    """The results in a folder, those of earlier runs and of this one.

    Keys name all that decides a result, so any number of evaluations may share a folder and never take each other's
    results. Every process writes a file of its own, and a new one at every start.

    Args:
        folder: made if it does not exist. None keeps nothing.
        rank: number of this process, from 0.

    Raises:
        ValueError: if `folder` is a file.
    """

    def __init__(self, folder: str | Path | None, rank: int = 0):
        self._file = None
        self._results: dict[str, Any] | None = None
        if folder is None:
            return
        folder = Path(folder).expanduser()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"`result_cache` must be a folder, but `{folder}` is a file; name another.")
        self._file = RecordFile(folder / FILE_NAME, part=f"{time.time_ns()}-{rank}-{os.getpid()}")

    def find(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return those results that are there, by key.

        Raises:
            ValueError: for a line that is not a result.
        """
        if self._file is None:
            return {}
        if self._results is None:
            self._results = {key: record["result"] for key, record in self._file.find().items()}
        return {key: self._results[key] for key in keys if key in self._results}

    def add(self, results: dict[str, Any]) -> None:
        """Write results, JSON values by key; they are safe from a kill when this returns."""
        if self._file is None:
            return
        if self._results is not None:
            self._results.update(results)
        self._file.write(*({"key": key, "result": result} for key, result in results.items()))


def run_jobs(
    jobs: Sequence[Job],
    compute: Callable[[list[Any], Callable[[int], Any]], list[Any]],
    cache: ResultCache,
    group_size: int,
    progress: Callable[[int], Any],
) -> list[Any]:
    """Compute what the cache does not hold, group by group, each of which is written as a whole.

    Rounding depends on what is computed together. The groups are therefore those of all jobs, in an order of their own,
    whatever the cache holds: after an interruption the rest is computed in the same batches as without it.

    Args:
        jobs: in any order; of several with one key, one is computed.
        compute: returns the results of a list of `work`, JSON values, and tells `progress` of each as it is done.
        cache: where results are looked for, and written to.
        group_size: jobs per group, at least 1; so many are lost at most in an interruption.
        progress: told how many more of the jobs with different keys are done.

    Returns:
        A result per job.
    """
    order = sorted({job.key: job for job in jobs}.values(), key=lambda job: (-job.length, job.key))
    results = cache.find(job.key for job in order)
    for start in range(0, len(order), group_size):
        group = order[start : start + group_size]
        missing = [job for job in group if job.key not in results]
        progress(len(group) - len(missing))
        if missing:
            fresh = dict(zip((job.key for job in missing), compute([job.work for job in missing], progress)))
            cache.add(fresh)
            results.update(fresh)
    return [results[job.key] for job in jobs]
