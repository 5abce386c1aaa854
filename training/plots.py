"""Draw the loss curve of a run, from the trainer's log or from its `trainer_state.json`."""

import json
from pathlib import Path
from typing import Any, Optional, Union

LEVEL_PREFIX = "loss_t_"
# Above so many points a line has no marks, and an average over one part in so many of them.
MANY_POINTS, AVERAGED_SHARE = 60, 20


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
    from matplotlib.ticker import MaxNLocator

    log: Any = history
    if isinstance(history, (str, Path)):
        log = json.loads(Path(history).read_text(encoding="utf-8"))["log_history"]
    if not _series(log, "loss") and not _series(log, "eval_loss"):
        raise ValueError("`history` must hold at least one `loss` or `eval_loss`, got none; log at least once.")
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    # The learning rate has axes of its own: on those of the loss its line would run along the loss.
    axes = figure.subplot_mosaic([["loss", "levels"], ["rate", "levels"]], height_ratios=[4, 1])
    left, rate, right = axes["loss"], axes["rate"], axes["levels"]
    rate.sharex(left)
    for name, label, color in (("loss", "training", "C0"), ("eval_loss", "validation", "C1")):
        _draw(left, log, name, label, color=color)
    left.set(ylabel="loss (nats per token)", title=title or "Loss")
    left.tick_params(labelbottom=False)
    left.legend(loc="upper right")
    _draw(rate, log, "learning_rate", "learning rate", color="grey")
    rate.set(xlabel="step", ylabel="learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    levels = sorted({name for entry in log for name in entry if name.startswith(LEVEL_PREFIX)})
    for name in levels:
        _draw(right, log, name, f"t ≤ {name.removeprefix(LEVEL_PREFIX)}")
    right.set(xlabel="step", ylabel="cross-entropy of a masked token (nats)", title="By noise level")
    if levels:
        right.legend(loc="upper right")
    for each in (left, rate, right):
        each.grid(alpha=0.25)
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return Path(path)


def _series(history: list[dict], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in history if name in entry]


def _draw(axes: Any, history: list[dict], name: str, label: str, color: Optional[str] = None) -> None:
    """A line through the points of a metric; few are marked, and many get a moving average over them."""
    points = _series(history, name)
    if not points:
        return
    steps, values = zip(*points)
    is_long = len(points) > MANY_POINTS
    style = {"color": color, "linewidth": 1, "markersize": 3, "marker": None if is_long else "o"}
    if not is_long or name == "learning_rate":
        axes.plot(steps, values, label=label, **style)
        return
    (raw,) = axes.plot(steps, values, alpha=0.3, **style)
    width = len(points) // AVERAGED_SHARE
    means = [sum(part) / len(part) for end in range(len(values)) if (part := values[max(0, end - width) : end + 1])]
    axes.plot(steps, means, label=label, color=raw.get_color(), linewidth=1.5)
