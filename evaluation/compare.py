"""Puts the records of two evaluations side by side: difference, its standard error, and which settings differ."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from llada_core.records import EvaluationRecord, Score


class ScoreDifference(NamedTuple):
    """One metric in two records.

    Attributes:
        name: benchmark.
        metric: the metric.
        first: score in A; None if A lacks it.
        second: score in B; None if B lacks it.
    """

    name: str
    metric: str
    first: Score | None
    second: Score | None

    @property
    def difference(self) -> float | None:
        """B minus A."""
        return None if self.first is None or self.second is None else self.second.value - self.first.value

    @property
    def standard_error(self) -> float | None:
        """Of the difference, as if both were independent; None if one of them has none.

        Over the same questions the true one is smaller where the models err alike: this one is on the safe side.
        """
        if self.first is None or self.second is None:
            return None
        errors = (self.first.standard_error, self.second.standard_error)
        return None if None in errors else math.hypot(*errors)  # type: ignore[arg-type]


class SettingDifference(NamedTuple):
    """A setting with two values.

    Attributes:
        name: path of the setting, e.g. `settings.shots`, `packages.torch`, `model.sha256`.
        first: in A; None if A lacks it.
        second: in B; None if B lacks it.
        benchmarks: where it differs so.
    """

    name: str
    first: Any
    second: Any
    benchmarks: tuple[str, ...]


class Comparison(NamedTuple):
    """What two sets of records say about each other."""

    scores: list[ScoreDifference]
    settings: list[SettingDifference]


def compare_records(first: Sequence[EvaluationRecord], second: Sequence[EvaluationRecord]) -> Comparison:
    """Compare two sets of records, benchmark by benchmark.

    Args:
        first: records of A, one per benchmark.
        second: records of B.

    Returns:
        All metrics of both, in the order of A and then of what only B has, and what differs in models, settings, seed,
        number of questions, code, packages and machine of the benchmarks that both have.

    Raises:
        ValueError: if one side has two records of a benchmark, or both have none in common.
    """
    ours, theirs = _by_name(first, "A"), _by_name(second, "B")
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ValueError(
            f"`A` and `B` must share a benchmark, got {', '.join(ours) or 'none'} and {', '.join(theirs) or 'none'}."
        )
    scores = []
    for name in ours | theirs:
        a, b = (records[name].results if name in records else {} for records in (ours, theirs))
        scores += [ScoreDifference(name, metric, a.get(metric), b.get(metric)) for metric in a | b]
    return Comparison(scores, _setting_differences([(ours[name], theirs[name]) for name in shared]))


def _by_name(records: Iterable[EvaluationRecord], side: str) -> dict[str, EvaluationRecord]:
    found: dict[str, EvaluationRecord] = {}
    for record in records:
        if record.name in found:
            raise ValueError(
                f"`{side}` must have one record per benchmark, got several of {record.name}; name the files instead of "
                "their folder."
            )
        found[record.name] = record
    return found


def _setting_differences(pairs: Iterable[tuple[EvaluationRecord, EvaluationRecord]]) -> list[SettingDifference]:
    """List what differs, equal differences of several benchmarks in one row."""
    rows: dict[str, tuple[str, Any, Any, list[str]]] = {}
    for first, second in pairs:
        ours, theirs = dict(_settings(first)), dict(_settings(second))
        for name in ours | theirs:
            values = (ours.get(name), theirs.get(name))
            if values[0] != values[1]:
                rows.setdefault(f"{name} {values}", (name, *values, []))[3].append(first.name)
    found = [SettingDifference(name, a, b, tuple(benchmarks)) for name, a, b, benchmarks in rows.values()]
    order = list(dict.fromkeys(row.name for row in found))
    return sorted(found, key=lambda row: order.index(row.name))


def _settings(record: EvaluationRecord) -> Iterable[tuple[str, Any]]:
    for part in ("model", "settings", "seed", "num_questions", "dataset", "code", "packages", "machine"):
        yield from _flatten(part, getattr(record, part))


def _flatten(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{name}.{key}", inner)
    else:
        yield name, value
