"""Tables of evaluation results: beside what was published, and two evaluations side by side."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from llada_core.records import EvaluationRecord, Score
from llada_evaluation.compare import Comparison
from llada_evaluation.decode import Outcome

# Values of settings longer than this are cut in tables; the records hold them whole.
_LONGEST = 40
# Columns of a table that no terminal bounds.
_PIPE_WIDTH = 1000


def print_records(records: Iterable[EvaluationRecord]) -> None:
    """Print a benchmark a line: the first metric with its standard error, and the published one with its tolerance."""
    table = _table("benchmark", "method", "shots", "questions", "metric", "score", "published", "within")
    for record in records:
        metric, score = next(iter(record.results.items()))
        published = record.published
        table.add_row(
            record.name,
            str(record.settings.get("method", "")),
            _shown(record.settings.get("shots")),
            _shown(record.num_questions),
            metric,
            _score(score),
            f"{published.value:.4f} ± {published.tolerance:.4f}" if published else "",
            {True: "yes", False: "no", None: ""}[record.is_within_tolerance],
        )
    _print(table)


def print_comparison(comparison: Comparison) -> None:
    """Print every metric in A and B with the difference, then the settings that differ."""
    scores = _table("benchmark", "metric", "A", "B", "B − A")
    for row in comparison.scores:
        difference = "" if row.difference is None else f"{row.difference:+.4f}"
        error = "" if row.standard_error is None else f" ± {row.standard_error:.4f}"
        scores.add_row(row.name, row.metric, _score(row.first), _score(row.second), difference + error)
    _print(scores)
    if not comparison.settings:
        print("All settings are equal.")
        return
    shared = {row.name for row in comparison.scores if row.difference is not None}
    settings = _table("what differs", "A", "B", "in")
    for setting in comparison.settings:
        places = "all" if len(setting.benchmarks) == len(shared) else ", ".join(setting.benchmarks)
        settings.add_row(setting.name, _shown(setting.first), _shown(setting.second), places)
    _print(settings)


def print_decoding(outcomes: Iterable[Outcome], area: float) -> None:
    """Print a setting of `llada evaluate decode` a line, and the area under accuracy against parallelism."""
    table = _table("setting", "accuracy", "tokens per pass", "tokens per second", "tokens", "passes")
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            _score(Score(outcome.accuracy, outcome.standard_error)),
            f"{outcome.tokens_per_pass:.2f}",
            f"{outcome.tokens_per_second:.1f}",
            str(outcome.num_tokens),
            str(outcome.num_passes),
        )
    _print(table)
    print(f"AUP: {area:.1f}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _print(table: Table) -> None:
    """Print to stdout; in a pipe no column is cut, however wide the table."""
    is_terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if is_terminal else _PIPE_WIDTH).print(table)


def _score(score: Score | None) -> str:
    if score is None:
        return "–"
    error = "" if score.standard_error is None else f" ± {score.standard_error:.4f}"
    return f"{score.value:.4f}{error}"


def _shown(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
