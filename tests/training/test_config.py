"""Laws of the configuration: bad options raise with a way out, and the schedule has the numbers it promises."""

import json
import math

import pytest
import torch
from transformers import get_scheduler

from llada_training import LLaDAPretrainingConfig
from llada_training.pretraining import SEQUENCE_LENGTH


def config(**options):
    return LLaDAPretrainingConfig(report_to="none", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, r"`label_smoothing_factor` must be 0.0 \(.*\), got 0.1; leave it out"),
        ({"use_liger_kernel": True}, "`use_liger_kernel` must be False .*shifts the labels.*, got True"),
        pytest.param({"use_cache": True}, "`use_cache` must be False", marks=pytest.mark.newest_only),
        ({"prediction_loss_only": True}, "`prediction_loss_only` must be False"),
        ({"batch_eval_metrics": True}, "`batch_eval_metrics` must be False"),
        ({"remove_unused_columns": False}, "`remove_unused_columns` must be True"),
        ({"average_tokens_across_devices": False}, "`average_tokens_across_devices` must be True"),
        ({"sequence_length": 0}, "`sequence_length` must be at least 1, got 0"),
        ({"random_length_probability": 1.5}, "`random_length_probability` must be from 0.0 to 1.0, got 1.5"),
        ({"noise_eps": -0.1}, "`noise_eps` must be from 0.0 to 1.0, got -0.1"),
        ({"save_dtype": "int8"}, "`save_dtype` must be one of float32, bfloat16, float16, got 'int8'"),
        ({"decay_type": "cubic"}, "`decay_type` must be one of linear, cosine, 1-sqrt, got 'cubic'"),
        ({"min_lr_ratio": 2.0}, "`min_lr_ratio` must be from 0 to 1, got 2.0"),
        (
            {"logging_nan_inf_filter": True},
            r"`logging_nan_inf_filter` must be False \(a loss that is not a number must",
        ),
        ({"warmup_steps": -1}, "`warmup_steps` must be a finite number of at least 0, got -1"),
        ({"decay_steps": math.inf}, "`decay_steps` must be a finite number of at least 0, got inf"),
        ({"learning_rate": math.inf}, "`learning_rate` must be a finite number of at least 0, got inf; leave it out"),
        ({"learning_rate": math.nan}, "`learning_rate` must be a finite number of at least 0, got nan"),
        ({"learning_rate": -1.0}, "`learning_rate` must be a finite number of at least 0, got -1.0"),
        ({"learning_rate": "1e-4"}, "`learning_rate` must be a finite number of at least 0, got '1e-4'"),
        ({"weight_decay": math.nan}, "`weight_decay` must be a finite number of at least 0, got nan"),
        ({"max_grad_norm": math.nan}, "`max_grad_norm` must be from 0 to inf, got nan"),
        ({"logging_steps": math.inf}, "`logging_steps` must be a finite number of at least 0, got inf"),
        (
            {"gradient_accumulation_steps": 0},
            "`gradient_accumulation_steps` must be a finite number of at least 1, got 0",
        ),
        ({"seed": 2**64}, "`seed` must be from 0 to 4294967295, got 18446744073709551616"),
        (
            {"lr_scheduler_kwargs": {"num_decay_steps": 3}},
            "`lr_scheduler_kwargs` must be unset with warmup_stable_decay",
        ),
        ({"model": "a", "model_config": {"d_model": 8}}, "`model_config` describes a fresh model and cannot change"),
        ({"train_data": ["a.txt"], "eval_strategy": "steps"}, "`validation_data` must be given when `eval_strategy`"),
        (
            {"model_config": "absent.json"},
            "`model_config` must be a mapping or the path of a JSON file, got 'absent.json'",
        ),
        ({"model_config": "{broken"}, "`model_config` must be JSON, got '{broken'"),
    ],
)
def test_an_option_that_cannot_work_raises_and_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_a_model_config_file_that_is_no_mapping_raises(tmp_path):
    (tmp_path / "sizes.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="`model_config` must hold a mapping of LLaDAConfig fields, got a list"):
        config(model_config=str(tmp_path / "sizes.json"))


def test_a_model_config_is_read_from_a_mapping_from_text_and_from_a_file(tmp_path):
    sizes = {"d_model": 32, "n_heads": 4}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    for given in (sizes, json.dumps(sizes), str(tmp_path / "sizes.json")):
        assert config(model_config=given).model_config == sizes


def learning_rates(options, num_steps=100):
    args = config(learning_rate=1.0, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(num_steps),
        num_steps,
        scheduler_specific_kwargs=args.get_scheduler_kwargs(num_steps),
    )
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [*rates, scheduler.get_last_lr()[0]]


def test_the_learning_rate_rises_stays_and_falls():
    rates = learning_rates({"warmup_steps": 10, "decay_steps": 20})
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10:81] == [1.0] * 71
    assert rates[90] == pytest.approx(0.5)
    assert rates[100] == 0


def test_phases_below_one_are_fractions_of_the_training():
    steps = learning_rates({"warmup_steps": 10, "decay_steps": 20})
    assert learning_rates({"warmup_steps": 0.1, "decay_steps": 0.2}) == steps


def test_the_learning_rate_falls_to_the_share_that_is_asked_for():
    rates = learning_rates({"warmup_steps": 10, "decay_steps": 20, "min_lr_ratio": 0.025})
    assert rates[0] == pytest.approx(0.025)
    assert rates[100] == pytest.approx(0.025)
    assert rates[90] == pytest.approx(0.5125)


def test_fractions_fit_into_a_training_of_any_length():
    args = config()
    for num_steps in range(1, 200):
        num_decay = args.get_scheduler_kwargs(num_steps)["num_decay_steps"]
        assert num_decay == pytest.approx(0.1 * num_steps, abs=0.5)
        assert args.get_warmup_steps(num_steps) == pytest.approx(0.01 * num_steps, abs=0.5)


def test_phases_longer_than_the_training_raise():
    with pytest.raises(ValueError, match=r"at most the number of training steps \(100\), got 90 \+ 20"):
        learning_rates({"warmup_steps": 90, "decay_steps": 20})


def test_another_schedule_takes_its_own_arguments():
    args = config(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 0.1})
    assert args.get_scheduler_kwargs(100) == {"min_lr": 0.1}


def test_the_defaults_are_those_of_the_paper():
    args = config()
    assert (args.learning_rate, args.weight_decay, SEQUENCE_LENGTH) == (4e-4, 0.1, 4096)
    assert (args.random_length_probability, args.noise_eps, args.exact_count) == (0.01, 1e-3, False)
