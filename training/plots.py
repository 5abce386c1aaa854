"""Draw the loss curve of a run, from the trainer's log or from its `trainer_state.json`."""

import json
from pathlib import Path
from typing import Any, Union

LEVEL_PREFIX = "loss_t_"


def plot_loss_curve(history: Union[list[dict], str, Path], path: Union[str, Path], title: str = "") -> Path:
    """Draw training and validation loss, the loss by noise level and the learning rate over the steps.

    Args:
        history: `trainer.state.log_history`, or the path of a `trainer_state.json`.
        path: PNG file to write.
        title: title of the picture.

    Returns:
        The path of the picture.

    Raises:
        ValueError: if the log holds no loss.
    """
    from matplotlib.figure import Figure

    log: Any = history
    if isinstance(history, (str, Path)):
        log = json.loads(Path(history).read_text(encoding="utf-8"))["log_history"]
    if not _series(log, "loss") and not _series(log, "eval_loss"):
        raise ValueError("`history` must hold at least one `loss` or `eval_loss`, got none; log at least once.")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        _draw(left, log, name, label, style)
    left.set(xlabel="step", ylabel="loss (nats per token)", title=title or "Loss")
    left.legend(loc="upper right")
    rate = left.twinx()
    _draw(rate, log, "learning_rate", "learning rate", ":", color="grey")
    rate.set_ylabel("learning rate (dotted)")
    levels = sorted({name for entry in log for name in entry if name.startswith(LEVEL_PREFIX)})
    for name in levels:
        _draw(right, log, name, f"t ≤ {name.removeprefix(LEVEL_PREFIX)}", "-")
    right.set(xlabel="step", ylabel="cross-entropy of a masked token (nats)", title="By noise level")
    if levels:
        right.legend(loc="upper right")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return Path(path)


def _series(history: list[dict], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in history if name in entry]


def _draw(axes, history: list[dict], name: str, label: str, style: str, **options) -> None:
    points = _series(history, name)
    if points:
        # A line through one point cannot be seen.
        axes.plot(*zip(*points), style if len(points) > 1 else "o", label=label, linewidth=1, markersize=3, **options)
