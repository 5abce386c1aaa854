"""Train LLaDA and autoregressive models of several sizes on the same text; compare held-out loss against compute.

    python examples/llada_tiny/prepare_data.py                         # makes the text; or pass your own
    python -m experiments.scaling --texts runs/llada-tiny-data/plain.jsonl --output runs/scaling

Minutes to half an hour on two cores. It writes a table, a figure, all measurements and a record into the folder.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from llada_checkpoints import BUNDLED_MODEL

from ..fitting import HEAD_WIDTH, Shape
from ..summaries import Experiment
from .report import as_results, fit_laws, make_table, plot
from .run import ScalingOptions, run_jobs


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, fit, write."""
    args = parse_arguments(arguments)
    given = {"num_tokens": args.tokens, "seed": args.seed, "shapes": args.shapes and tuple(args.shapes)}
    given = {name: value for name, value in given.items() if value is not None}
    options = ScalingOptions(texts=tuple(map(str, args.texts)), tokenizer=str(args.tokenizer), **given)
    names = {"texts": [path.name for path in args.texts], "tokenizer": args.tokenizer.name}
    experiment = Experiment("scaling", dataclasses.asdict(options) | names, seed=options.seed)
    path = args.output / "measurements.json"
    measurements = run_jobs(options, path, args.workers, lambda line: print(line, file=sys.stderr))
    laws = fit_laws(measurements)
    table = make_table(measurements, laws)
    experiment.write(args.output, table, as_results(measurements, laws), {"name": "trained from scratch"})
    plot(measurements, laws, args.output / "scaling.png")
    print(table)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="JSON lines with `text`, or plain lines")
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED_MODEL, help="the bundled model's if unset")
    parser.add_argument("--output", type=Path, default=Path("runs/scaling"), help="folder to write")
    parser.add_argument("--tokens", type=int, help=f"tokens of each training; {ScalingOptions.num_tokens} if unset")
    shapes = " ".join(f"{shape.width}x{shape.num_layers}" for shape in ScalingOptions.shapes)
    parser.add_argument(
        "--shapes", type=parse_shape, nargs="+", metavar="WIDTHxBLOCKS", help=f"sizes of the models; {shapes} if unset"
    )
    parser.add_argument("--seed", type=int, help=f"of weights, order and noise; {ScalingOptions.seed} if unset")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings at a time, one core each")
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
