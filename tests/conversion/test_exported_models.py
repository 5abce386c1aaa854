"""Generation with exported models: the sampler is the same, so the tokens are."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llada_cli.main import app
from llada_conversion import load_exported
from llada_conversion.runtimes import optimum_problem
from modeling_llada import LLaDAModelLM, generate_many

FOLDER = Path(__file__).parents[1] / "reference" / "checkpoints" / "mha"
BUNDLED = Path(__file__).parents[2] / "checkpoints" / "llada-tiny"
MASK = 488
HAS_OPTIMUM = optimum_problem("onnx") is None
needs_optimum = pytest.mark.skipif(not HAS_OPTIMUM, reason="needs the extra `optimum`")

PROMPTS = torch.tensor([[7, 301, 12, 45, 260, 33], [9, 8, 411, 77, 5, 120], [64, 2, 97, 350, 18, 201]])
LEFT = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
RIGHT = LEFT.flip(1)


@pytest.fixture(scope="module")
def exported(exported_report):
    """An exported `mha` that computes in float32."""
    return load_exported(exported_report[1].folder, dtype="float32")


@needs_optimum
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_mask": LEFT},
        {"attention_mask": RIGHT},
        {"cache": "prefix", "attention_mask": RIGHT},
        {"cache": "dual", "attention_mask": LEFT, "steps": 8},
        {"cache": "dual", "freeze_prompt": True, "refresh_interval": 2},
        {"cache": "prefix", "suffix_window": 4, "threshold": 0.2},
        {"cache": "dual", "cfg_scale": 0.5, "attention_mask": LEFT},
        {"remask_rate": 0.25},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_greedy_tokens_are_those_of_pytorch(exported, tiny_model, options):
    options = {"max_new_tokens": 20, "block_length": 8, "stop_at_eos": False, **options}
    assert torch.equal(exported.generate(PROMPTS, **options), tiny_model.generate(PROMPTS, **options))


@needs_optimum
def test_drawn_tokens_are_those_of_pytorch(exported, tiny_model):
    drawn = [
        model.generate(PROMPTS, max_new_tokens=12, temperature=1.0, generator=torch.Generator().manual_seed(3))
        for model in (exported, tiny_model)
    ]
    assert torch.equal(*drawn)


@needs_optimum
def test_masks_are_filled_as_by_pytorch(exported, tiny_model):
    noisy = PROMPTS.clone()
    noisy[:, 2:4] = MASK
    assert torch.equal(exported.infill(noisy), tiny_model.infill(noisy))


@needs_optimum
def test_many_prompts_are_answered_as_by_pytorch(exported, tiny_model):
    options = {"batch_size": 2, "max_new_tokens": 8, "block_length": 4, "cache": "dual"}
    prompts = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14]]
    answers = [{a.index: a.ids for a in generate_many(model, prompts, **options)} for model in (exported, tiny_model)]
    assert answers[0] == answers[1]


@needs_optimum
def test_an_exported_model_refuses_what_it_cannot_do(exported, tmp_path):
    with pytest.raises(ValueError, match="`compile` has no meaning for an exported model"):
        exported.generate(PROMPTS, compile=True)
    with pytest.raises(
        ValueError,
        match="`pack_weights=True` is not available here: the weights of an exported model are in its graphs",
    ):
        exported.generate(PROMPTS, pack_weights=True)
    folder = shutil.copytree(exported.model_save_dir, tmp_path / "model")
    for path in folder.glob("*block_model*"):
        path.unlink()
    without_block = load_exported(folder, dtype="float32")
    with pytest.raises(ValueError, match="`cache='dual'` needs the block graph, which this exported model lacks"):
        without_block.generate(PROMPTS, max_new_tokens=4, cache="dual")
    with pytest.raises(ValueError, match="an order of positions other than left to right needs the block graph"):
        without_block.generate(PROMPTS, attention_mask=RIGHT, max_new_tokens=4)
    options = {"max_new_tokens": 4, "attention_mask": LEFT}
    assert torch.equal(without_block.generate(PROMPTS, **options), exported.generate(PROMPTS, **options))


@needs_optimum
def test_an_exported_model_is_saved_with_both_graphs(exported, tmp_path):
    exported.save_pretrained(tmp_path / "again")
    again = load_exported(tmp_path / "again", dtype="float32")
    options = {"max_new_tokens": 8, "block_length": 4, "cache": "dual"}
    assert torch.equal(again.generate(PROMPTS, **options), exported.generate(PROMPTS, **options))


@needs_optimum
def test_the_command_generates_with_an_exported_model(exported):
    options = ("-n", "8", "--json", "--dtype", "float32", "--cache", "prefix", "--no-stop-at-eos", "the light")
    answers = []
    for model in (exported.model_save_dir, FOLDER):
        result = CliRunner().invoke(app, ["generate", "--model", str(model), *options])
        assert result.exit_code == 0, result.stderr
        answers.append(json.loads(result.stdout)["answer"])
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "option, message",
    [
        (["--device", "meta"], "`device` must be cpu for the exported model"),
        (["--trust-remote-code"], "`trust_remote_code` has no meaning for the exported model"),
    ],
)
def test_the_command_refuses_options_that_an_exported_model_does_not_have(tmp_path, option, message):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model.onnx")
    result = CliRunner().invoke(app, ["generate", "--model", str(folder), *option, "the light"])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@needs_optimum
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_the_command_line_of_optimum_exports_what_optimum_and_we_run(tmp_path, runtime):
    code = "import sys; from optimum.commands.optimum_cli import main; sys.exit(main())"
    options = ("--model", str(BUNDLED), "--task", "fill-mask", "--trust-remote-code")
    run("-c", code, "export", runtime, *options, str(tmp_path / "model"))
    ids = torch.randint(8192, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :10] = 0
    expected = LLaDAModelLM.from_pretrained(BUNDLED, dtype=torch.float32)(ids, attention_mask=mask).logits
    ours = load_exported(tmp_path / "model", dtype="float32")
    theirs_class = next(each for each in type(ours).__mro__ if each.__module__.startswith("optimum."))
    options = {"ov_config": ours.ov_config} if runtime == "openvino" else {}
    theirs = theirs_class.from_pretrained(tmp_path / "model", trust_remote_code=True, **options)
    for model in (ours, theirs):
        logits = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=2e-4, rtol=0)


@pytest.mark.skipif(HAS_OPTIMUM, reason="needs an environment without Optimum")
@pytest.mark.parametrize("name", ["ORTModelForLLaDA", "OVModelForLLaDA"])
def test_without_optimum_the_classes_say_what_to_do(name):
    import llada_conversion

    with pytest.raises(ImportError, match=f"`{name}` needs Optimum, and `.*; make an environment for it"):
        getattr(llada_conversion, name)


def test_a_folder_without_graphs_is_no_exported_model(tmp_path):
    with pytest.raises(ValueError, match=r"must hold model.onnx or openvino_model.xml; make one by: llada export"):
        load_exported(tmp_path)


def test_an_onnx_graph_holds_its_types(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"`dtype` must be auto or float32 for `model.onnx`, got 'bfloat16'"):
        load_exported(tmp_path, dtype="bfloat16")


def run(*arguments: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
