"""Laws of training in several processes: the shipped configurations train, resume and save like one process."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset

from modeling_llada import LLaDAModelLM

from .conftest import CHECKPOINTS, TEXTS
from .two_processes import logged, make_trainer

CONFIGS = Path(__file__).parents[2] / "accelerate_configs"
SCRIPT = Path(__file__).with_name("two_processes.py")
# Name of the configuration -> accelerate's name of the engine that must have run.
ENGINES = {"ddp": "MULTI_CPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
OPTIONS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "warmup_steps": 1,
    "learning_rate": 1e-2,
    # AdamW's first steps would blow rounding up to the sign of a gradient.
    "adam_epsilon": 1e-3,
    "low_discrepancy": True,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 7,
}
# Evaluation sets that do not divide by two: one process sees a repeated example, which must not count.
JOBS = {
    "pretraining": {
        "trainer": "LLaDAPretrainingTrainer",
        "config": "LLaDAPretrainingConfig",
        "options": OPTIONS | {"sequence_length": 24, "random_length_probability": 0.2},
        "data": "sequences",
        "evaluation_data": "61-sequences",
    },
    "sft": {
        "trainer": "LLaDASFTTrainer",
        "config": "LLaDASFTConfig",
        "options": OPTIONS | {"bf16": False},
        "data": "conversations",
        "evaluation_data": "21-conversations",
    },
    # TRL averages the losses of evaluation batches, so here the set does divide.
    "dpo": {
        "trainer": "LLaDADPOTrainer",
        "config": "LLaDADPOConfig",
        "options": {name: value for name, value in OPTIONS.items() if name != "low_discrepancy"}
        | {"bf16": False, "num_noise_samples": 2},
        "data": "preferences",
        "evaluation_data": "16-preferences",
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tokenizer, sequences):
    """What every training reads: the toy model with its tokenizer, and the data."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(CHECKPOINTS / "mha", folder / "model")
    tokenizer.save_pretrained(folder / "model")
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in TEXTS]
    conversations = Dataset.from_dict({"messages": turns})
    sequences.save_to_disk(folder / "sequences")
    sequences.select(range(61)).save_to_disk(folder / "61-sequences")
    conversations.save_to_disk(folder / "conversations")
    conversations.select(range(21)).save_to_disk(folder / "21-conversations")
    answers = {"chosen": [text[:20] for text in TEXTS], "rejected": [text[-12:] for text in TEXTS]}
    preferences = Dataset.from_dict({"prompt": TEXTS, **answers})
    preferences.save_to_disk(folder / "preferences")
    preferences.select(range(16)).save_to_disk(folder / "16-preferences")
    return folder


def make_job(training, engine, inputs, folder):
    job = JOBS[training]
    paths = {name: str(inputs / job[name]) for name in ("data", "evaluation_data")}
    # Before training, FSDP2 and ZeRO-2 cannot evaluate: transformers says so.
    asks = {"evaluates_first": engine == "ddp", "folder": str(folder / training), "name": training}
    return job | paths | asks | {"model": str(inputs / "model")}


@pytest.fixture(scope="module")
def two(tmp_path_factory, inputs):
    """Results of the trainings in two processes, by the configuration file of an engine; run when first asked for."""
    done = {}

    def train(engine):
        if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
            pytest.skip("DeepSpeed is not installed: pip install deepspeed")
        if engine not in done:
            folder = tmp_path_factory.mktemp(engine)
            jobs = [make_job(training, engine, inputs, folder) for training in JOBS]
            (folder / "jobs.json").write_text(json.dumps(jobs))
            launch(engine, folder)
            done[engine] = folder, json.loads((folder / "results.json").read_text())
        return done[engine]

    return train


def launch(engine, folder):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml")]
    options = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    run = subprocess.run(
        [*command, *options, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr[-5000:]


@pytest.fixture(scope="module")
def one(tmp_path_factory, inputs):
    """The same trainings in this process: trainer, evaluation loss before, and after; run when first asked for."""
    done = {}

    def train(training):
        if training not in done:
            job = make_job(training, "none", inputs, tmp_path_factory.mktemp("one"))
            trainer = make_trainer(job, "whole", per_device_train_batch_size=4, save_strategy="no")
            before = trainer.evaluate()["eval_loss"]
            trainer.train()
            done[training] = trainer, before, trainer.evaluate()["eval_loss"]
        return done[training]

    return train


@pytest.mark.parametrize("name", ["single_gpu", *ENGINES])
def test_every_option_of_a_configuration_is_one_of_accelerate_launch(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= known
    assert config.mixed_precision == "bf16"
    assert config.num_processes == (1 if name == "single_gpu" else 8)


def test_fsdp2_shards_by_the_blocks_of_the_model():
    options = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    wrapped = options["fsdp_transformer_layer_cls_to_wrap"]
    model = LLaDAModelLM.from_pretrained(CHECKPOINTS / "mha")
    assert set(model._no_split_modules) == {wrapped}
    assert sum(type(module).__name__ == wrapped for module in model.modules()) == model.config.n_layers


@pytest.mark.slow
@pytest.mark.parametrize("training", JOBS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_and_evaluate_like_one(two, one, engine, training):
    folder, results = two(engine)
    result = results[training]
    trainer, before, after = one(training)
    assert result["num_processes"] == 2 and result["engine"] == ENGINES[engine]
    assert result["losses"] == pytest.approx(logged(trainer, "loss"), abs=1e-5)
    assert result["masked_fractions"] == pytest.approx(logged(trainer, "masked_fraction"), rel=1e-6)
    assert result.get("eval_loss_before", before) == pytest.approx(before, rel=1e-5)
    assert result["eval_loss_after"] == pytest.approx(after, rel=1e-5)
    saved = LLaDAModelLM.from_pretrained(folder / training / "whole", dtype=torch.float32)
    for (name, ours), theirs in zip(saved.named_parameters(), trainer.model.parameters()):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("training", JOBS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(two, engine, training):
    folder, results = two(engine)
    assert results[training]["resumed_losses"] == results[training]["losses"]
    whole, resumed = (
        LLaDAModelLM.from_pretrained(folder / training / name, dtype=torch.float32) for name in ("whole", "resumed")
    )
    for (name, ours), theirs in zip(whole.named_parameters(), resumed.parameters()):
        assert torch.equal(ours, theirs), name


@pytest.mark.slow
@pytest.mark.parametrize("training", JOBS)
def test_the_processes_of_ddp_hold_the_same_weights_even_after_an_evaluation_before_training(two, training):
    result = two("ddp")[1][training]
    assert result["parameter_types"] == ["Parameter"]
    assert result["difference_between_processes"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("training", JOBS)
def test_fsdp2_really_shares_the_parameters_out(two, training):
    result = two("fsdp2")[1][training]
    assert result["parameter_types"] == ["DTensor"]
    assert result["num_parameters_here"] == result["num_parameters"] / 2


@pytest.mark.slow
def test_a_checkpoint_of_fsdp2_holds_shards_and_no_gathered_weights(two):
    checkpoint = two("fsdp2")[0] / "pretraining" / "whole" / "checkpoint-2"
    assert len(list((checkpoint / "pytorch_model_fsdp_0").glob("*.distcp"))) == 2
    assert len(list((checkpoint / "optimizer_0").glob("*.distcp"))) == 2
    assert not (checkpoint / "model.safetensors").exists()
