"""What a training command shows: one row per line of the log, and on a terminal one bar below them."""

import datetime
import sys
import time
from typing import Any, Optional

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback

EVALUATION = "eval_"
# The columns: heading, metric and form. A training shows those that its first row has.
METRICS = (
    ("loss", "loss", "{:.4g}"),
    ("masked", "masked_fraction", "{:.0%}"),
    ("accuracy", "masked_accuracy", "{:.1%}"),
    ("accuracy", "rewards/accuracies", "{:.1%}"),
    ("margin", "rewards/margins", "{:.3g}"),
    ("reward", "reward", "{:.3g}"),
    ("lr", "learning_rate", "{:.2e}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
)
# Columns that a row of validation leaves empty, so that a first one does not hide them.
OF_TRAINING = ("learning_rate", "tokens_per_second")
WIDTH = 9


class LogTable(TrainerCallback):
    """Prints the log as a table, in place of transformers' bar and dictionaries.

    Everything that is logged stands in `trainer_state.json` and goes to `report_to`; the rows show the metrics that one
    watches. The time left counts the steps of this run, also of one that was resumed.
    """

    def __init__(self) -> None:
        self._columns: list[tuple[str, str, str]] = []
        self._bar: Optional[Progress] = None
        self._first_step, self._started = 0, 0.0

    def attach(self, trainer: Any) -> None:
        """Show `trainer` by this table, and by nothing else."""
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(self)

    def close(self) -> None:
        """Take the bar off the screen; also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step, self._started = state.global_step, time.monotonic()
        if state.is_world_process_zero and not args.disable_tqdm and sys.stdout.isatty():
            parts = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*parts, console=Console(), transient=True)
            self._bar.start()
            self._bar.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(state, "training")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show(state, "validation")

    def on_log(self, args: Any, state: Any, control: Any, logs: Optional[dict] = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "train_runtime" in logs:
            num_steps = state.global_step - self._first_step
            self._print(f"Trained {counted(num_steps, 'step')} in {_duration(logs['train_runtime'])}.")
        elif "loss" in logs:
            done = max(state.global_step - self._first_step, 1)
            left = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step)
            self._row(state.global_step, logs, _duration(left))
        elif name := next((name for name in logs if name.startswith(EVALUATION) and name.endswith("_loss")), None):
            prefix = name.removesuffix("loss")
            values = {key.removeprefix(prefix): value for key, value in logs.items()}
            part = prefix.removeprefix(EVALUATION).strip("_")
            self._row(state.global_step, values, f"validation {part}".strip())

    def _row(self, step: int, values: dict[str, Any], end: str) -> None:
        if not self._columns:
            self._columns = [row for row in METRICS if row[1] in values or row[1] in OF_TRAINING]
            self._print(_line(["step", *(heading for heading, _, _ in self._columns)], "left"))
        cells = [form.format(values[name]) if name in values else "" for _, name, form in self._columns]
        self._print(_line([str(step), *cells], end))

    def _show(self, state: Any, what: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, description=what)

    def _print(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def counted(number: int, unit: str) -> str:
    """A number with its unit, which has an s unless it is one; `unit` in the singular."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _line(cells: list[str], end: str) -> str:
    return " ".join(f"{cell:>{WIDTH}}" for cell in cells) + f"  {end}".rstrip()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
