"""`llada train`: arguments go on to the trainers, and errors come back on one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llada_cli.main import app

pytestmark = pytest.mark.newest_only

REFERENCE = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"


def run(*arguments: str):
    return CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["sft", "--train_data", "absent.jsonl"], "Error: `model` must name a LLaDA checkpoint"),
        (["sft", "--model", "absent-folder", "--train_data", "absent.jsonl"], "Error: `train_data` and"),
        (["sft", "--model", "x", "--noise_eps", "2"], "Error: `noise_eps` must be from 0.0 to 1.0, got 2.0"),
        (["grpo", "--model", "x", "--train_data", "absent.jsonl"], "Error: `rewards` must name at least one of math"),
        (["grpo", "--objective", "ppo"], "Error: `objective` must be one of fork, espo, diffu, got 'ppo'"),
        (["pretrain", "--sequence_lenght", "4"], "Error: Unknown option '--sequence_lenght'; did you mean"),
    ],
)
def test_an_error_is_one_line_on_stderr(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(message)
    assert "Traceback" not in result.stderr


def test_the_traceback_is_there_for_the_asking():
    result = run("sft", "--train_data", "absent.jsonl", "--traceback")
    assert isinstance(result.exception, ValueError)


@pytest.mark.slow
def test_a_run_shows_rows_and_no_warning_bar_or_dictionary(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes."}]}]
    (tmp_path / "chat.jsonl").write_text(json.dumps(rows[0]) + "\n")
    options = f"--model {REFERENCE} --train_data chat.jsonl --validation_data chat.jsonl --eval_strategy epoch "
    options += "--output_dir run --use_peft --max_steps 2 --logging_steps 1"
    command = [sys.executable, "-m", "llada_cli", "train", "sft", *options.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "1 example for train, 1 example for validation" in lines[0]
    assert lines[1].split() == ["step", "loss", "masked", "accuracy", "lr", "tokens/s", "left"]
    assert not any("{" in line or "\r" in line for line in lines)
    assert len(lines) <= 12
