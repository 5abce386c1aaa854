"""`llada convert`: what it prints, and how it says what went wrong."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from llada_cli.main import app
from llada_core.tokenization import save_tokenizer

TOKENIZER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"


def run(*arguments: str):
    return CliRunner().invoke(app, ["convert", *arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=512)).save_pretrained(folder)
    save_tokenizer(PreTrainedTokenizerFast.from_pretrained(TOKENIZER), folder)
    return folder


def test_the_flags_of_autoregressive():
    output = run("autoregressive", "--help").stdout
    for flag in ("SRC", "DST", "--gguf-file", "--dtype", "--mask-token", "--init-from", "--force"):
        assert flag in output


def test_a_llama_becomes_a_checkpoint_that_answers(llama, tmp_path):
    target = tmp_path / "llada"
    result = run("autoregressive", str(llama), str(target), "--dtype", "bfloat16", "--init-from", "a")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"LLaDA checkpoint: {target}"
    config = json.loads((target / "config.json").read_text())
    assert (config["dtype"], config["mask_token_id"], config["eos_token_id"]) == ("bfloat16", 488, 481)
    answer = CliRunner().invoke(app, ["generate", "hello", "--model", str(target), "-n", "4", "--json"])
    assert json.loads(answer.stdout)["prompt"] == "hello"


def test_what_goes_wrong_is_one_line_on_stderr(llama, tmp_path):
    result = run("autoregressive", str(llama), str(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (f"Error: The folder `{tmp_path}` exists; name another, or pass `--force` to replace it.\n")
