"""Laws of the puzzles: one solution each, every solution right, training and test apart."""

import re
from itertools import product

import pytest

from llada_training.puzzles import (
    BOXES,
    MISSING,
    SPLITS,
    Sudoku,
    colliding_cells,
    count_fillings,
    grid_text,
    has_one_solution,
    make_countdowns,
    make_sudokus,
    make_sums,
    puzzle_to_solve,
    read_grid,
    solve,
    split_of,
)
from llada_training.rewards import countdown_score, sudoku_score

# Side and number of empty cells.
SIZES = [(4, 8), (6, 18), (9, 45)]


def is_solved(solution, size):
    """Whether every row, column and box holds each digit once; written apart from the solver."""
    grid = [solution[start : start + size] for start in range(0, size**2, size)]
    height, width = BOXES[size]
    boxes = [
        "".join(grid[row + r][column + c] for r in range(height) for c in range(width))
        for row in range(0, size, height)
        for column in range(0, size, width)
    ]
    columns = ["".join(row[column] for row in grid) for column in range(size)]
    return all(sorted(unit) == [str(digit) for digit in range(1, size + 1)] for unit in (*grid, *columns, *boxes))


@pytest.mark.parametrize("size, num_empty", SIZES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_sudoku_has_its_empty_cells_and_one_solution_that_is_right(size, num_empty, split):
    sudokus = make_sudokus(4, size, num_empty, split, seed=1)
    for sudoku in sudokus:
        assert sudoku.puzzle.count("0") == num_empty
        assert all(given in ("0", cell) for given, cell in zip(sudoku.puzzle, sudoku.solution))
        assert is_solved(sudoku.solution, size)
        assert list(solve(sudoku.puzzle)) == [sudoku.solution]
        assert sudoku.size == size
    assert len({sudoku.puzzle for sudoku in sudokus}) == 4


def test_there_are_288_grids_of_4x4_and_37_of_them_are_for_tests():
    grids = list(solve("0" * 16))
    assert len(set(grids)) == 288
    assert sum(split_of(grid) == "test" for grid in grids) == 37


def test_no_grid_and_no_countdown_is_in_both_splits():
    solutions = [{sudoku.solution for sudoku in make_sudokus(150, 4, 6, split)} for split in SPLITS]
    assert not solutions[0] & solutions[1]
    keys = [{(*sorted(c.numbers), c.target) for c in make_countdowns(40, 2, split, max_number=20)} for split in SPLITS]
    assert not keys[0] & keys[1]


def test_a_puzzle_with_two_solutions_or_none_is_told_apart():
    assert has_one_solution("1234341221434321")
    assert not has_one_solution("0" * 16)
    assert not has_one_solution("1100000000000000")
    assert not has_one_solution("1230000400000000"[:3] + "0" + "0004" + "0" * 8)


def test_the_same_seed_makes_the_same_puzzles_and_another_one_others():
    for make in (lambda seed: make_sudokus(5, 4, 8, "train", seed), lambda seed: make_countdowns(5, 3, "train", seed)):
        assert make(3) == make(3) != make(4)


def test_a_countdown_is_solved_by_its_expression():
    for num_numbers in (2, 3, 4):
        for countdown in make_countdowns(50, num_numbers, "train"):
            assert 1 <= countdown.target <= 100 and len(countdown.numbers) == num_numbers
            example = countdown.example()
            assert countdown_score(example["completion"], countdown.numbers, countdown.target) == 1.0


def test_an_example_says_the_puzzle_and_its_completion_gets_the_whole_reward():
    sudoku = make_sudokus(1, 6, 12, "train")[0]
    example = sudoku.example()
    assert sudoku.puzzle in example["prompt"] and "6x6" in example["prompt"] and "2x3" in example["prompt"]
    assert sudoku_score(example["completion"], sudoku.puzzle, sudoku.solution) == 1.0
    assert Sudoku(example["puzzle"], example["solution"]) == sudoku


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_sudokus(1, 5, 8, "train"), "`size` must be one of 4, 6, 9, got 5"),
        (lambda: make_sudokus(1, 4, 0, "train"), "`num_empty` must be from 1 to 15"),
        (lambda: make_sudokus(1, 4, 8, "valid"), "`split` must be one of train, test, got 'valid'"),
        (lambda: make_sudokus(600, 4, 1, "test"), r"`num_empty` must leave puzzles .* \d+ of 600 were found"),
        (lambda: make_countdowns(1, 7, "train"), "`num_numbers` must be from 2 to 6, got 7"),
        (lambda: make_countdowns(1, 3, "train", max_number=0), "`max_number` and `max_target` must be at least 1"),
        (
            lambda: make_countdowns(50, 2, "test", max_number=2, max_target=2),
            "`count` must be at most .* got 50; found",
        ),
        (lambda: next(solve("123")), "`puzzle` must have one of 16, 36, 81 cells, got 3"),
        (lambda: next(solve("5" + "0" * 15)), "`puzzle` must hold digits from 0 to 4 alone, got '5'"),
    ],
)
def test_puzzles_that_cannot_be_made_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- grids as text ----------------------------------------------------------------------------------------------------

WRITTEN = "12..|3.12|2.43|4321"


def test_a_grid_is_read_however_it_is_written_and_goes_back_to_the_same_text():
    cells = read_grid(WRITTEN)
    assert cells == "1200301220434321"
    for text in (
        "12□□\n3□12\n2□43\n4321",
        "1 2 _ _ / 3 _ 1 2 / 2 _ 4 3 / 4 3 2 1",
        grid_text(cells),
        grid_text(cells, "?"),
    ):
        assert read_grid(text) == cells
    assert grid_text(cells, ".") == "Sudoku\n12..\n3.12\n2.43\n4321"


def test_a_grid_with_other_signs_or_digits_is_refused():
    with pytest.raises(ValueError, match=r"`puzzle` must hold digits from 0 to 4 alone, got '5'"):
        read_grid("5" + "0" * 15)
    with pytest.raises(ValueError, match=r"`puzzle` must have one of 16, 36, 81 cells, got 3"):
        read_grid("123")


def test_cells_collide_in_rows_columns_and_boxes_and_empty_ones_never():
    assert colliding_cells("0" * 16) == []
    assert colliding_cells("1100" + "0" * 12) == [0, 1]  # row, and box
    assert colliding_cells("1000" * 2 + "0" * 8) == [0, 4]  # column, and box
    assert colliding_cells("1000" + "0100" + "0" * 8) == [0, 5]  # box alone
    assert colliding_cells("1234341221434321") == []


def test_a_new_puzzle_is_of_the_test_split_and_a_given_one_is_kept():
    for seed in range(3):
        [solution] = solve(puzzle_to_solve(None, seed=seed))
        assert split_of(solution) == "test"
        assert len(solution) == 36
    assert puzzle_to_solve(WRITTEN) == read_grid(WRITTEN)
    assert puzzle_to_solve(None, 4, 5).count("0") == 5


@pytest.mark.parametrize(
    "options, message",
    [
        (("1234341221434321",), r"`puzzle` must have an empty cell, got 1234341221434321; write 0 or \."),
        (("11" + "0" * 14,), r"`puzzle` must have a solution, got 110+: the digits at row 1 column 1, row 1 column 2"),
        (("1230000400000000",), r"`puzzle` must have a solution, got 1230000400000000: its givens allow none"),
        ((WRITTEN, 4), r"`size` and `num_empty` are for a new puzzle, got 4 and None beside a given one"),
    ],
)
def test_a_puzzle_that_cannot_be_solved_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        puzzle_to_solve(*options)


# --- sums with missing digits -----------------------------------------------------------------------------------------


def fillings(puzzle):
    """Every way to fill in a sum, tried one after the other."""
    gaps = [place for place, sign in enumerate(puzzle) if sign == MISSING]
    for digits in product("0123456789", repeat=len(gaps)):
        filled = list(puzzle)
        for place, digit in zip(gaps, digits):
            filled[place] = digit
        text = "".join(filled)
        left, right = text.split("=")
        numbers = re.findall(r"\d+", text)
        if all(number == "0" or number[0] != "0" for number in numbers) and eval(left) == int(right):
            yield text


@pytest.mark.parametrize(
    "puzzle, number",
    [
        ("1□+□5=42", 1),
        ("1□7+□5=2□2", 54),
        ("□+□=3", 4),
        ("1□-□=9", 9),
        ("□0+□0=100", 9),
        ("5+5=9", 0),
        ("□□+1=100", 1),
        ("□-0=□", 10),
    ],
)
def test_fillings_are_counted_without_a_number_that_begins_with_0(puzzle, number):
    assert count_fillings(puzzle) == len(list(fillings(puzzle))) == number


@pytest.mark.parametrize("split", SPLITS)
def test_a_sum_with_missing_digits_is_right_and_has_one_solution(split):
    sums = make_sums(30, split, seed=2)
    assert len({made.puzzle for made in sums}) == 30
    for made in sums:
        assert len(made.puzzle) == len(made.solution)
        assert MISSING in made.puzzle
        if made.puzzle.count(MISSING) < 4:
            assert list(fillings(made.puzzle)) == [made.solution]
        assert count_fillings(made.puzzle) == 1
        assert split_of(made.solution) == split
