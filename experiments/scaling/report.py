"""The scaling experiment's measurements as a table, fitted power laws and a figure."""

from pathlib import Path
from typing import Any

from ..summaries import Interval, markdown_table
from .curves import Point, PowerLaw, compute_ratio, fit_power_law, frontier
from .run import Measurement

NAMES = {"llada": "LLaDA (bound)", "autoregressive": "autoregressive"}
COLORS = {"llada": "tab:orange", "autoregressive": "tab:blue"}


def fit_laws(measurements: list[Measurement]) -> dict[str, PowerLaw]:
    """The power law of each kind through the best measurements of their compute."""
    points = {
        kind: [Point(measurement.flops, measurement.loss) for measurement in measurements if measurement.kind == kind]
        for kind in NAMES
    }
    return {kind: fit_power_law(frontier(found)) for kind, found in points.items()}


def ratio_at_best(measurements: list[Measurement], laws: dict[str, PowerLaw]) -> float:
    """How many times the compute LLaDA takes to the lowest loss that both kinds have reached."""
    reached = max(min(m.loss for m in measurements if m.kind == kind) for kind in NAMES)
    return compute_ratio(laws["llada"], laws["autoregressive"], reached)


def make_table(measurements: list[Measurement], laws: dict[str, PowerLaw]) -> str:
    """Every measurement, then the laws in words."""
    rows = [
        [NAMES[m.kind], f"{m.num_parameters:,}", f"{m.num_tokens:,}", f"{m.flops:.2e}",
         f"{m.loss:.3f}" + (f" ± {m.standard_error:.3f}" if m.standard_error else "")]
        for m in sorted(measurements)
    ]  # fmt: skip
    head = ["", "parameters without embedding", "tokens", "FLOPs (6 N D)", "held-out loss, nats per token"]
    words = [f"{NAMES[kind]}: loss ∝ FLOPs^−{law.exponent:.3f}." for kind, law in laws.items()]
    ratio = f"At the lowest loss that both reach, the fits put LLaDA at {ratio_at_best(measurements, laws):.1f} times "
    return "\n".join([markdown_table(head, rows), "", *words, ratio + "the autoregressive model's compute."])


def as_results(measurements: list[Measurement], laws: dict[str, PowerLaw]) -> dict[str, Interval]:
    """The numbers under the names that a record has them by: exponents, the ratio, the losses at the end."""
    results = {f"{kind}: exponent": Interval(law.exponent) for kind, law in laws.items()}
    results["compute ratio"] = Interval(ratio_at_best(measurements, laws))
    longest = max(m.num_tokens for m in measurements)
    for m in sorted(measurements):
        if m.num_tokens == longest:
            name = f"{m.kind}, {m.num_parameters} parameters: loss"
            results[name] = Interval(m.loss, m.standard_error, 1.96 * m.standard_error)
    return results


def plot(measurements: list[Measurement], laws: dict[str, PowerLaw], path: Path) -> None:
    """Draw loss against compute: a line for each model, a dashed one for each law."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = sorted({m.num_parameters for m in measurements})
    for kind, color in COLORS.items():
        for size, marker in zip(sizes, "osD^vP*"):
            _draw(axes, [m for m in measurements if m.kind == kind and m.num_parameters == size], color, marker)
        ends = [edge(m.flops for m in measurements) for edge in (min, max)]
        label = f"fit: loss ∝ FLOPs$^{{-{laws[kind].exponent:.3f}}}$"
        axes.plot(ends, [laws[kind].loss(end) for end in ends], "--", color=color, linewidth=1, label=label)
    axes.set(xlabel="training FLOPs (6 N D, N without embedding)", ylabel="held-out loss (nats per token)")
    axes.set(xscale="log", yscale="log", title="Exact loss of autoregressive models, bound on LLaDA's")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw(axes: Any, measurements: list[Measurement], color: str, marker: str) -> None:
    ordered = sorted(measurements, key=lambda m: m.flops)
    first = ordered[0]
    label = f"{NAMES[first.kind]}, {first.num_parameters / 1e6:.1f} M"
    axes.errorbar(
        [m.flops for m in ordered], [m.loss for m in ordered], [m.standard_error for m in ordered],
        color=color, marker=marker, markersize=4, linewidth=1, capsize=2, label=label,
    )  # fmt: skip
