"""Puzzles whose answers a program can check: Sudoku of three sizes, sums with missing digits, and Countdown.

Training and test puzzles differ by construction: a hash of what is asked for (the solved grid; the whole sum; numbers
and target) says to which split a puzzle belongs, so that neither seeds nor counts can mix them.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product

SPLITS = ("train", "test")
# One of so many goes to the test split.
TEST_SHARE = 8
# Side of the grid -> rows and columns of a box.
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
# Stands for an empty cell.
EMPTY = "0"
# Empty cells of a new puzzle, by the side of its grid.
NUM_EMPTY = {4: 10, 6: 22, 9: 45}
# How people write an empty cell, and what they put around cells.
EMPTY_SIGNS, DECORATION = "0._□?-*", " \t\r\n|+│─┼,;/"
# Stands above a grid where a model fills in its empty cells in place.
SUDOKU_HEADING = "Sudoku"
# Stands for a missing digit.
MISSING = "□"
# Digits of the largest number in a sum that is made here, before it is added.
MAX_DIGITS = 3
# Tries to make one puzzle before its options are called impossible.
MAX_TRIES = 1000
SUDOKU_PROMPT = (
    "Solve this {size}x{size} Sudoku: fill in the digits 1 to {size} so that every row, every column and every box of "
    "{rows}x{columns} cells holds each digit once. Rows follow one another, and 0 is an empty cell.\n{puzzle}\n"
    "Give all {cells} digits between <answer> and </answer>."
)
COUNTDOWN_PROMPT = (
    "Using the numbers {numbers}, each exactly once, write an expression that equals {target}. You may use +, -, *, / "
    "and parentheses. Give the expression between <answer> and </answer>."
)


# --- Sudoku -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sudoku:
    """A puzzle with exactly one solution.

    Attributes:
        puzzle: digits of the cells, row by row, `0` where a cell is empty.
        solution: digits of all cells.
    """

    puzzle: str
    solution: str

    @property
    def size(self) -> int:
        """Side of the grid."""
        return side_of(self.puzzle)

    def example(self) -> dict[str, str]:
        """A row of a data set, in the columns that TRL and `sudoku_reward` read."""
        size = self.size
        rows, columns = BOXES[size]
        prompt = SUDOKU_PROMPT.format(size=size, rows=rows, columns=columns, cells=size**2, puzzle=self.puzzle)
        completion = f"<answer>{self.solution}</answer>"
        return {"prompt": prompt, "completion": completion, "puzzle": self.puzzle, "solution": self.solution}


def make_sudokus(count: int, size: int, num_empty: int, split: str, seed: int = 0) -> list[Sudoku]:
    """Make different puzzles with exactly one solution each.

    A solved grid belongs to one split, so no solution of a test puzzle is one of a training puzzle. Of the 288 grids
    of 4x4 cells, 37 are for tests.

    Args:
        count: puzzles to make.
        size: side of the grid: 4, 6 or 9.
        num_empty: cells to be filled in, at least 1.
        split: `train` or `test`.
        seed: of the draws.

    Raises:
        ValueError: for another size or split, and if there are not so many puzzles with so many empty cells.
    """
    if size not in BOXES:
        raise ValueError(f"`size` must be one of {', '.join(map(str, BOXES))}, got {size!r}.")
    if not 0 < num_empty < size**2:
        raise ValueError(
            f"`num_empty` must be from 1 to {size**2 - 1}, the cells of the grid less one, got {num_empty}."
        )
    _check_split(split)
    generator, made = random.Random(f"{seed} {size} {num_empty} {split}"), {}
    for _ in range(count):
        for _ in range(MAX_TRIES):
            sudoku = _try_sudoku(size, num_empty, split, generator)
            if sudoku is not None and sudoku.puzzle not in made:
                made[sudoku.puzzle] = sudoku
                break
        else:
            raise ValueError(
                f"`num_empty` must leave puzzles with one solution, and more of them than `count`, got {num_empty} of "
                f"{size**2} cells; {len(made)} of {count} were found. Lower one of them."
            )
    return list(made.values())


def _try_sudoku(size: int, num_empty: int, split: str, generator: random.Random) -> Sudoku | None:
    """Empty the cells of a random grid in a random order; None if it is of another split or does not go so far."""
    solution = next(solve(EMPTY * size**2, generator))
    if split_of(solution) != split:
        return None
    cells, missing = list(solution), num_empty
    for cell in generator.sample(range(size**2), size**2):
        digit, cells[cell] = cells[cell], EMPTY
        if has_one_solution("".join(cells)):
            missing -= 1
        else:
            cells[cell] = digit
        if not missing:
            return Sudoku("".join(cells), solution)
    return None


def grid_text(cells: str, empty: str = EMPTY) -> str:
    """A grid as the bundled model reads it: a heading, and a line for each row of cells.

    Args:
        cells: digits row by row, `0` where a cell is empty.
        empty: what stands for an empty cell, such as a mask token.
    """
    size = side_of(cells)
    lines = [cells[start : start + size].replace(EMPTY, empty) for start in range(0, size**2, size)]
    return "\n".join([SUDOKU_HEADING, *lines])


def read_grid(text: str) -> str:
    """The cells of a grid as people write it: spaces, lines between boxes and the heading are left out.

    Args:
        text: a digit for each cell, row by row; `0`, `.`, `_`, `□`, `?`, `-` or `*` where it is empty.

    Returns:
        Digits, `0` where a cell is empty.

    Raises:
        ValueError: for another number of cells, or a cell that is no digit of the grid.
    """
    signs = [sign for sign in text.removeprefix(SUDOKU_HEADING) if sign not in DECORATION]
    cells = "".join(EMPTY if sign in EMPTY_SIGNS else sign for sign in signs)
    size = side_of(cells)
    for sign in cells:
        _digit(sign, size)
    return cells


def puzzle_to_solve(puzzle: str | None, size: int | None = None, num_empty: int | None = None, seed: int = 0) -> str:
    """The cells of a puzzle that somebody wrote, or of one made here, of the split that no model trains on.

    Args:
        puzzle: as `read_grid` takes it; None makes one.
        size, num_empty: of a new puzzle; None takes 6 and `NUM_EMPTY`.
        seed: of a new puzzle.

    Raises:
        ValueError: for a puzzle without an empty cell or without a solution, and for options that do not go together.
    """
    if puzzle is None:
        size = 6 if size is None else size
        num_empty = NUM_EMPTY.get(size, 1) if num_empty is None else num_empty
        return make_sudokus(1, size, num_empty, "test", seed)[0].puzzle
    if size is not None or num_empty is not None:
        raise ValueError(
            f"`size` and `num_empty` are for a new puzzle, got {size} and {num_empty} beside a given one; leave them "
            "out, or the puzzle."
        )
    cells = read_grid(puzzle)
    if EMPTY not in cells:
        raise ValueError(f"`puzzle` must have an empty cell, got {cells}; write 0 or . where one is to be filled in.")
    if next(solve(cells), None) is None:
        side = side_of(cells)
        places = [f"row {cell // side + 1} column {cell % side + 1}" for cell in colliding_cells(cells)]
        reason = f"the digits at {', '.join(places)} collide" if places else "its givens allow none"
        raise ValueError(f"`puzzle` must have a solution, got {cells}: {reason}.")
    return cells


def colliding_cells(cells: str) -> list[int]:
    """The cells whose digit stands once more in their row, column or box, in order; empty cells collide with none."""
    return [
        cell
        for cell, others in enumerate(_neighbours(side_of(cells)))
        if cells[cell] != EMPTY and any(cells[other] == cells[cell] for other in others)
    ]


def has_one_solution(puzzle: str) -> bool:
    """Whether a puzzle has a solution and no second one."""
    solutions = solve(puzzle)
    return next(solutions, None) is not None and next(solutions, None) is None


def solve(puzzle: str, generator: random.Random | None = None) -> Iterator[str]:
    """Find the solutions of a puzzle, one after the other.

    Args:
        puzzle: digits row by row, `0` where a cell is empty; `size ** 2` of them.
        generator: tries digits in a random order; None tries the smaller first.

    Yields:
        Solved grids.

    Raises:
        ValueError: for a grid of another size, or a cell that is no digit of it.
    """
    neighbours, size = _neighbours(side_of(puzzle)), side_of(puzzle)
    cells = [_digit(character, size) for character in puzzle]
    if any(cells[a] and cells[a] == cells[b] for a in range(len(cells)) for b in neighbours[a]):
        return
    yield from _solve(cells, size, neighbours, generator)


def _solve(
    cells: list[int], size: int, neighbours: tuple[tuple[int, ...], ...], generator: random.Random | None
) -> Iterator[str]:
    """Fill the empty cell with the fewest possible digits, one digit after the other, and go on."""
    fewest: tuple[int, list[int]] | None = None
    for cell, digit in enumerate(cells):
        if digit:
            continue
        taken = {cells[other] for other in neighbours[cell]}
        free = [digit for digit in range(1, size + 1) if digit not in taken]
        if fewest is None or len(free) < len(fewest[1]):
            fewest = cell, free
        if len(free) < 2:
            break
    if fewest is None:
        yield "".join(map(str, cells))
        return
    cell, free = fewest
    if generator is not None:
        generator.shuffle(free)
    for digit in free:
        cells[cell] = digit
        yield from _solve(cells, size, neighbours, generator)
    cells[cell] = 0


@lru_cache
def _neighbours(size: int) -> tuple[tuple[int, ...], ...]:
    """The cells of the row, the column and the box of each cell, without itself."""
    rows, columns = BOXES[size]
    units = [(cell // size, cell % size, (cell // size // rows, cell % size // columns)) for cell in range(size**2)]
    return tuple(
        tuple(other for other, unit in enumerate(units) if other != cell and any(a == b for a, b in zip(own, unit)))
        for cell, own in enumerate(units)
    )


def side_of(puzzle: str) -> int:
    """Side of the grid whose cells are given; refuses other lengths."""
    for size in BOXES:
        if len(puzzle) == size**2:
            return size
    lengths = ", ".join(str(size**2) for size in BOXES)
    raise ValueError(f"`puzzle` must have one of {lengths} cells, got {len(puzzle)}.")


def _digit(character: str, size: int) -> int:
    if character not in "0123456789"[: size + 1]:
        raise ValueError(f"`puzzle` must hold digits from 0 to {size} alone, got {character!r}.")
    return int(character)


# --- sums with missing digits -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MissingDigits:
    """A text that is its own solution, with characters missing.

    Attributes:
        puzzle: with `MISSING` for each missing character.
        solution: the whole text, as long.
    """

    puzzle: str
    solution: str


def make_sums(count: int, split: str, seed: int = 0) -> list[MissingDigits]:
    """Make different sums and differences with missing digits, such as `1□+□5=42`, with one solution each.

    Args:
        count: puzzles to make, at least 1.
        split: `train` or `test`; the whole sum decides.
        seed: of the draws.

    Raises:
        ValueError: for another split.
    """
    _check_split(split)
    generator, made = random.Random(f"{seed} sums {split}"), dict[str, MissingDigits]()
    while len(made) < count:
        drawn = random_sum(generator, split)
        made.setdefault(drawn.puzzle, drawn)
    return list(made.values())


def random_sum(generator: random.Random, split: str) -> MissingDigits:
    """A sum or difference of numbers up to 999, of which so many digits are missing that one solution is left."""
    while True:
        one, other = (_random_number(generator) for _ in range(2))
        text = f"{one}+{other}={one + other}" if generator.random() < 0.5 else f"{one + other}-{other}={one}"
        if split_of(text) == split:
            break
    places = [place for place, character in enumerate(text) if character.isdigit()]
    generator.shuffle(places)
    wanted, missing = generator.randint(1, len(places)), set[int]()
    for place in places:
        if len(missing) == wanted:
            break
        if count_fillings(_without(text, missing | {place})) == 1:
            missing.add(place)
    return MissingDigits(_without(text, missing), text)


def count_fillings(puzzle: str) -> int:
    """Number of ways to fill in the missing digits of `a+b=c` or `a-b=c`; no number of several digits begins with 0."""
    left, right = puzzle.split("=")
    if "+" in left:
        one, other, total = *left.split("+"), right
    else:
        total, other, one = *left.split("-"), right
    ways = {0: 1}  # by what is carried into a column
    for column in range(max(map(len, (one, other, total)))):
        tops, bottoms, sums = (_digit_choices(number, column) for number in (one, other, total))
        following: dict[int, int] = {}
        for (carry, count), top, bottom in product(ways.items(), tops, bottoms):
            tens, unit = divmod(top + bottom + carry, 10)
            if unit in sums:
                following[tens] = following.get(tens, 0) + count
        ways = following
    return ways.get(0, 0)


def _random_number(generator: random.Random) -> int:
    """A number of 1 to `MAX_DIGITS` digits, each length as likely; of one digit it is not 0."""
    length = generator.randint(1, MAX_DIGITS)
    return generator.randrange(10 ** (length - 1), 10**length)


def _without(text: str, places: set[int]) -> str:
    return "".join(MISSING if place in places else character for place, character in enumerate(text))


def _digit_choices(number: str, column: int) -> tuple[int, ...]:
    """What the digit of a column, counted from the right, may be; 0 to the left of the number."""
    if column >= len(number):
        return (0,)
    character = number[-1 - column]
    if character != MISSING:
        return (int(character),)
    is_first = column == len(number) - 1
    return tuple(range(1 if is_first and len(number) > 1 else 0, 10))


# --- Countdown --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Countdown:
    """Numbers, and a target that an expression of all of them equals.

    Attributes:
        numbers: each to be used once.
        target: at least 1.
        expression: one solution.
    """

    numbers: tuple[int, ...]
    target: int
    expression: str

    def example(self) -> dict[str, object]:
        """A row of a data set, in the columns that TRL and `countdown_reward` read."""
        prompt = COUNTDOWN_PROMPT.format(numbers=", ".join(map(str, self.numbers)), target=self.target)
        completion = f"<answer>{self.expression}</answer>"
        return {"prompt": prompt, "completion": completion, "numbers": list(self.numbers), "target": self.target}


def make_countdowns(
    count: int, num_numbers: int, split: str, seed: int = 0, max_number: int = 99, max_target: int = 100
) -> list[Countdown]:
    """Make different solvable puzzles.

    Numbers and target together belong to one split, in whatever order the numbers stand.

    Args:
        count: puzzles to make.
        num_numbers: numbers of each, from 2 to 6. The published tasks have 3 or 4.
        split: `train` or `test`.
        seed: of the draws.
        max_number, max_target: the largest ones, at least 1.

    Raises:
        ValueError: for options out of range, and if there are not so many puzzles.
    """
    if not 2 <= num_numbers <= 6:
        raise ValueError(f"`num_numbers` must be from 2 to 6, got {num_numbers}.")
    if min(max_number, max_target) < 1:
        raise ValueError(f"`max_number` and `max_target` must be at least 1, got {max_number} and {max_target}.")
    _check_split(split)
    generator = random.Random(f"{seed} {num_numbers} {max_number} {max_target} {split}")
    made: dict[str, Countdown] = {}
    for _ in range(count):
        for _ in range(MAX_TRIES):
            numbers = tuple(generator.randint(1, max_number) for _ in range(num_numbers))
            value, expression = _random_expression(numbers, generator)
            key = f"{sorted(numbers)} {value}"
            if value.denominator == 1 and 1 <= value <= max_target and split_of(key) == split and key not in made:
                made[key] = Countdown(numbers, int(value), expression)
                break
        else:
            raise ValueError(f"`count` must be at most the puzzles that there are, got {count}; found {len(made)}.")
    return list(made.values())


def _random_expression(numbers: tuple[int, ...], generator: random.Random) -> tuple[Fraction, str]:
    """Join the numbers by random operations in a random order."""
    terms = [(Fraction(number), str(number)) for number in generator.sample(numbers, len(numbers))]
    while len(terms) > 1:
        (left, left_text), (right, right_text) = (terms.pop(generator.randrange(len(terms))) for _ in range(2))
        operation = generator.choice("+-*/" if right else "+-*")
        value = {"+": left + right, "-": left - right, "*": left * right}.get(operation)
        value = left / right if value is None else value
        text = f"{left_text} {operation} {right_text}"
        terms.append((value, f"({text})" if terms else text))
    return terms[0]


# --- splits -----------------------------------------------------------------------------------------------------------


def split_of(key: str) -> str:
    """The split to which what is asked for belongs, the same on every machine."""
    return SPLITS[hashlib.sha256(key.encode()).digest()[0] % TEST_SHARE == 0]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
