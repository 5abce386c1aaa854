"""Laws of a training that diverges: it ends with an error, and never saves weights that are not finite."""

import json
import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainerCallback

from llada_core.tokenization import prepare_tokenizer
from llada_training import pretrain_main
from llada_training.checkpoints import last_checkpoint, non_finite_weights

from .conftest import CHECKPOINTS, TEXTS


def first_weight(model):
    return next(iter(model.parameters()))


class BreakWeights(TrainerCallback):
    """Puts a number that is none into the weights after so many steps."""

    def __init__(self, num_steps):
        self.num_steps = num_steps

    def on_step_end(self, args, state, control, model, **options):
        if state.global_step == self.num_steps:
            first_weight(model).data[0, 0] = math.nan


def test_a_loss_that_is_not_finite_is_logged_and_ends_the_training(make_trainer):
    trainer = make_trainer()
    trainer.add_callback(BreakWeights(2))
    with pytest.raises(
        ValueError, match=r"`loss` must be finite, got nan at step 3; .* lower `learning_rate` than 0.01\.$"
    ):
        trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [math.isfinite(loss) for loss in logged] == [True, True, False]


def test_a_loss_that_is_never_logged_ends_the_training_all_the_same(make_trainer):
    trainer = make_trainer(logging_strategy="no")
    trainer.add_callback(BreakWeights(2))
    with pytest.raises(ValueError, match="`train_loss` must be finite, got nan at step 4"):
        trainer.train()


def test_a_validation_loss_that_is_not_finite_raises(make_trainer):
    trainer = make_trainer()
    first_weight(trainer.model).data.fill_(math.nan)
    with pytest.raises(ValueError, match="`eval_loss` must be finite, got nan at step 0"):
        trainer.evaluate()


def test_weights_that_are_not_finite_make_no_checkpoint(make_trainer, tmp_path):
    options = {"logging_strategy": "no", "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = make_trainer(**options)
    trainer.add_callback(BreakWeights(3))
    message = r"Saved weights must be finite, got inf or nan in `.+` at step 3; .* .*checkpoint-2, as `model`\.$"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    kept = last_checkpoint(trainer.args.output_dir)
    assert kept == str(tmp_path / "run" / "checkpoint-2")
    make_trainer(**options).train(resume_from_checkpoint=kept)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_not_saved(make_trainer, tmp_path, value):
    trainer = make_trainer()
    first_weight(trainer.model).data[1, 1] = value
    with pytest.raises(
        ValueError, match=r"Saved weights must be finite, got inf or nan in `model.transformer.wte.weight`"
    ):
        trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_weights_of_any_size_and_type_and_frozen_ones_pass(make_model, dtype):
    model = make_model().to(dtype)
    first_weight(model).data.fill_(torch.finfo(dtype).max)
    assert non_finite_weights(model) == []
    first_weight(model).requires_grad_(False).data.fill_(math.nan)
    assert non_finite_weights(model) == []


@pytest.mark.newest_only
def test_a_command_that_diverges_raises_and_leaves_no_model(tmp_path):
    prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(CHECKPOINTS / "mha")).save_pretrained(
        tmp_path / "tokenizer"
    )
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    options = {
        "model": CHECKPOINTS / "mha",
        "tokenizer": tmp_path / "tokenizer",
        "train_data": corpus,
        "sequence_length": 32,
        "output_dir": tmp_path / "run",
        "max_steps": 6,
        "learning_rate": 1e30,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    with pytest.raises(ValueError, match=r"must be finite, got .* lower `learning_rate`"):
        pretrain_main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    assert not list((tmp_path / "run").glob("*.safetensors"))
