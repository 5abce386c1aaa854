"""The result cache: what was computed is never computed again, and nothing is taken for what it is not."""

from pathlib import Path

import pytest

from llada_core.digests import json_digest
from llada_evaluation.result_cache import Job, ResultCache, run_jobs


def square_jobs(numbers: list[int]) -> list[Job]:
    return [Job(json_digest(number), number, number) for number in numbers]


class Squares:
    """Squares numbers, remembers in which company, and breaks off before the one it is told to."""

    def __init__(self, cache: ResultCache, breaks_at: int | None = None):
        self.cache, self.breaks_at = cache, breaks_at
        self.groups: list[list[int]] = []
        self.num_done = 0

    def compute(self, numbers: list[int], progress) -> list[int]:
        if self.breaks_at in numbers:
            raise KeyboardInterrupt
        self.groups.append(numbers)
        progress(len(numbers))
        return [number**2 for number in numbers]

    def run(self, numbers: list[int]) -> list[int]:
        return run_jobs(square_jobs(numbers), self.compute, self.cache, 2, self.count)

    def count(self, number: int) -> None:
        self.num_done += number


def test_results_come_in_the_order_of_the_jobs_which_are_computed_longest_first_and_equal_ones_once():
    squares = Squares(ResultCache(None))
    assert squares.run([1, 5, 3, 5, 2]) == [1, 25, 9, 25, 4]
    assert squares.groups == [[5, 3], [2, 1]]
    assert squares.num_done == 4


def test_the_company_in_which_something_is_computed_does_not_depend_on_the_order():
    squares = Squares(ResultCache(None))
    squares.run([2, 4, 1, 3])
    assert squares.groups == [[4, 3], [2, 1]]


def test_after_an_interruption_the_rest_is_computed_in_the_same_company(tmp_path):
    interrupted = Squares(ResultCache(tmp_path), breaks_at=2)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run([1, 2, 3, 4, 5])
    assert interrupted.groups == [[5, 4]]
    resumed = Squares(ResultCache(tmp_path))
    assert resumed.run([1, 2, 3, 4, 5]) == [1, 4, 9, 16, 25]
    assert resumed.groups == [[3, 2], [1]]
    assert resumed.num_done == 5


def test_every_start_and_every_process_writes_a_file_of_its_own_and_reads_all(tmp_path):
    for rank, number in [(0, 1), (1, 2), (0, 3)]:
        Squares(ResultCache(tmp_path, rank)).run([number])
    assert len(list(tmp_path.iterdir())) == 3
    reader = Squares(ResultCache(tmp_path))
    assert reader.run([1, 2, 3]) == [1, 4, 9]
    assert reader.groups == []
    assert len(list(tmp_path.iterdir())) == 3


def test_a_result_found_in_this_run_is_not_computed_again_in_it(tmp_path):
    squares = Squares(ResultCache(tmp_path))
    squares.run([1, 2])
    squares.run([2, 3])
    assert squares.groups == [[2, 1], [3]]


def test_without_a_folder_nothing_is_kept():
    squares = Squares(ResultCache(None))
    squares.run([1])
    squares.run([1])
    assert squares.groups == [[1], [1]]


def test_a_last_line_that_was_cut_off_is_computed_again(tmp_path):
    Squares(ResultCache(tmp_path)).run([1, 2])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    squares = Squares(ResultCache(tmp_path))
    assert squares.run([1, 2]) == [1, 4]
    assert squares.groups == [[1]]


def test_the_folder_may_not_be_a_file():
    with pytest.raises(ValueError, match="`result_cache` must be a folder"):
        ResultCache(Path(__file__))
