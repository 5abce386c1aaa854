"""The bundled model's puzzles as rows of text: Sudoku of 4x4 and 6x6 cells, and sums with missing digits.

A puzzle is its own solution with some characters missing, each of them one token. `infill` solves it, in any order.

    Sudoku          1□+□5=42
    1□3456
    …

Row `n` of a stream is a function of `n` alone, so that a training may be cut off and resumed anywhere.
"""

import random
from functools import lru_cache

from llada_training.puzzles import BOXES, MISSING, MissingDigits, Sudoku, grid_text, make_sudokus, random_sum, split_of

# Side of the grid -> empty cells of the puzzles to learn from -> how many are made; each is seen in many disguises.
POOL = {4: {8: 200, 10: 400, 11: 400}, 6: {20: 400, 23: 600, 24: 1000, 25: 600}}
POOL_SEED = 0


# --- Sudoku -----------------------------------------------------------------------------------------------------------


def sudoku_row(sudoku: Sudoku) -> MissingDigits:
    """A puzzle under its heading, a line for each row of cells."""
    return MissingDigits(grid_text(sudoku.puzzle, MISSING), grid_text(sudoku.solution))


@lru_cache
def sudoku_pool(size: int) -> tuple[Sudoku, ...]:
    """Training puzzles of one size, the same on every machine."""
    return tuple(
        sudoku
        for num_empty, count in POOL[size].items()
        for sudoku in make_sudokus(count, size, num_empty, "train", POOL_SEED)
    )


def disguised(sudoku: Sudoku, generator: random.Random) -> Sudoku:
    """The puzzle with digits renamed and rows and columns exchanged as its rules allow; its solution is of training.

    Exchanged are bands of boxes, rows within a band, stacks of boxes, columns within a stack; the number of solutions
    stays one.
    """
    size = sudoku.size
    rows, columns = BOXES[size]
    while True:
        digits = generator.sample("123456789"[:size], size)
        rename = str.maketrans("123456789"[:size], "".join(digits))
        row_order = _exchanged(size // rows, rows, generator)
        column_order = _exchanged(size // columns, columns, generator)
        cells = [row * size + column for row in row_order for column in column_order]
        puzzle, solution = (
            "".join(grid[cell] for cell in cells).translate(rename) for grid in (sudoku.puzzle, sudoku.solution)
        )
        if split_of(solution) == "train":
            return Sudoku(puzzle, solution)


def _exchanged(num_groups: int, group: int, generator: random.Random) -> list[int]:
    """Indices of `num_groups` groups: the groups in a random order, and each in a random order within."""
    groups = generator.sample(range(num_groups), num_groups)
    return [number * group + place for number in groups for place in generator.sample(range(group), group)]


# --- streams ----------------------------------------------------------------------------------------------------------


def training_row(kind: str, number: int) -> MissingDigits:
    """Row `number` of the endless stream of a kind: `sudoku-4`, `sudoku-6` or `sum`.

    Raises:
        ValueError: for another kind.
    """
    generator = random.Random(f"{kind} {number}")
    if kind == "sum":
        return random_sum(generator, "train")
    if kind in ("sudoku-4", "sudoku-6"):
        return sudoku_row(disguised(generator.choice(sudoku_pool(int(kind[-1]))), generator))
    raise ValueError(f"`kind` must be sudoku-4, sudoku-6 or sum, got {kind!r}.")
