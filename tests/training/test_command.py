"""Laws of what the training commands share: names of options, and what is noticed before a model is loaded."""

import importlib.util
import warnings

import pytest

from llada_training.adapters import AdapterOptions
from llada_training.command import check_packages
from llada_training.pretrain_command import build_trainer, parse_pretraining
from llada_training.sft_command import parse_sft

from .conftest import CHECKPOINTS

pytestmark = pytest.mark.newest_only


def test_the_names_of_trl_are_understood_on_the_command_line_and_in_a_recipe(tmp_path):
    given = {
        "model_name_or_path": "m",
        "dataset_name": "a.jsonl",
        "dataset_config": "c",
        "dataset_train_split": "t",
        "dataset_test_split": "v",
    }
    (tmp_path / "recipe.yaml").write_text("".join(f"{name}: {value}\n" for name, value in given.items()))
    flags = [text for name, value in given.items() for text in (f"--{name}", value)]
    hyphens = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    for args in (flags, hyphens, ["--config", str(tmp_path / "recipe.yaml")]):
        config, _ = parse_sft(args)
        assert (config.model, config.train_data, config.dataset_config_name) == ("m", ["a.jsonl"], "c")
        assert (config.train_split, config.validation_split) == ("t", "v")


def test_a_recipe_does_not_turn_an_option_around_by_its_opposite(tmp_path):
    (tmp_path / "recipe.yaml").write_text("no_merge_adapter: true\n")
    with pytest.raises(ValueError, match="Unknown option '--no_merge_adapter'"):
        parse_sft(["--model", "m", "--config", str(tmp_path / "recipe.yaml")])


def test_options_are_read_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config, _ = parse_sft(["--model", "m", "--output_dir", "o"])
    assert config.gradient_checkpointing is True
    assert parse_sft(["--model", "m", "--gradient_checkpointing", "false"])[0].gradient_checkpointing is False


def test_sequences_are_as_long_as_the_model_takes_unless_said_otherwise(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("one two three " * 200)
    options = {"model": CHECKPOINTS / "mha", "train_data": tmp_path / "text.txt", "output_dir": tmp_path / "run"}
    config = parse_pretraining([text for name, value in options.items() for text in (f"--{name}", str(value))])
    trainer = build_trainer(config)
    limit = trainer.model.config.max_sequence_length
    assert config.sequence_length == limit < 4096
    assert max(map(len, trainer.train_dataset["input_ids"])) == limit


@pytest.mark.parametrize(
    "missing, options, message",
    [
        ("matplotlib", {}, r'The loss curve needs the package `matplotlib`; .* pip install "\.\[train\]" in the check'),
        ("peft", {"use_peft": True}, r"`use_peft` needs the package `peft`; install it with: pip"),
        ("bitsandbytes", {"use_peft": True, "load_in_4bit": True}, r"`load_in_4bit` needs .*\[quantization\]"),
        (
            "wandb",
            {"report_to": "wandb"},
            "`report_to` wandb needs the package `wandb`; install it with: pip install w",
        ),
        ("trackio", {"report_to": "trackio"}, r'`report_to` trackio needs the package `trackio`.*"\.\[track\]"'),
    ],
)
def test_a_package_that_is_missing_is_noticed_before_the_training(missing, options, message, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    report_to = options.pop("report_to", "none")
    config = parse_pretraining(["--report_to", report_to])
    with pytest.raises(ImportError, match=message):
        check_packages(config, AdapterOptions(**options))


def test_a_tracker_that_does_not_exist_is_refused_before_the_training():
    with pytest.raises(ValueError, match=r"`report_to` must be none, all or of azure_ml, .*, got 'tensorbord'"):
        check_packages(parse_pretraining(["--report_to", "tensorbord"]))
