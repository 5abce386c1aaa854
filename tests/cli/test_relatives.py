"""Laws of the commands with LLaDA's relatives: they answer, chat and are evaluated as LLaDA is."""

import json

import pytest
import torch
from typer.testing import CliRunner

from llada_cli.main import app
from llada_core.loading import load_checkpoint
from llada_core.tokenization import encode_chat
from tests.evaluation.offline_rows import write_packages
from tests.family import KINDS, released_folder

SHORT = ("--max-new-tokens", "6", "--block-length", "3", "--threshold", "0.5")


def run(*arguments: str, stdin: str = "", exit_code: int = 0) -> str:
    """What a command prints; with an exit code, its error."""
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"], input=stdin, env={"COLUMNS": "200"})
    assert result.exit_code == exit_code, result.stderr
    return result.stderr if exit_code else result.stdout


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return released_folder(request.param, tmp_path_factory.mktemp("relatives") / request.param)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_generate_answers_as_the_model_does_alone_and_in_batches(folder, cache) -> None:
    checkpoint, prompts = load_checkpoint(folder, device="cpu"), ["ab cd", "e", "fgh"]
    flags = ["--model", str(folder), *SHORT, "--cache", cache, "--json"]
    for batch_size in ("1", "3"):
        lines = run("generate", *prompts, *flags, "--batch-size", batch_size).splitlines()
        for prompt, line in zip(prompts, lines, strict=True):
            ids = torch.tensor([checkpoint.tokenizer(prompt)["input_ids"]])
            output = checkpoint.model.generate(ids, max_new_tokens=6, block_length=3, threshold=0.5, cache=cache)
            text = checkpoint.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            assert json.loads(line)["answer"] == text


def test_a_conversation_is_held_in_the_words_of_its_kind_or_refused(folder) -> None:
    command = ["chat", "--model", str(folder), *SHORT]
    if folder.name == "illada":  # a base checkpoint comes without a template
        assert "The tokenizer has no `chat_template`" in run(*command, stdin="ab\n", exit_code=2)
        return
    checkpoint = load_checkpoint(folder, device="cpu")
    ids = torch.tensor([encode_chat(checkpoint.tokenizer, [{"role": "user", "content": "ab"}])])
    output = checkpoint.model.generate(ids, max_new_tokens=6, block_length=3, threshold=0.5)
    text = checkpoint.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert text.strip() in run(*command, stdin="ab\n")


def test_likelihoods_and_answers_are_evaluated(folder, tmp_path) -> None:
    pytest.importorskip("lm_eval", reason="the harness comes with the extra `eval`")
    packages = write_packages(tmp_path / "packages")
    chosen = ["--suite", "offline", "--tasks", "PIQA,TruthfulQA", "--limit", "1", "--model", str(folder)]
    options = ["--model-args", "mc_num=1,max_new_tokens=4,steps=4", "--offline-data", str(packages)]
    lines = run("evaluate", *chosen, *options, "--output", str(tmp_path / "records")).splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["PIQA", "likelihood", "0", "1"],
        ["TruthfulQA", "generation", "0", "1"],
    ]
