"""Laws of the Sudoku experiment: puzzles as ids, solved shares, table, and its short run."""

import json

import pytest
import torch

from experiments import sudoku
from experiments.common import Interval, make_model
from llada_training.puzzles import make_sudokus

[PUZZLE, *OTHERS] = make_sudokus(6, 4, 6, "train")


def test_a_prompt_is_the_beginning_of_a_row_and_reads_back():
    tokenizer = sudoku.make_tokenizer()
    row = sudoku.row_of(PUZZLE)
    assert tokenizer(sudoku.prompt_of(PUZZLE))["input_ids"] == row[: sudoku.PROMPT_LENGTH]
    assert tokenizer.decode(row[sudoku.PROMPT_LENGTH :]).replace(" ", "") == PUZZLE.solution
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (7, 7, sudoku.MASK)


class Solver(torch.nn.Module):
    """Knows the solutions of some puzzles; stands for a trained model."""

    def __init__(self, known):
        super().__init__()
        self.known = {tuple(sudoku.row_of(puzzle)[: sudoku.PROMPT_LENGTH]): puzzle for puzzle in known}
        self.config = make_model("autoregressive", sudoku.SHORT.shape, 9, 34, 8, 7, 0).config

    def generate(self, prompts, **options):
        rows = [self.known.get(tuple(prompt.tolist())) for prompt in prompts]
        blank = [1] * sudoku.NUM_CELLS
        solutions = [blank if puzzle is None else list(map(int, puzzle.solution)) for puzzle in rows]
        return torch.cat([prompts, torch.tensor(solutions)], 1)


def test_only_puzzles_that_are_right_to_the_last_cell_are_solved():
    assert sudoku.solved_share(Solver([PUZZLE, *OTHERS[:2]]), [PUZZLE, *OTHERS]) == 0.5


def test_steps_are_spread_to_the_last_one():
    assert sudoku.spread(10, 4) == [2, 5, 7, 10]
    assert sudoku.spread(2, 5) == [1, 2]


def test_the_table_has_the_points_over_the_start():
    results = {"autoregressive": Interval(0.25)}
    results |= {"LLaDA, the start": Interval(0.5, 0.01, 0.02), "fork": Interval(0.75, 0.02, 0.05)}
    table = sudoku.make_table(results)
    assert "| LLaDA, the start | 50.0 ± 2.0 |  |" in table
    assert "| fork | 75.0 ± 5.0 | +25.0 |" in table


@pytest.mark.slow
@pytest.mark.newest_only
def test_the_short_run_writes_table_figure_and_record_and_goes_on_where_it_stopped(tmp_path, capsys):
    arguments = ["--short", "--workers", "1", "--output", str(tmp_path)]
    sudoku.main(arguments)
    table = (tmp_path / "sudoku.md").read_text()
    assert all(f"| {objective} | " in table for objective in sudoku.OBJECTIVES)
    assert (tmp_path / "sudoku.png").read_bytes().startswith(b"\x89PNG")
    [record] = tmp_path.glob("*.record.json")
    assert len(json.loads(record.read_text())["results"]) == 5
    files = [(tmp_path / f"{objective}.jsonl").read_text().splitlines() for objective in sudoku.OBJECTIVES]
    curves = [json.loads(line)["result"]["curve"] for lines in files for line in lines]
    # Equal generated tokens for every objective: 2 rounds of 4 answers of 16 tokens.
    assert [curve[-1][0] for curve in curves] == [128, 128, 128]
    capsys.readouterr()
    sudoku.main(arguments)
    assert "done after" not in capsys.readouterr().err
