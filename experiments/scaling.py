"""Scaling: LLaDA and autoregressive models of several sizes, held-out loss against training compute.

    python examples/llada_tiny/prepare_data.py                         # makes the text; or pass your own
    python -m experiments.scaling --texts runs/llada-tiny-data/plain.jsonl --output runs/scaling

Minutes to half an hour on two cores. It writes a table, a figure and a record with all measurements into the folder;
trainings that are finished there are not run again.

Source: LLaDA (arXiv:2502.09992), section 3.2 and Figure 3, which compares benchmarks; at a scale where those are at
chance, the likelihood takes their place.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llada_checkpoints import BUNDLED_MODEL
from llada_core.digests import file_digest
from llada_core.records import EvaluationRecord

from .common import (
    COLORS,
    HEAD_WIDTH,
    KINDS,
    Experiment,
    FitOptions,
    Interval,
    Shape,
    add_job_options,
    fit,
    make_figure,
    make_model,
    make_parser,
    markdown_table,
    run_jobs,
    score_rows,
)

# One document in so many is held out.
HELD_OUT_EVERY = 50
NAMES = {"llada": "LLaDA (bound)", "autoregressive": "autoregressive"}
# Where a record has them all.
MEASUREMENTS = "measurements"


# --- text -------------------------------------------------------------------------------------------------------------


class Corpus(NamedTuple):
    """Rows for training and for measuring; int64 [rows, length] each."""

    training: Tensor
    held_out: Tensor


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Read the field `text` of JSON lines (`.jsonl`), or each line of another file as a document.

    Raises:
        ValueError: if there is no text.
    """
    texts: list[str] = []
    for path in paths:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts += [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
    if not texts:
        raise ValueError(f"`texts` must hold at least one document, got none in {', '.join(map(str, paths))}.")
    return texts


def make_corpus(texts: Sequence[str], tokenizer: Any, length: int) -> Corpus:
    """Join the documents and cut them into rows; documents are held out whole.

    Args:
        texts: documents.
        tokenizer: with a beginning-of-text and an end-of-text token.
        length: tokens of a row. Its first one is the beginning-of-text token, which is given and never scored.

    Raises:
        ValueError: if the texts are too short for one row of either part.
    """
    held_out = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY == 0]
    training = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY]
    corpus = Corpus(cut_rows(training, tokenizer, length), cut_rows(held_out, tokenizer, length))
    if not len(corpus.training) or not len(corpus.held_out):
        raise ValueError(
            f"`texts` must fill a row of {length} tokens, also with one document in {HELD_OUT_EVERY}, got "
            f"{len(corpus.training)} rows for training and {len(corpus.held_out)} held out; pass more text."
        )
    return corpus


def cut_rows(texts: Sequence[str], tokenizer: Any, length: int) -> Tensor:
    """Encode, end each document with the end-of-text token, and cut; what is left at the end is dropped."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    stream = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    width = length - 1
    rows = [[tokenizer.bos_token_id, *stream[i : i + width]] for i in range(0, len(stream) - width + 1, width)]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, length)


# --- the experiment ---------------------------------------------------------------------------------------------------


def training_flops(num_parameters: int, num_tokens: int) -> float:
    """6 N D: forward and backward pass of N parameters over D tokens."""
    return 6.0 * num_parameters * num_tokens


@dataclasses.dataclass(frozen=True)
class ScalingOptions:
    """What decides the result of the experiment.

    Attributes:
        texts: files of text (see `read_texts`).
        tokenizer: folder of the tokenizer.
        shapes: sizes of the models, each trained as either kind.
        length: tokens of a row.
        batch_size: rows of an optimizer step.
        num_tokens: tokens that every model is trained on.
        num_measurements: how often a model is measured: after all tokens, after half of them, a quarter, ….
        num_held_out: held-out rows that are scored; all if there are fewer.
        num_samples: noisy copies of each by which a LLaDA's bound is estimated.
        seed: of weights, order and noise.
        fit: the optimiser of every model. The learning rate stays constant after its warmup, so that a measurement
            half-way is that of a training of half the length.

    Raises:
        ValueError: for fewer tokens than one optimizer step takes.
    """

    texts: tuple[str, ...]
    tokenizer: str
    shapes: tuple[Shape, ...] = (Shape(96, 2), Shape(160, 3), Shape(256, 4))
    length: int = 64
    batch_size: int = 32
    num_tokens: int = 2_000_000
    num_measurements: int = 5
    num_held_out: int = 96
    num_samples: int = 8
    seed: int = 0
    fit: FitOptions = dataclasses.field(default_factory=lambda: FitOptions(final_share=1.0))

    def __post_init__(self) -> None:
        tokens_of_a_step = self.batch_size * self.length
        if self.num_tokens < tokens_of_a_step:
            raise ValueError(
                f"`num_tokens` must be at least those of one optimizer step ({tokens_of_a_step}), "
                f"got {self.num_tokens}."
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of every training."""
        return self.num_tokens // (self.batch_size * self.length)


class Measurement(NamedTuple):
    """A model at one moment of its training.

    Attributes:
        kind: one of `KINDS`.
        num_parameters: without embedding and head.
        num_tokens: trained on so far.
        flops: 6 N D of these two.
        loss: held-out, nats per token: exact for an autoregressive model, an upper bound for a LLaDA.
        standard_error: of `loss` over the noise, the held-out rows being given; 0 where it is exact.
    """

    kind: str
    num_parameters: int
    num_tokens: int
    flops: float
    loss: float
    standard_error: float


def train_and_measure(kind: str, shape: Shape, options: ScalingOptions) -> list[Measurement]:
    """Train one model and measure it along the way."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.tokenizer)
    corpus = make_corpus(read_texts([Path(path) for path in options.texts]), tokenizer, options.length)
    ids = {"mask_id": tokenizer.mask_token_id, "pad_id": tokenizer.pad_token_id}
    model = make_model(kind, shape, len(tokenizer), options.length, **ids, seed=options.seed)
    rows, num_parameters, measurements = (
        corpus.held_out[: options.num_held_out].tolist(),
        shape.num_block_parameters,
        [],
    )

    def measure(step: int) -> None:
        scores, num_scored = score_rows(model, rows, options.num_samples), len(rows) * (options.length - 1)
        loss = -float(scores.values.sum()) / num_scored
        error = float(scores.standard_errors.square().sum().sqrt()) / num_scored
        num_tokens = step * options.batch_size * options.length
        flops = training_flops(num_parameters, num_tokens)
        measurements.append(Measurement(kind, num_parameters, num_tokens, flops, loss, error))

    measure_at = halvings(options.num_steps, options.num_measurements)
    training = corpus.training.tolist()
    fit(model, training, options.batch_size, options.num_steps, options.seed, options.fit, measure_at, measure)
    return measurements


def halvings(num_steps: int, count: int) -> list[int]:
    """Steps after which a model is measured, rising: all of them, half, a quarter, …, each at least 1."""
    return sorted({max(1, num_steps >> back) for back in range(count)})


# --- table and figure -------------------------------------------------------------------------------------------------


def make_table(measurements: list[Measurement]) -> str:
    """Every measurement. No law is fitted: so early in a training the curves are not lines."""
    rows = [
        [NAMES[m.kind], f"{m.num_parameters:,}", f"{m.num_tokens:,}", f"{m.flops:.2e}",
         f"{m.loss:.3f}" + (f" ± {m.standard_error:.3f}" if m.standard_error else "")]
        for m in sorted(measurements)
    ]  # fmt: skip
    head = ["", "parameters without embedding", "tokens", "FLOPs (6 N D)", "held-out loss, nats per token"]
    return markdown_table(head, rows)


def as_results(measurements: list[Measurement]) -> dict[str, Interval]:
    """The losses at the end under the names that a record has them by."""
    longest = max(m.num_tokens for m in measurements)
    return {
        f"{m.kind}, {m.num_parameters} parameters: loss": Interval(m.loss, m.standard_error, 1.96 * m.standard_error)
        for m in sorted(measurements)
        if m.num_tokens == longest
    }


def plot(record: EvaluationRecord) -> Any:
    """Draw loss against compute, both logarithmic: a line for each model, with its size at its end.

    Raises:
        ValueError: for a record without the measurements.
    """
    if MEASUREMENTS not in record.remarks:
        raise ValueError(
            f"The record must hold `{MEASUREMENTS}` among its remarks, got none; run the experiment again."
        )
    measurements = [Measurement(**found) for found in record.remarks[MEASUREMENTS]]
    figure = make_figure((8, 4.6))
    axes = figure.subplots()
    for kind, color in COLORS.items():
        for size in sorted({m.num_parameters for m in measurements}):
            found = [m for m in measurements if (m.kind, m.num_parameters) == (kind, size)]
            _draw(axes, sorted(found, key=lambda m: m.flops), color, NAMES[kind])
    axes.set(xlabel="training FLOPs (6 N D, N without embedding)", ylabel="held-out loss (nats per token)")
    axes.set(
        xscale="log", yscale="log", title="Loss of autoregressive models (exact) and LLaDA (upper bound), one seed"
    )
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.margins(x=0.08)
    axes.grid(which="both")
    lines, labels = axes.get_legend_handles_labels()
    axes.legend(*zip(*{label: (line, label) for line, label in zip(lines, labels)}.values()), loc="lower left")
    return figure


def _draw(axes: Any, measurements: list[Measurement], color: str, label: str) -> None:
    axes.errorbar(
        [m.flops for m in measurements], [m.loss for m in measurements], [m.standard_error for m in measurements],
        color=color, marker="o", label=label,
    )  # fmt: skip
    last = measurements[-1]
    name = f"{last.num_parameters / 1e6:.1f} M"
    place = {"xytext": (3, 6), "textcoords": "offset points"}
    axes.annotate(name, (last.flops, last.loss), fontsize=8, color=color, **place)


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write."""
    args = parse_arguments(arguments)
    given = {"num_tokens": args.tokens, "seed": args.seed, "shapes": args.shapes and tuple(args.shapes)}
    given = {name: value for name, value in given.items() if value is not None}
    options = ScalingOptions(texts=tuple(map(str, args.texts)), tokenizer=str(args.tokenizer), **given)
    names = {"texts": [path.name for path in args.texts], "tokenizer": args.tokenizer.name}
    experiment = Experiment("scaling", dataclasses.asdict(options) | names, seed=options.seed)
    digests = {"texts": [file_digest(path) for path in args.texts]}
    settings = dataclasses.asdict(options) | names | digests | {"shapes": None}
    jobs = {f"{kind} {shape}": (kind, shape, options) for shape in reversed(options.shapes) for kind in KINDS}
    results = run_jobs(train_and_measure, jobs, settings, args.output / "trainings.jsonl", args.workers, args.overwrite)
    measurements = [Measurement(*found) for result in results.values() for found in result]
    experiment.write(
        args.output,
        make_table(measurements),
        as_results(measurements),
        {"name": "trained from scratch"},
        plot,
        {MEASUREMENTS: [measurement._asdict() for measurement in measurements]},
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("scaling", __doc__)
    add_job_options(parser)
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="JSON lines with `text`, or plain lines")
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED_MODEL, help="the bundled model's if unset")
    parser.add_argument("--tokens", type=int, help=f"tokens of each training; {ScalingOptions.num_tokens} if unset")
    shapes = " ".join(f"{shape.width}x{shape.num_layers}" for shape in ScalingOptions.shapes)
    parser.add_argument(
        "--shapes", type=parse_shape, nargs="+", metavar="WIDTHxBLOCKS", help=f"sizes of the models; {shapes} if unset"
    )
    parser.add_argument("--seed", type=int, help=f"of weights, order and noise; {ScalingOptions.seed} if unset")
    return parser.parse_args(arguments)


def parse_shape(text: str) -> Shape:
    """Read a shape such as 96x2.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    width, _, num_layers = text.partition("x")
    if not (
        width.isdecimal() and num_layers.isdecimal() and int(num_layers) and int(width) and not int(width) % HEAD_WIDTH
    ):
        raise argparse.ArgumentTypeError(
            f"`--shapes` must be WIDTHxBLOCKS, the width a multiple of {HEAD_WIDTH}, got {text!r}; such as 96x2."
        )
    return Shape(int(width), int(num_layers))


if __name__ == "__main__":
    main()
