"""In which order to fill in: what share of puzzles a model solves by each way of decoding, and in how many passes.

    python -m experiments.order --model checkpoints/llada-tiny

The puzzles are of the test split: Sudoku of 4x4 and 6x6 cells, and sums with missing digits. A puzzle counts as solved
if every cell is right. With `--baseline`, an autoregressive model of `examples/llada_tiny/baseline.py` solves the same
ones, from left to right. It writes a table, a figure and a record.

Source: Train for the Worst, Plan for the Best (arXiv:2502.06768): masked diffusion models learn every order, hard ones
too, and solve Sudoku where decoding takes the order in which they are sure.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from llada_core.digests import checkpoint_hash
from llada_core.loading import load_checkpoint
from llada_training.puzzles import MISSING, MissingDigits, grid_text, make_sudokus, make_sums

from .common import Experiment, Interval, make_figure, make_parser, markdown_table, proportion_interval

# Puzzles that go through the model together.
BATCH = 64
# Side of the grid -> empty cells of its puzzles.
NUM_EMPTY = {4: 10, 6: 24}
# Of the test puzzles and of the draws.
SEED = 0
LEFT_TO_RIGHT = "autoregressive, left to right"


@dataclass(frozen=True)
class Setting:
    """One way to decode: its name in the table, and options of `infill`."""

    name: str
    options: dict[str, Any]


SETTINGS = (
    Setting("surest cell first", {}),
    Setting("remasking=margin", {"remasking": "margin"}),
    Setting("remasking=entropy", {"remasking": "entropy"}),
    Setting("fallback=leftmost", {"fallback": "leftmost"}),
    Setting("remasking=random", {"remasking": "random"}),
    Setting("threshold=0.99", {"threshold": 0.99}),
    Setting("threshold=0.9", {"threshold": 0.9}),
    Setting("threshold=0.7", {"threshold": 0.7}),
    Setting("threshold=0.5", {"threshold": 0.5}),
    Setting("steps=8", {"steps": 8}),
    Setting("steps=4", {"steps": 4}),
    Setting("steps=2", {"steps": 2}),
    Setting("steps=1", {"steps": 1}),
    Setting("steps=24, remask_rate=0.1", {"steps": 24, "remask_rate": 0.1}),
)


class Outcome(NamedTuple):
    """What a setting gave: share of the puzzles solved, and mean number of passes."""

    solved: Interval
    passes: float


def make_tasks(count: int) -> dict[str, list[MissingDigits]]:
    """The test puzzles of each task, the same at every call."""
    tasks = {
        f"{size}x{size}": [
            MissingDigits(grid_text(sudoku.puzzle, MISSING), grid_text(sudoku.solution))
            for sudoku in make_sudokus(count, size, num_empty, "test", SEED)
        ]
        for size, num_empty in NUM_EMPTY.items()
    }
    return tasks | {"sums": make_sums(count, "test", SEED)}


@torch.no_grad()
def measure(model: Any, tokenizer: Any, puzzles: Sequence[MissingDigits], options: dict[str, Any]) -> Outcome:
    """Fill in every puzzle by `infill`."""
    num_solved, num_passes = 0, 0
    for start in range(0, len(puzzles), BATCH):
        chunk = puzzles[start : start + BATCH]
        texts = [puzzle.puzzle.replace(MISSING, tokenizer.mask_token) for puzzle in chunk]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.infill(
            batch["input_ids"], batch["attention_mask"], generator=torch.Generator().manual_seed(SEED + start),
            return_dict_in_generate=True, **options,
        )  # fmt: skip
        found = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        num_solved += sum(text == puzzle.solution for text, puzzle in zip(found, chunk))
        num_passes += int(output.num_forward_passes.sum())
    return Outcome(proportion_interval(num_solved, len(puzzles)), num_passes / len(puzzles))


@torch.no_grad()
def measure_baseline(model: Any, tokenizer: Any, puzzles: Sequence[MissingDigits]) -> Outcome:
    """Let an autoregressive model write each solution after its puzzle, greedily."""
    num_solved, num_passes = 0, 0
    for puzzle in puzzles:
        prompt, whole = (causal_text(puzzle, tokenizer, with_solution=solved) for solved in (False, True))
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        wanted = tokenizer(whole, add_special_tokens=False)["input_ids"]
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(wanted) - ids.shape[1], do_sample=False
        )
        num_solved += found[0].tolist() == wanted
        num_passes += found.shape[1] - ids.shape[1]
    return Outcome(proportion_interval(num_solved, len(puzzles)), num_passes / len(puzzles))


def causal_text(puzzle: MissingDigits, tokenizer: Any, with_solution: bool) -> str:
    """A puzzle as a model that writes from left to right reads it: the puzzle, an arrow, the whole solution."""
    return f"{puzzle.puzzle.replace(MISSING, tokenizer.mask_token)}>{puzzle.solution if with_solution else ''}"


def make_table(results: dict[str, dict[str, Outcome]]) -> str:
    """Solved puzzles in percent with 95 % confidence intervals, and passes of a puzzle."""
    tasks = list(next(iter(results.values())))
    head = ["", *(f"{task}{part}" for task in tasks for part in (" (%)", ", passes"))]
    rows = []
    for name, found in results.items():
        cells = [
            (f"{out.solved.mean * 100:.1f} ± {(out.solved.half_width or 0.0) * 100:.1f}", f"{out.passes:.1f}")
            for out in found.values()
        ]
        rows.append([name, *(cell for pair in cells for cell in pair)])
    return markdown_table(head, rows)


def plot(results: dict[str, dict[str, Outcome]]) -> Any:
    """Draw solved puzzles over passes, a panel for each task."""
    figure = make_figure((11, 4))
    tasks = list(next(iter(results.values())))
    for axes, task in zip(figure.subplots(1, len(tasks), sharey=True), tasks):
        for name, found in results.items():
            outcome = found[task]
            axes.plot(outcome.passes, outcome.solved.mean * 100, "s" if name == LEFT_TO_RIGHT else "o", markersize=5)
            axes.annotate(name, (outcome.passes, outcome.solved.mean * 100), fontsize=6, xytext=(3, 3),
                          textcoords="offset points")  # fmt: skip
        axes.set(xlabel="passes of a puzzle", title=task, ylim=(-3, 103))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("solved (%)")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure every setting, print the table, write table, figure and record."""
    args = parse_arguments(arguments)
    experiment = Experiment("order", {"count": args.count, "num_empty": {str(k): v for k, v in NUM_EMPTY.items()}})
    tasks = make_tasks(args.count)
    checkpoint = load_checkpoint(args.model, "cpu", "float32")
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    results: dict[str, dict[str, Outcome]] = {}
    for setting in SETTINGS:
        start = time.perf_counter()
        results[setting.name] = {
            task: measure(model, tokenizer, puzzles, setting.options) for task, puzzles in tasks.items()
        }
        print(f"{setting.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    folder = Path(model.config.name_or_path)
    described = {"name": folder.name, "sha256": checkpoint_hash(folder) if folder.is_dir() else None}
    if args.baseline is not None:
        baseline = AutoModelForCausalLM.from_pretrained(args.baseline).eval()
        results[LEFT_TO_RIGHT] = {
            task: measure_baseline(baseline, tokenizer, puzzles) for task, puzzles in tasks.items()
        }
        described["baseline"] = {"parameters": baseline.num_parameters(), "sha256": checkpoint_hash(args.baseline)}
    scores = {f"{task}, {name}": out.solved for name, found in results.items() for task, out in found.items()}
    experiment.write(args.output, make_table(results), scores, described, plot(results))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("order", __doc__)
    parser.add_argument("--model", help="folder or Hub id; the bundled model if unset")
    parser.add_argument("--baseline", type=Path, help="folder of an autoregressive model with the same tokenizer")
    parser.add_argument("--count", type=int, default=256, help="puzzles of each kind")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
