"""One JSON file per evaluation: which weights, which code, which settings, on what machine, with what result."""

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .digests import json_digest
from .resume import write_whole

SUFFIX = ".record.json"
# Raised when a field changes its meaning.
FORMAT = 1
PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "datasets", "accelerate", "numpy")


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        value: as the metric gives it; an accuracy lies in [0, 1].
        standard_error: of `value`, in its unit; None if the metric has none.
    """

    value: float
    standard_error: float | None = None


@dataclasses.dataclass(frozen=True)
class PublishedScore:
    """What a paper reports for the same benchmark.

    Attributes:
        metric: name of the metric among the results that it is compared with.
        value: in the unit of that metric.
        tolerance: how far a faithful run may lie from `value`, same unit.
        source: where it was published.
    """

    metric: str
    value: float
    tolerance: float
    source: str


@dataclasses.dataclass(frozen=True)
class EvaluationRecord:
    """Everything needed to make a number again, and the number.

    Attributes:
        name: benchmark or experiment, e.g. MMLU.
        model: `name` (folder's name or Hub id), `sha256` of its files (`checkpoint_hash`) or None, `backend`, ….
        settings: every option that decides the result, e.g. task, shots, method, length, steps; JSON values.
        results: metric to score; the first one stands for the benchmark where there is room for one.
        seed: of all randomness.
        started: when, ISO 8601, UTC.
        seconds: how long it took.
        code: version of this package, git commit of the checkout or None, whether the checkout was modified.
        packages: versions of the packages that compute.
        machine: processor, its number of cores, accelerators, system.
        suite: suite it belongs to, if any.
        dataset: Hub id of the data, or package and file; None if it was generated.
        num_questions: how many questions were asked; None where that has no meaning.
        published: what the paper reports, if anything.
        remarks: what came up, e.g. how many contexts were truncated, or where the settings depart from the paper's.
    """

    name: str
    model: dict[str, Any]
    settings: dict[str, Any]
    results: dict[str, Score]
    seed: int
    started: str
    seconds: float
    code: dict[str, Any]
    packages: dict[str, str]
    machine: dict[str, Any]
    suite: str | None = None
    dataset: str | None = None
    num_questions: int | None = None
    published: PublishedScore | None = None
    remarks: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.published is not None and self.published.metric not in self.results:
            raise ValueError(
                f"`published` must name a metric of the results ({', '.join(self.results)}), got "
                f"{self.published.metric!r}."
            )

    @property
    def is_within_tolerance(self) -> bool | None:
        """Whether the result agrees with the published one; None if nothing was published."""
        if self.published is None:
            return None
        return abs(self.results[self.published.metric].value - self.published.value) <= self.published.tolerance


def write_record(folder: str | Path, record: EvaluationRecord) -> Path:
    """Write `record` into `folder`, under a name made of its benchmark and settings: the same run overwrites itself.

    Raises:
        ValueError: if a setting is no JSON value.
    """
    try:
        fields = {"format": FORMAT, **dataclasses.asdict(record), "is_within_tolerance": record.is_within_tolerance}
        text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"The record of `{record.name}` must hold JSON values only: {error}.") from None
    decides = [record.model, record.settings, record.seed, record.suite]
    slug = re.sub(r"[^a-z0-9]+", "-", record.name.lower()).strip("-")
    path = Path(folder) / f"{slug}-{json_digest(decides)[:8]}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [text.encode()])
    return path


def read_record(path: str | Path) -> EvaluationRecord:
    """Read a record.

    Raises:
        ValueError: for a file that is no record, or one with fields that this version does not know or misses.
        OSError: for a file that cannot be read.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not JSON: {error}") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ValueError(f"`{path}` is not an evaluation record of format {FORMAT}; name a file *{SUFFIX}.")
    fields.pop("is_within_tolerance", None)
    try:
        fields["results"] = {metric: Score(**score) for metric, score in fields["results"].items()}
        fields["published"] = PublishedScore(**fields["published"]) if fields.get("published") else None
        record = EvaluationRecord(**fields)
        if not all(isinstance(score.value, (int, float)) for score in record.results.values()):
            raise TypeError("a `value` is not a number")
        if not isinstance(record.name, str) or not isinstance(record.settings, dict):
            raise TypeError("`name` must be text and `settings` an object")
        return record
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The fields of the record `{path}` are not those of format {FORMAT}: {error}.") from None


def read_records(path: str | Path) -> list[EvaluationRecord]:
    """Read one record, or all of a folder in the order of their names.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist; name a record (*{SUFFIX}) or a folder of records.")
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(
            f"The folder `{path}` holds no records (*{SUFFIX}); name an evaluation's output folder."
        )
    return [read_record(file) for file in files]


def environment() -> dict[str, Any]:
    """Describe code, packages and machine: the fields `code`, `packages` and `machine` of a record."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return {
        "code": {
            "version": _version("llada-hf"),
            "git_commit": commit or None,
            "is_modified": bool(changes) if commit else None,
        },
        "packages": {name: found for name, found in versions.items() if found is not None},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def utc_now() -> str:
    """Tell the time as a record's `started` spells it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def processor_name() -> str:
    """Name this machine's processor; Linux keeps the name in a file."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine() or "unknown"


def _git(*arguments: str) -> str:
    """Ask git about the checkout this file lies in; empty if it lies in none, or there is no git."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
