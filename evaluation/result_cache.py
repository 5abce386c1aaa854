r"""Results on disk as they come, so that an evaluation that was interrupted goes on where it ended.

A folder holds files of JSON lines, `{"key": …, "kind": …, "result": …}`. A key is a hash of all that decides the
result, see `request_key`, so that any number of evaluations may share a folder and never take each other's results.

Every process writes a file of its own, and a new one at every start: no file has two writers, and nothing is ever
written behind a line that was cut off. A result is on disk once its line ends in \n; what follows the last \n of a
file is left out, and computed again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


class Job(NamedTuple):
    """One thing to compute.

    Attributes:
        key: of its result, see `request_key`.
        length: its length in tokens: jobs of like length are computed together, the longest first.
        work: whatever the computation takes.
    """

    key: str
    length: int
    work: Any


class ResultCache:
    """The results in a folder, those of earlier runs and of this one.

    Args:
        folder: made if it does not exist. None keeps nothing.
        rank: number of this process, from 0; part of its file's name.

    Raises:
        ValueError: if `folder` is a file.
    """

    def __init__(self, folder: str | Path | None, rank: int = 0):
        self.folder = None if folder is None else Path(folder).expanduser()
        self.rank = rank
        self._results: dict[str, Any] | None = None
        self._file: BinaryIO | None = None
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`result_cache` must be a folder, but `{folder}` is a file; name another.")

    def find(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return those results that are there, by key.

        Raises:
            ValueError: for a line that is no result.
        """
        if self._results is None:
            self._results = self._read()
        return {key: self._results[key] for key in keys if key in self._results}

    def add(self, kind: str, results: dict[str, Any]) -> None:
        """Write results, JSON values by key; they are safe from a kill when this returns.

        Args:
            kind: what they are results of, for the reader.
            results: may be empty.
        """
        if self.folder is None or not results:
            return
        if self._results is not None:
            self._results.update(results)
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"results-{time.time_ns()}-{self.rank}-{os.getpid()}.jsonl").open("xb")
        for key, result in results.items():
            line = json.dumps({"key": key, "kind": kind, "result": result}, ensure_ascii=False)
            self._file.write(line.encode() + b"\n")
        self._file.flush()

    def _read(self) -> dict[str, Any]:
        if self.folder is None or not self.folder.is_dir():
            return {}
        results = {}
        for path in sorted(self.folder.glob("results-*.jsonl")):
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    results[record["key"]] = record["result"]
                except (ValueError, KeyError, TypeError):
                    raise ValueError(
                        f"{path}:{number} is no result of an evaluation; delete the line, or name another "
                        "`result_cache`."
                    ) from None
        return results


def request_key(kind: str, settings: dict[str, Any], request: Any) -> str:
    """Name a result by all that decides it.

    Args:
        kind: what is computed.
        settings: the model's digest and every option that matters; JSON values.
        request: the question; JSON values.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    decides = json.dumps([kind, settings, request], sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()


def run_jobs(
    kind: str,
    jobs: Sequence[Job],
    compute: Callable[[list[Any], Callable[[int], Any]], list[Any]],
    cache: ResultCache,
    group_size: int,
    progress: Callable[[int], Any],
) -> list[Any]:
    """Compute what the cache does not hold, group by group, each of which is written as a whole.

    Rounding depends on what is computed together. The groups are therefore those of all jobs, in an order of their own,
    whatever the cache holds: after an interruption the rest is computed in the same company as without it.

    Args:
        kind: what is computed.
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
            cache.add(kind, fresh)
            results.update(fresh)
    return [results[job.key] for job in jobs]
