"""Draw the figure of an experiment again from its record; nothing is trained or measured.

    python -m experiments.redraw docs/results/scaling-8cc99d7b.record.json

It writes `<name>.png` beside the record.
"""

import argparse
from importlib import import_module
from pathlib import Path

from llada_core.records import read_record

# The experiments whose records hold all that their figures show: their function `plot` takes a record.
NAMES = ("preferences", "reversal", "sampling", "scaling", "sudoku")


def redraw(path: Path) -> Path:
    """Draw the figure of a record.

    Args:
        path: of the record.

    Returns:
        The figure's path.

    Raises:
        ValueError: for a file that is no record, one of something else than `NAMES`, or one that lacks what its figure
            shows.
    """
    record = read_record(path)
    if record.name not in NAMES:
        raise ValueError(
            f"`record` must be of one of the experiments {', '.join(NAMES)}, got {record.name!r}; run another "
            "experiment again in its folder, where finished trainings are not repeated."
        )
    figure_path = path.with_name(f"{record.name}.png")
    import_module(f".{record.name}", __package__).plot(record).savefig(figure_path)
    return figure_path


def main(arguments: list[str] | None = None) -> None:
    """Draw every figure that is named."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.redraw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORD", help="NAME-HASH.record.json")
    for path in parser.parse_args(arguments).records:
        print(redraw(path))


if __name__ == "__main__":
    main()
