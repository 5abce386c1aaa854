"""What every benchmark says about itself: the machine, the command, a table and a JSON file."""

import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from llada_core.records import processor_name


def machine() -> dict[str, Any]:
    """What a reader needs to place the numbers; the load of other programs before the run belongs to it."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def command() -> str:
    """The command line of this run."""
    return shlex.join(["python", *sys.argv])


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *others = [
            cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(zip(cells, widths))
        ]
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if index else "-") for index, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def write_json(result: dict[str, Any], path: str | Path | None) -> None:
    """Write the result if a path is given; its folder is made."""
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
