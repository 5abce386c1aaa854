"""The reversal experiment's numbers as intervals over seeds, a table, and a figure beside the published ones."""

import statistics
from pathlib import Path
from typing import Any

from ..summaries import Interval, markdown_table, mean_interval
from .run import MODELS

# Percent of lines right, forward and reversed: LLaDA (arXiv:2502.09992), Table 4.
PUBLISHED = {"LLaDA 8B Instruct": (51.8, 45.6), "GPT-4o": (82.7, 34.3), "Qwen2.5 7B Instruct": (75.9, 38.0)}
# Ways to ask: label, model, the prefix of its questions' names.
WAYS = {
    "LLaDA, asked": ("LLaDA", ""),
    "LLaDA, poem filled in": ("LLaDA", "infill "),
    "autoregressive, asked": ("autoregressive", ""),
    "autoregressive on reversed text, asked": ("autoregressive, reversed text", ""),
}
DIRECTIONS = ("next", "previous")
FOUND = "first line found by likelihood"

Scores = dict[str, dict[str, Interval]]


def summarize(outcomes: dict[Any, dict[str, Any]]) -> Scores:
    """Average over checkpoints, then take the interval over seeds.

    Args:
        outcomes: of each job, as `run_jobs` returns them.

    Returns:
        For each of `WAYS` the shares of right answers: `next`, `previous`, the same of taught couplets (`taught next`,
        `taught previous`), and `FOUND` once for each kind of model that reads the poems forwards.
    """
    scores: Scores = {}
    for label, (model, prefix) in WAYS.items():
        runs = [outcome for job, outcome in outcomes.items() if job.model == model]
        scores[label] = {
            direction: mean_interval([_mean_over_checkpoints(run, prefix + direction) for run in runs])
            for direction in DIRECTIONS
        }
        for direction in DIRECTIONS:
            scores[label][f"taught {direction}"] = mean_interval([run["taught"][prefix + direction] for run in runs])
        if not prefix and not MODELS[model][1]:
            scores[label][FOUND] = mean_interval([run["first_line_found"] for run in runs])
    return scores


def flatten(scores: Scores) -> dict[str, Interval]:
    """One name for each number, as a record has them."""
    return {f"{label}: {name}": interval for label, numbers in scores.items() for name, interval in numbers.items()}


def make_table(scores: Scores) -> str:
    """Ours in percent with 95 % confidence intervals, the published ones below."""
    columns = ("next", "previous", "taught next", "taught previous", FOUND)
    rows = [
        [label, *(_percent(numbers[name]) if name in numbers else "" for name in columns)]
        for label, numbers in scores.items()
    ]
    rows += [
        [f"{name} (published)", *(f"{share:.1f}" for share in shares), "", "", ""] for name, shares in PUBLISHED.items()
    ]
    return markdown_table(["% of lines right", *columns], rows)


def plot(scores: Scores, path: Path) -> None:
    """Draw bars forward and reversed: the published numbers at the left, ours with their intervals at the right.

    A diamond shows how often the first line is found by likelihood, where that was tried.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(len(PUBLISHED), len(scores)))
    published = [[Interval(shares[side] / 100) for shares in PUBLISHED.values()] for side in range(2)]
    _draw_bars(left, list(PUBLISHED), published)
    left.set(title="published (arXiv:2502.09992, Table 4)", ylabel="lines right, to the character (%)")
    labels = [label.replace(", ", ",\n").replace(" on ", "\non ") for label in scores]
    _draw_bars(right, labels, [[numbers[name] for numbers in scores.values()] for name in DIRECTIONS])
    found = [(place, numbers[FOUND].mean * 100) for place, numbers in enumerate(scores.values()) if FOUND in numbers]
    right.plot(*zip(*found), "kD", markersize=5, label=FOUND)
    right.set(title="ours: small models trained on poems; 95 % intervals over seeds")
    left.set_ylim(0, 108)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_bars(axes: Any, labels: list[str], sides: list[list[Interval]]) -> None:
    names = ("forward: the next line", "reversal: the previous line")
    for side, (name, intervals, color) in enumerate(zip(names, sides, ("tab:blue", "tab:orange"))):
        places = [place + 0.4 * (side - 0.5) for place in range(len(labels))]
        heights = [interval.mean * 100 for interval in intervals]
        widths = [(interval.half_width or 0.0) * 100 for interval in intervals]
        has_widths = any(interval.half_width is not None for interval in intervals)
        bars = axes.bar(places, heights, 0.38, label=name, color=color, yerr=widths if has_widths else None, capsize=3)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)


def _mean_over_checkpoints(outcome: dict[str, Any], name: str) -> float:
    return statistics.fmean(checkpoint[name] for checkpoint in outcome["checkpoints"])


def _percent(interval: Interval) -> str:
    width = "" if interval.half_width is None else f" ± {interval.half_width * 100:.1f}"
    return f"{interval.mean * 100:.1f}{width}"
