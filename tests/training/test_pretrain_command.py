"""Laws of `llada train pretrain`: from text to a complete model folder, and back on after an interruption."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from llada_training import pretrain_main
from llada_training.command import load_tokenizer
from llada_training.pretrain_command import load_model, parse_pretraining
from modeling_llada import LLaDAConfig, LLaDAModelLM

from .conftest import CHECKPOINTS, TEXTS

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 64, "max_sequence_length": 64}


@pytest.fixture
def recipe(tmp_path):
    """A small recipe, its data beside it; the result goes to `tmp_path / "run"`."""
    for name, texts in (("corpus", TEXTS[:50]), ("validation", TEXTS[50:])):
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    options = {
        "output_dir": str(tmp_path / "run"),
        "model_config": SIZES,
        "tokenizer": str(CHECKPOINTS / "mha"),
        "train_data": [str(tmp_path / "corpus.jsonl")],
        "validation_data": [str(tmp_path / "validation.jsonl")],
        "sequence_length": 32,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 3,
        "logging_steps": 1,
        "save_dtype": "bfloat16",
        "report_to": "none",
        "disable_tqdm": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    return ["--config", str(tmp_path / "recipe.yaml")]


def test_the_result_is_a_complete_model_folder_with_a_loss_curve(recipe, tmp_path, capsys):
    folder = Path(pretrain_main(recipe))
    assert folder == tmp_path / "run"
    printed = capsys.readouterr().out
    assert f"Model, tokenizer and training log: {folder}" in printed
    assert f"Loss curve: {folder / 'loss_curve.png'}" in printed
    assert (folder / "loss_curve.png").stat().st_size > 10_000
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [3, 6]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.mask_token_id == 488
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    model = LLaDAModelLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert (model.config.mask_token_id, model.config.eos_token_id, model.config.vocab_size) == (488, 481, 492)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] in (481, [481])
    ids = model.generate(torch.tensor([tokenizer("1 is")["input_ids"]]), max_new_tokens=4)
    assert not (ids == 488).any()


def test_the_command_line_wins_over_the_recipe(recipe):
    config = parse_pretraining([*recipe, "--max_steps", "2", "--exact_count", "--model_config", '{"d_model": 16}'])
    assert (config.max_steps, config.exact_count, config.learning_rate) == (2, True, 1e-3)
    assert config.model_config == {"d_model": 16}


def test_an_interrupted_run_is_continued_to_the_same_weights(recipe, tmp_path):
    pretrain_main(recipe)
    pretrain_main([*recipe, "--output_dir", str(tmp_path / "other"), "--save_total_limit", "5"])
    checkpoint = tmp_path / "other" / "checkpoint-3"
    pretrain_main([*recipe, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", str(checkpoint)])
    weights = [LLaDAModelLM.from_pretrained(tmp_path / name).state_dict() for name in ("run", "other", "again")]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]) and torch.equal(value, weights[2][name]), name


def test_checkpoints_of_an_earlier_run_are_neither_overwritten_nor_mixed(recipe, tmp_path):
    pretrain_main(recipe)
    with pytest.raises(
        ValueError, match=r"`output_dir` must not hold checkpoints .*checkpoint-6.*resume_from_checkpoint"
    ):
        pretrain_main(recipe)
    # Nothing is left to do, and the result is written again.
    assert pretrain_main([*recipe, "--resume_from_checkpoint", "true"]) == str(tmp_path / "run")


@pytest.mark.parametrize("wish", ["true", "absent-folder"])
def test_a_checkpoint_that_is_not_there_is_refused(recipe, wish):
    with pytest.raises(ValueError, match=f"`resume_from_checkpoint` must be true or the folder of .*, got {wish}, but"):
        pretrain_main([*recipe, "--resume_from_checkpoint", wish])


def test_training_continues_from_a_released_checkpoint(recipe, tmp_path):
    folder = pretrain_main(
        [
            *("--model", str(CHECKPOINTS / "mha"), "--train_data", str(tmp_path / "corpus.jsonl")),
            *(
                "--output_dir",
                str(tmp_path / "more"),
                "--sequence_length",
                "32",
                "--max_steps",
                "1",
                "--warmup_steps",
                "0",
            ),
            *("--report_to", "none", "--disable_tqdm", "true", "--learning_rate", "0.01", "--logging_steps", "1"),
        ]
    )
    before, after = (LLaDAModelLM.from_pretrained(path).state_dict() for path in (CHECKPOINTS / "mha", folder))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before)
    assert PreTrainedTokenizerFast.from_pretrained(folder).mask_token_id == 488


def test_an_unknown_option_is_refused_and_the_nearest_named(recipe, tmp_path):
    with pytest.raises(ValueError, match="Unknown option '--sequence_lenght'; did you mean '--sequence_length'"):
        parse_pretraining([*recipe, "--sequence_lenght", "3"])
    (tmp_path / "typo.yaml").write_text("noise_epsilon: 0.1\n")
    with pytest.raises(ValueError, match="Unknown option '--noise_epsilon'; did you mean '--noise_eps'"):
        parse_pretraining(["--config", str(tmp_path / "typo.yaml")])


def test_a_recipe_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"`--config` must name a YAML file, got 'absent\.yaml'"):
        parse_pretraining(["--config", "absent.yaml"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\n", "must name a YAML file, got .*, which is not one: while parsing"),
        (
            b"a: !!python/object/apply:os.system [ls]\n",
            "must name a YAML file, got .*, which is not one: could not determine",
        ),
        (b"\xff: 1\n", "must name a YAML file, got .*, which is not one: 'utf-8' codec"),
        (b"- 1\n", "must name a YAML file with a mapping of options, got .*, which holds none"),
        (b"1: 2\n", "must name a YAML file with a mapping of options, got .*, which holds none"),
        (b"", "must name a YAML file with a mapping of options, got .*, which holds none"),
    ],
)
def test_a_recipe_that_is_not_a_mapping_of_options_is_refused(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        parse_pretraining(["--config", str(tmp_path / "recipe.yaml")])


def test_a_recipe_without_a_name_is_refused():
    with pytest.raises(ValueError, match="`--config` must name a YAML file, got ''"):
        parse_pretraining(["--max_steps", "1", "--config"])


def test_help_lists_the_options_of_llada_and_of_the_trainer(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_pretraining(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("llada train pretrain", "--exact_count", "--learning_rate", "--config"))


def test_without_a_model_or_tokenizer_the_command_says_what_is_missing(recipe, tokenizer):
    with pytest.raises(ValueError, match=r"One of `model` .* and `model_config` .* must be given, got neither"):
        load_model(parse_pretraining(["--report_to", "none"]), tokenizer)
    with pytest.raises(ValueError, match="`tokenizer` must name a folder or Hub id when `model` does not, got None"):
        load_tokenizer(parse_pretraining(["--report_to", "none"]))


def test_a_model_and_a_tokenizer_that_disagree_are_refused(recipe, tokenizer):
    options = parse_pretraining([*recipe, "--model_config", json.dumps({**SIZES, "eos_token_id": 3})])
    with pytest.raises(ValueError, match="`eos_token_id` must be the same in model and tokenizer, got 3 and 481"):
        load_model(options, tokenizer)


def test_sequences_longer_than_the_model_are_refused(recipe, tokenizer):
    with pytest.raises(ValueError, match=r"`sequence_length` must be at most the model's .* \(64\), got 65"):
        load_model(parse_pretraining([*recipe, "--sequence_length", "65"]), tokenizer)


def test_a_fresh_model_needs_a_mask_token(recipe):
    from tokenizers import Tokenizer, models

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(ValueError, match="`tokenizer` must declare a mask token for a fresh model, got none"):
        load_model(parse_pretraining(recipe), bare)


def test_the_recipe_of_the_bundled_model_stays_below_16_megabytes():
    config = parse_pretraining(["--config", str(RECIPES / "tiny-pretrain.yaml"), "--report_to", "none"])
    ids = {"vocab_size": 8192, "mask_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig(**config.model_config, **ids))
    assert config.save_dtype == "bfloat16"
    assert 15e6 < 2 * model.num_parameters() < 16e6


def test_importing_the_package_loads_neither_torch_nor_transformers():
    import subprocess
    import sys

    check = (
        "import sys, llada_training; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
