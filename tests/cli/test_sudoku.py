"""`llada sudoku`: what it fills in, what it shows, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from llada_cli.main import app
from llada_core.tokenization import prepare_tokenizer, save_tokenizer
from modeling_llada import LLaDAConfig, LLaDAModelLM

SPECIAL = ("<|endoftext|>", "<|mdm_mask|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
REFERENCE = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
PUZZLE = "12..|3.12|2.43|4321"


def save_model(folder: Path) -> Path:
    """An untrained model with a token for each byte and one for the heading."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Sudoku"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    end, mask, start = SPECIAL[:3]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token=mask, eos_token=end, pad_token=end, bos_token=start
    )
    size = len(vocabulary)
    config = LLaDAConfig(
        vocab_size=size, embedding_size=size, d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=32, mask_token_id=1,
        eos_token_id=0, pad_token_id=0, bos_token_id=2, max_sequence_length=128,
    )  # fmt: skip
    LLaDAModelLM(config).save_pretrained(folder)
    save_tokenizer(prepare_tokenizer(fast), folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("bytes")))


def run(*arguments: str):
    return CliRunner().invoke(app, ["sudoku", *arguments], env={"COLUMNS": "200"})


def test_given_cells_stay_and_every_empty_one_takes_a_pass(model):
    result = run(PUZZLE, "--model", model, "--json")
    record = json.loads(result.stdout)
    assert record["puzzle"] == "1200301220434321"
    assert [new for old, new in zip(record["puzzle"], record["answer"]) if old != "0"] == list("123122434321")
    assert record["forward_passes"] == 4
    assert result.exit_code == (0 if record["solved"] else 1)


def test_options_of_generation_reach_the_run(model):
    assert json.loads(run(PUZZLE, "--model", model, "--json", "--steps", "2").stdout)["forward_passes"] == 2


def test_a_new_puzzle_depends_on_the_seed_and_on_nothing_else(model):
    options = ["--model", model, "--json", "--size", "4", "--num-empty", "3"]
    puzzles = [json.loads(run(*options, "--seed", seed).stdout)["puzzle"] for seed in ("1", "1", "2")]
    assert puzzles[0] == puzzles[1] != puzzles[2]
    assert puzzles[0].count("0") == 3


def test_without_a_terminal_the_grid_is_printed_with_lines_between_boxes(model):
    lines = run(PUZZLE, "--model", model).stdout.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r" 1 2 │ . .", lines[0])
    assert lines[2] == "─────┼─────"
    assert lines[4] == " 4 3 │ 2 1"


def test_an_animation_is_written(model, tmp_path):
    run(PUZZLE, "--model", model, "--animate", str(tmp_path / "grid.svg"))
    assert (tmp_path / "grid.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["12"], "`puzzle` must have one of 16, 36, 81 cells, got 2"),
        (["11" + "0" * 14], "collide"),
        ([PUZZLE, "--size", "4"], "`size` and `num_empty` are for a new puzzle"),
        (["--size", "5"], "`size` must be one of 4, 6, 9, got 5"),
    ],
)
def test_what_cannot_be_solved_is_refused_before_a_model_is_loaded(arguments, message):
    result = run(*arguments, "--model", "no-such-folder")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_model_that_has_not_learnt_grids_is_refused():
    result = run(PUZZLE, "--model", str(REFERENCE))
    assert result.exit_code == 2
    assert re.search(r"`--model` must have learnt grids, but 'Sudoku' is \d of its tokens; train such", result.stderr)
