"""Laws of what a training command shows: one row per log line, and nothing else."""

import re

import pytest

from llada_training.command import silence_libraries
from llada_training.progress import LogTable, counted


@pytest.fixture
def shown(make_trainer, capsys):
    """Train with a table, and return the lines that were printed."""

    def train(**options):
        silence_libraries()
        trainer, table = make_trainer(**options), LogTable()
        table.attach(trainer)
        trainer.train()
        table.close()
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out.splitlines()

    return train


def test_a_log_line_is_one_row_under_one_heading(shown):
    heading, *rows, end = shown(max_steps=4, logging_steps=2)
    assert heading.split() == ["step", "loss", "masked", "accuracy", "lr", "tokens/s", "left"]
    assert [row.split()[0] for row in rows] == ["2", "4"]
    assert re.fullmatch(r" +2 +\d\.\d+ +\d+% +\d+\.\d% +[\d.e+-]+ +[\d,]+  0:\d\d:\d\d", rows[0])
    assert rows[-1].endswith("  0:00:00")  # the time that is left
    assert re.fullmatch(r"Trained 4 steps in 0:\d\d:\d\d\.", end)
    assert max(map(len, rows)) < 80


def test_validation_stands_in_the_same_columns(shown):
    heading, first, second, third, *_ = shown(max_steps=2, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    assert heading.split() == ["step", "loss", "masked", "accuracy", "lr", "tokens/s", "left"]
    assert first.split()[0] == "0" and first.endswith("  validation") and third.endswith("  validation")
    assert not second.endswith("  validation")
    ends = [[match.end() for match in re.finditer(r"\S+", row)][:4] for row in (heading, first, second, third)]
    assert ends[0] == ends[1] == ends[2] == ends[3]


def test_one_is_singular():
    assert [counted(number, "example") for number in (0, 1, 2000)] == ["0 examples", "1 example", "2,000 examples"]
