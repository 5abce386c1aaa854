"""Measure quality against forward passes for every way to decode, on the bundled model.

Two tasks (see `quality_tasks.py`): half of the tokens of held-out texts are filled in, and sentences of known facts
are finished. Every setting meets the same masks and facts, so that the differences from the reference, one token
per pass, are taken item by item. Usage:

    python benchmarks/steps_quality.py --json quality.json --plot quality.png     # minutes on two cores
    python benchmarks/steps_quality.py --quick                                    # seconds; the numbers mean nothing
    python benchmarks/steps_quality.py --groups rules,caches --model path/to/checkpoint
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quality_tasks import Answering, Infilling, Values, summary
from report import command, machine, table, write_json
from transformers import PreTrainedTokenizerFast

from llada_checkpoints import BUNDLED_MODEL
from llada_core.tokenization import prepare_tokenizer
from modeling_llada import LLaDAModelLM
from modeling_llada.unmasking_llada import FALLBACKS

# Steps of the fixed schedule. A text has about 17 masks and an answer 16; None is one token per pass.
SCHEDULES = (None, 12, 8, 4, 2, 1)
# The value of the rule's paper first, then laxer ones: a small model is too unsure for the former.
RULES: dict[str, tuple[float, ...]] = {
    "threshold": (0.9, 0.5, 0.3, 0.2),
    "factor": (1.0, 2.0, 3.0, 4.0),
    "frechet": (0.25, 0.0),
    "entropy_bound": (0.1, 2.0, 8.0, 16.0),
}
MEASURES = ("margin", "entropy", "random")
MEASURE_STEPS = (None, 8, 4)
REMASK_RATES = (0.1, 0.25, 0.5)
REMASK_STEPS = (16, 8)
# Thresholds at which both fallbacks are met.
FALLBACK_THRESHOLDS = (0.5, 0.3, 0.2)
# How the passes of a cache are counted: one token each, a schedule, a rule.
CACHE_PACES: tuple[dict[str, Any], ...] = ({}, {"steps": 8}, {"factor": 2.0})
CACHES: dict[str, dict[str, Any]] = {
    "none": {},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "dual, refreshed": {"cache": "dual", "refresh_interval": 4},
}
# These have no meaning for infilling.
ANSWER_CACHES: dict[str, dict[str, Any]] = {
    "dual, frozen prompt": {"cache": "dual", "freeze_prompt": True},
    "suffix window": {"suffix_window": 0},
}
GROUPS = ("rules", "measures", "remasking", "fallback", "caches")
ALL_TASKS = (Infilling.name, Answering.name)


@dataclass(frozen=True)
class Setting:
    """One way to decode.

    Attributes:
        group: one of `GROUPS`.
        line: the curve it belongs to.
        options: options of `generate` and `infill`.
        in_blocks: whether the masks are cut into blocks, so that a cache has something to keep; else all is one block.
        tasks: tasks it is run on.
    """

    group: str
    line: str
    options: dict[str, Any]
    in_blocks: bool = False
    tasks: tuple[str, ...] = ALL_TASKS

    def options_for(self, task: Any) -> dict[str, Any]:
        """The options with the task's block length."""
        num_blocks = task.num_blocks if self.in_blocks else 1
        return {**self.options, "block_length": -(-task.num_columns // num_blocks)}

    def label(self) -> str:
        """The options in words."""
        words = ", ".join(f"{name}={value}" for name, value in self.options.items()) or "one token per pass"
        return f"{words}, in blocks" if self.in_blocks else words


def with_steps(steps: int | None) -> dict[str, Any]:
    """The option, left out where it is the default."""
    return {} if steps is None else {"steps": steps}


def make_settings(groups: list[str]) -> list[Setting]:
    """The settings of the groups, the reference first."""
    settings = [Setting("rules", "schedule", with_steps(steps)) for steps in SCHEDULES]
    settings += [Setting("rules", rule, {rule: value}) for rule, values in RULES.items() for value in values]
    settings += [
        Setting("measures", measure, {"remasking": measure, **with_steps(steps)})
        for measure in MEASURES
        for steps in MEASURE_STEPS
    ]
    settings += [
        Setting("remasking", f"remask_rate={rate}", {"remask_rate": rate, "steps": steps})
        for rate in REMASK_RATES
        for steps in REMASK_STEPS
    ]
    settings += [Setting("fallback", "from left to right", {"fallback": "leftmost"})]
    settings += [
        Setting("fallback", f"fallback={fallback}", {"threshold": threshold, "fallback": fallback})
        for fallback in FALLBACKS
        for threshold in FALLBACK_THRESHOLDS
    ]
    for lines, tasks in ((CACHES, ALL_TASKS), (ANSWER_CACHES, (Answering.name,))):
        settings += [
            Setting("caches", line, {**options, **pace}, True, tasks)
            for line, options in lines.items()
            for pace in CACHE_PACES
        ]
    return [settings[0], *(setting for setting in settings[1:] if setting.group in groups)]


def one_per_line(settings: list[Setting]) -> list[Setting]:
    """The reference and the last setting of every line, which has the fewest passes."""
    last = {(setting.group, setting.line): setting for setting in settings}
    return [settings[0], *last.values()]


def measure_all(settings: list[Setting], tasks: list[Any]) -> list[dict[str, Any]]:
    """Run every setting on its tasks; the first is the reference of all."""
    references: dict[str, Values] = {}
    results = []
    for number, setting in enumerate(settings, start=1):
        start = time.perf_counter()
        result = {"group": setting.group, "line": setting.line, "label": setting.label(), "options": setting.options}
        for task in tasks:
            if task.name in setting.tasks:
                values = task(**setting.options_for(task))
                reference = references.setdefault(task.name, values)
                result[task.name] = {name: summary(values[name], reference[name]) for name in values}
        results.append(result)
        seconds = time.perf_counter() - start
        print(f"{number}/{len(settings)} {setting.label()}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return results


def show(results: list[dict[str, Any]]) -> str:
    """The results as a table: means with their standard errors."""
    head = ["", "passes per token", "accuracy", "consistency", "passes per answer", "fitting", "right"]
    columns = (
        ("infilling", "passes_per_token", 2),
        ("infilling", "accuracy", 3),
        ("infilling", "consistency", 2),
        ("answering", "passes", 1),
        ("answering", "fitting", 3),
        ("answering", "right", 3),
    )

    def cell(result: dict[str, Any], task: str, name: str, digits: int) -> str:
        if task not in result:
            return ""
        numbers = result[task][name]
        error = "" if name.startswith("passes") else f" ± {numbers['standard_error']:.{digits}f}"
        return f"{numbers['mean']:.{digits}f}{error}"

    return table(head, [[result["label"], *(cell(result, *column) for column in columns)] for result in results])


def plot(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the rules: three measures against passes, one line for each rule, bars of one standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("infilling", "passes_per_token", "accuracy", "passes per token", "masked tokens filled in as they were"),
        ("infilling", "passes_per_token", "consistency", "passes per token", "consistency (nats per token)"),
        ("answering", "passes", "fitting", "passes per answer", "answers of the right kind"),
    )
    rules = [result for result in results if result["group"] == "rules"]
    for axes, (task, x, y, x_label, y_label) in zip(figure.subplots(1, 3), panels):
        for line in dict.fromkeys(result["line"] for result in rules):
            points = sorted(
                (result[task][x]["mean"], result[task][y]["mean"], result[task][y]["standard_error"])
                for result in rules
                if result["line"] == line
            )
            passes, means, errors = zip(*points)
            axes.errorbar(passes, means, errors, marker="o", markersize=4, linewidth=1, capsize=2, label=line)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.3g}")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="a LLaDA checkpoint; the bundled one if unset")
    for name, default in (("texts", 32), ("seeds", 2), ("facts", 128), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--groups", default=",".join(GROUPS), help="list of groups of settings to run")
    parser.add_argument("--quick", action="store_true", help="a few items and settings only, to see that all runs")
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--plot", type=Path, help="also draw the rules into this PNG file")
    args = parser.parse_args()
    unknown = set(args.groups.split(",")) - set(GROUPS)
    if unknown:
        parser.error(f"`--groups` takes {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}.")
    if args.quick:
        args.texts, args.seeds, args.facts = 2, 1, 2
    return args


def main() -> None:
    """Measure, print a table, and write JSON and the plot if asked."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    about, start = machine(), time.perf_counter()
    model = LLaDAModelLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.model, padding_side="left")
    tokenizer = prepare_tokenizer(tokenizer, missing="spell_out")
    tasks = [Infilling(model, tokenizer, args.texts, args.seeds), Answering(model, tokenizer, args.facts)]
    settings = make_settings(args.groups.split(","))
    results = measure_all(one_per_line(settings) if args.quick else settings, tasks)
    print(about)
    print(show(results))
    write_json(
        {
            "command": command(),
            "machine": about,
            "seconds": round(time.perf_counter() - start, 1),
            "settings": {**vars(args), "plot": str(args.plot)},
            "results": results,
        },
        args.json,
    )
    if args.plot:
        plot(
            results, args.plot, f"{Path(args.model).name}: {args.texts} texts × {args.seeds} masks, {args.facts} facts"
        )


if __name__ == "__main__":
    main()
