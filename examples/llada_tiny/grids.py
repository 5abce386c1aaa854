"""Puzzles as rows of text: Sudoku of 4x4 and 6x6 cells, and sums with missing digits.

A puzzle is its own solution with some characters missing, each of them one token. `infill` solves it, in any order.

    Sudoku          1□7+□5=2□2
    1□3456
    …

A hash of what solves a row decides its split (`llada_training.puzzles.split_of`): the solved grid, or the whole sum.
Row `n` of a stream is a function of `n` alone, so that a training may be cut off and resumed anywhere.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from llada_training.puzzles import BOXES, Sudoku, grid_text, make_sudokus, split_of

GLYPH = "□"
# Side of the grid -> empty cells of the puzzles to learn from -> how many are made; each is seen in many disguises.
POOL = {4: {8: 200, 10: 400, 11: 400}, 6: {20: 400, 23: 600, 24: 1000, 25: 600}}
POOL_SEED = 0
MAX_DIGITS = 3


@dataclass(frozen=True)
class Row:
    """A solved puzzle.

    Attributes:
        text: with every character in its place.
        is_asked: for each character, whether the puzzle lacks it.
    """

    text: str
    is_asked: tuple[bool, ...]

    @property
    def puzzle(self) -> str:
        """The text as it is asked, with `GLYPH` where a character is missing."""
        return "".join(GLYPH if asked else character for character, asked in zip(self.text, self.is_asked))


# --- Sudoku -----------------------------------------------------------------------------------------------------------


def sudoku_row(sudoku: Sudoku) -> Row:
    """A puzzle under its heading, a line for each row of cells."""
    asked = grid_text(sudoku.puzzle, GLYPH)
    return Row(grid_text(sudoku.solution), tuple(character == GLYPH for character in asked))


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


# --- sums with missing digits -----------------------------------------------------------------------------------------


def sum_row(generator: random.Random, split: str) -> Row:
    """A sum or difference, of which so many random digits are missing that one solution is left."""
    while True:
        one, other = (_number(generator) for _ in range(2))
        text = f"{one}+{other}={one + other}" if generator.random() < 0.5 else f"{one + other}-{other}={one}"
        if split_of(text) == split:
            break
    places = [place for place, character in enumerate(text) if character.isdigit()]
    generator.shuffle(places)
    wanted, missing = generator.randint(1, len(places)), set[int]()
    for place in places:
        if len(missing) == wanted:
            break
        if count_sums(with_glyphs(text, missing | {place})) == 1:
            missing.add(place)
    return Row(text, tuple(place in missing for place in range(len(text))))


def _number(generator: random.Random) -> int:
    """A number of 1 to `MAX_DIGITS` digits, each length as likely."""
    length = generator.randint(1, MAX_DIGITS)
    return generator.randrange(10 ** (length - 1), 10**length)


def with_glyphs(text: str, missing: set[int]) -> str:
    """The text with `GLYPH` at some places."""
    return "".join(GLYPH if place in missing else character for place, character in enumerate(text))


def count_sums(text: str) -> int:
    """Number of ways to fill in the missing digits of a sum or difference; no number begins with 0.

    Args:
        text: `a+b=c` or `a-b=c` with `GLYPH` for a missing digit, nothing else.
    """
    left, right = text.split("=")
    if "+" in left:
        one, other, total = *left.split("+"), right
    else:
        total, other, one = *left.split("-"), right
    width = max(map(len, (one, other, total)))
    ways = {0: 1}  # by what is carried
    for column in range(width):
        choices = [_choices(number, column) for number in (one, other, total)]
        following: dict[int, int] = {}
        for (carry, count), a, b in product(ways.items(), choices[0], choices[1]):
            tens, unit = divmod(a + b + carry, 10)
            if unit in choices[2]:
                following[tens] = following.get(tens, 0) + count
        ways = following
    return ways.get(0, 0)


def _choices(number: str, column: int) -> tuple[int, ...]:
    """What the digit of a column, counted from the right, may be."""
    if column >= len(number):
        return (0,)
    character = number[-1 - column]
    if character != GLYPH:
        return (int(character),)
    return tuple(range(1 if column == len(number) - 1 and len(number) > 1 else 0, 10))


# --- streams ----------------------------------------------------------------------------------------------------------


def training_row(kind: str, number: int) -> Row:
    """Row `number` of the endless stream of a kind: `sudoku-4`, `sudoku-6` or `sum`.

    Raises:
        ValueError: for another kind.
    """
    generator = random.Random(f"{kind} {number}")
    if kind == "sum":
        return sum_row(generator, "train")
    if kind in ("sudoku-4", "sudoku-6"):
        return sudoku_row(disguised(generator.choice(sudoku_pool(int(kind[-1]))), generator))
    raise ValueError(f"`kind` must be sudoku-4, sudoku-6 or sum, got {kind!r}.")


def held_out_sums(count: int, seed: int) -> Iterator[Row]:
    """Different sums of the test split."""
    generator, seen = random.Random(f"test {seed}"), set[str]()
    while len(seen) < count:
        row = sum_row(generator, "test")
        if row.puzzle not in seen:
            seen.add(row.puzzle)
            yield row
