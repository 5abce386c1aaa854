"""`llada train`: arguments go on to the trainers, and errors come back on one line."""

import pytest
from typer.testing import CliRunner

from llada_cli.main import app

pytestmark = pytest.mark.newest_only


def run(*arguments: str):
    return CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "200"})


def test_the_help_of_a_trainer_lists_its_options_and_those_of_its_adapter(capsys):
    result = run("sft", "--help")
    assert result.exit_code == 0
    for text in ("llada train sft [--config RECIPE.yaml]", "--eos_fill", "--learning_rate", "--use_peft", "--lora_r"):
        assert text in result.stdout


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
