"""Laws of `llada train dpo` and `kto`: from a file of preferences to a complete model folder, whole or an adapter."""

import json

import pytest
import torch

from llada_training import dpo_main, kto_main
from llada_training.preference_command import parse_dpo, parse_kto
from modeling_llada import LLaDAModelLM

from .conftest import CHECKPOINTS

pytestmark = pytest.mark.newest_only

MODEL = str(CHECKPOINTS / "mha")
PAIRS = [{"prompt": f"{n}?", "chosen": f" It is {n}.", "rejected": f" It is {n + 1}."} for n in range(6)]
CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in PAIRS
]


@pytest.fixture
def arguments(tmp_path):
    """Options of a run of two steps into `tmp_path / "run"`, on the given rows."""

    def make(rows, **options):
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        defaults = {
            "model": MODEL, "train_data": data, "output_dir": tmp_path / "run", "per_device_train_batch_size": 4,
            "num_noise_samples": 2, "max_steps": 2, "learning_rate": 0.01, "report_to": "none", "disable_tqdm": "true",
        }  # fmt: skip
        return [text for name, value in (defaults | options).items() for text in (f"--{name}", str(value))]

    return make


@pytest.mark.parametrize("main, rows", [(dpo_main, PAIRS), (dpo_main, CHATS), (kto_main, CHATS)])
def test_a_run_leaves_a_model_that_has_learnt_with_tokenizer_curve_and_card(arguments, tmp_path, main, rows):
    folder = main(arguments(rows))
    assert folder == str(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "loss_curve.png", "README.md", "modeling_llada.py"} <= names
    before, after = (LLaDAModelLM.from_pretrained(path, dtype=torch.float32).state_dict() for path in (MODEL, folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_with_an_adapter_the_run_leaves_it_and_the_merged_model(arguments, tmp_path):
    pytest.importorskip("peft")
    dpo_main(arguments(PAIRS, use_peft="true", lora_r=2))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("parse", [parse_dpo, parse_kto])
def test_a_run_without_a_model_is_refused(parse):
    with pytest.raises(ValueError, match="`model` must name a LLaDA checkpoint"):
        parse(["--output_dir", "out"])


def test_a_file_without_the_columns_is_named(arguments):
    with pytest.raises(
        ValueError, match=r"Examples must have the column `chosen` and `rejected`.*got question in .*data"
    ):
        dpo_main(arguments([{"question": "?"}]))


def test_losses_and_their_weights_come_from_the_command_line():
    config, _ = parse_dpo(["--model", "m", "--output_dir", "out", "--loss_type", "ipo", "--beta", "0.5"])
    assert (config.loss_type, config.loss_weights, config.beta) == (["ipo"], [1.0], 0.5)
    config, _ = parse_dpo(["--model", "m", "--output_dir", "out"])
    assert (config.loss_type, config.loss_weights) == (["sigmoid", "sft"], [1.0, 0.05])
