"""What the experiments say about their numbers: intervals, Markdown tables, records."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llada_evaluation.records import EvaluationRecord, Score, environment, utc_now, write_record

# Two-sided 95 % points of Student's t by degrees of freedom; above the last one, the normal distribution's.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL_95 = 1.96


class Interval(NamedTuple):
    """A mean over independent values: runs, or questions.

    Attributes:
        mean: of the values.
        standard_error: of the mean; None if it is unknown, as that of one run.
        half_width: of the 95 % confidence interval; None likewise.
    """

    mean: float
    standard_error: float | None = None
    half_width: float | None = None


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with its 95 % confidence interval by Student's t, for independent values of about normal distribution.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("`values` must hold at least one number, got none.")
    if len(values) == 1:
        return Interval(values[0])
    error = statistics.stdev(values) / len(values) ** 0.5
    freedom = len(values) - 1
    factor = _T_95[freedom - 1] if freedom <= len(_T_95) else _NORMAL_95
    return Interval(statistics.fmean(values), error, factor * error)


def proportion_interval(num_right: int, count: int) -> Interval:
    """Share of `count` independent questions, with the normal approximation of its 95 % confidence interval."""
    share = num_right / count
    error = (share * (1.0 - share) / count) ** 0.5
    return Interval(share, error, _NORMAL_95 * error)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


@dataclass(frozen=True)
class Experiment:
    """A run of an experiment, from its making on; the outcome is written with what is needed to repeat it.

    Attributes:
        name: of the experiment and of its table's file.
        settings: every option that decides the result; JSON values.
        seed: of all randomness; the first one, if there are several.
        started: when, as a record spells it.
    """

    name: str
    settings: dict[str, Any]
    seed: int = 0
    started: str = field(default_factory=utc_now)
    _clock: float = field(default_factory=time.perf_counter)

    def write(self, folder: Path, table: str, results: Mapping[str, Interval], model: dict[str, Any]) -> None:
        """Write the table as `<name>.md`, and table, results and circumstances as a record."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(table + "\n", encoding="utf-8")
        scores = {name: Score(interval.mean, interval.standard_error) for name, interval in results.items()}
        run: dict[str, Any] = {"settings": self.settings, "seed": self.seed, "started": self.started, **environment()}
        seconds = round(time.perf_counter() - self._clock, 1)
        write_record(folder, EvaluationRecord(name=self.name, model=model, results=scores, seconds=seconds, **run))
