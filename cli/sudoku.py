"""`llada sudoku`: a grid that is filled in before your eyes, the surest cell first, in colours of confidence."""

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.live import Live
from rich.text import Text

from llada_core.animation import check_path, colour, write_animation
from llada_core.loading import Checkpoint
from llada_core.recorder import Frame, Recorder
from llada_training.puzzles import BOXES, EMPTY, SUDOKU_HEADING, colliding_cells, side_of

from .generate import load_with_notice, split_seed
from .screen import choose_console

GIVEN_STYLE, MASK_STYLE = "bold", "dim"


def solve_puzzle(
    cells: str,
    model_options: dict[str, Any],
    options: dict[str, Any],
    *,
    delay: float = 0.0,
    json_lines: bool = False,
    quiet: bool = False,
    animate: Path | None = None,
) -> bool:
    """Fill in the empty cells of a grid, show it on a terminal, and say whether it is right.

    Args:
        cells: digits row by row, `0` where a cell is empty.
        model_options: arguments of `load_checkpoint`.
        options: options of `infill`, and `seed`.
        delay: seconds to wait after each pass.
        json_lines: print a JSON object with the keys `puzzle`, `answer`, `solved`, `forward_passes`, `seconds`.
        quiet: print the finished grid alone.
        animate: write an animation here, an .svg or .gif file.

    Returns:
        Whether every row, column and box holds each digit once.

    Raises:
        ValueError: for options that contradict each other, and a model that has not learnt grids.
        OSError, ImportError: for an animation that cannot be written.
    """
    path = None if animate is None else check_path(animate)
    console, stays = choose_console(answers_on_stdout=json_lines, quiet=quiet)
    checkpoint = load_with_notice(model_options, quiet)
    ids, columns = encode_grid(checkpoint, cells)
    options, generators = split_seed(options, checkpoint, 1)
    show = nullcontext() if console is None else Live(console=console, auto_refresh=False, transient=not stays)
    with show as live:

        def draw() -> None:
            if live is not None:
                live.update(grid_picture(cells, recorder.frames[-1], columns, checkpoint), refresh=True)
                time.sleep(delay)

        recorder = Recorder(checkpoint.tokenizer, on_frame=draw)
        output = checkpoint.model.infill(
            torch.tensor([ids], device=checkpoint.model.device), generation_config=checkpoint.options,
            streamer=recorder, logits_processor=[recorder], generator=generators and generators[0],
            return_dict_in_generate=True, **options,
        )  # fmt: skip
    answer = "".join(cell_text(recorder.frames[-1].ids[column], checkpoint) for column in columns)
    is_solved = answer.isdigit() and not colliding_cells(answer)
    num_passes, seconds = output.num_forward_passes.tolist()[0], recorder.frames[-1].seconds
    if path is not None:
        write_animation(path, recorder.frames, checkpoint.tokenizer, by="confidence")
    if json_lines:
        record = {"puzzle": cells, "answer": answer, "solved": is_solved, "forward_passes": num_passes}
        print(json.dumps(record | {"seconds": round(seconds, 4)}))
    elif not stays:
        print(grid_picture(cells, recorder.frames[-1], columns, checkpoint).plain)
    if console is not None:
        console.print(verdict(answer, num_passes, cells.count(EMPTY), seconds), highlight=False)
    return is_solved


def encode_grid(checkpoint: Checkpoint, cells: str) -> tuple[list[int], list[int]]:
    """The ids of `puzzles.grid_text` with masks in the empty cells, and the column of each cell.

    Raises:
        ValueError: if the heading or a digit is not a token of its own, as in a model that has not learnt grids.
    """
    tokenizer, size = checkpoint.tokenizer, side_of(cells)

    def id_of(text: str) -> int:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(
                f"`--model` must have learnt grids, but {text!r} is {len(ids)} of its tokens; train such a model with "
                "examples/llada_tiny/train.sh, and pass `--model runs/llada-tiny`."
            )
        return int(ids[0])

    ids, columns = [id_of(SUDOKU_HEADING)], []
    for place, cell in enumerate(cells):
        if place % size == 0:
            ids.append(id_of("\n"))
        columns.append(len(ids))
        ids.append(tokenizer.mask_token_id if cell == EMPTY else id_of(cell))
    return ids, columns


def cell_text(token: int, checkpoint: Checkpoint) -> str:
    """A cell's digit; `0` for a mask, `?` for what is no digit."""
    if token == checkpoint.tokenizer.mask_token_id:
        return EMPTY
    text = checkpoint.tokenizer.decode([token]).strip()
    return text if len(text) == 1 and text in "123456789" else "?"


def grid_picture(cells: str, frame: Frame, columns: list[int], checkpoint: Checkpoint) -> Text:
    """The grid after a pass: given cells bold, filled ones in the colour of their confidence, the newest reversed."""
    size = side_of(cells)
    height, width = BOXES[size]
    newest = max(frame.passes)
    picture = Text()
    for place, column in enumerate(columns):
        row, at = divmod(place, size)
        if at == 0 and row:
            picture.append("\n")
        if at == 0 and row % height == 0 and row:
            picture.append("┼".join(["─" * (2 * width + 1)] * (size // width)) + "\n", MASK_STYLE)
        if at % width == 0 and at:
            picture.append(" │", MASK_STYLE)
        digit = cell_text(frame.ids[column], checkpoint)
        style = GIVEN_STYLE
        if cells[place] == EMPTY:
            confidence = frame.confidences[column]
            style = MASK_STYLE if math.isnan(confidence) else colour(confidence, by="confidence")
            if frame.passes[column] == newest and checkpoint.tokenizer.mask_token_id in frame.ids:
                style += " reverse"
        picture.append(" ").append("·" if digit == EMPTY else digit, style)
    return picture


def verdict(answer: str, num_passes: int, num_empty: int, seconds: float) -> Text:
    """One line: what it took, and whether the grid is right."""
    wrong = answer.count("?") or len(colliding_cells(answer))
    text = Text(f"{num_empty} cells · {num_passes} passes · {seconds:.1f} s · ", "dim")
    return (
        text.append("solved", "green") if not wrong else text.append(f"not solved: {wrong} cells break a rule", "red")
    )
