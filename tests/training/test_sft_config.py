"""Laws of the fine-tuning configuration: the paper's recipe by default, and an error for what cannot apply."""

import pytest
import torch

from llada_training import LLaDASFTConfig


def config(**options):
    return LLaDASFTConfig("out", report_to="none", **options)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dft"}, r"`loss_type` must be nll \(other losses shift the labels; .*\), got dft; leave it out"),
        ({"padding_free": True}, "`padding_free` must be False .*`packing` avoids it.*, got True"),
        ({"packing_strategy": "wrapped"}, "`packing_strategy` must be bfd .*cut documents apart.*, got wrapped"),
        ({"eval_packing": True}, "`eval_packing` must be False .*each example by itself.*, got True"),
        ({"pad_to_multiple_of": 8}, "`pad_to_multiple_of` must be None .*, got 8"),
        ({"truncation_mode": "keep_end"}, "`truncation_mode` must be keep_start .*, got keep_end"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "`dataset_kwargs` must be None .*numbered, checked and"),
        ({"pad_token": "x"}, "`pad_token` must be None .*neither seen nor scored.*, got x"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0.0"),
        ({"use_liger_kernel": True}, "`use_liger_kernel` must be False"),
        ({"assistant_only_loss": False}, "`assistant_only_loss` must not be False .*, got False; leave it out"),
        ({"completion_only_loss": False}, "`completion_only_loss` must not be False .*the column `text`"),
        ({"loss_normalization": "row"}, "`loss_normalization` must be one of answer, token, got 'row'"),
        ({"turns": "last"}, "`turns` must be one of random, all, got 'last'"),
        ({"eos_fill": "row"}, "`eos_fill` must be batch or a number of at least 0, got 'row'; 0 adds one EOS alone"),
        ({"eos_fill": -1}, "`eos_fill` must be batch or a number of at least 0, got -1"),
        ({"max_length": 1}, "`max_length` must be at least 2, got 1"),
        ({"packing": True}, "`eos_fill` must be a number with `packing`.*, got 'batch'; pass eos_fill=0"),
        ({"num_noise_samples": 0}, "`num_noise_samples` must be at least 1, got 0"),
        ({"complementary_masks": True}, "`num_noise_samples` must be even .*, got 1; pass num_noise_samples=2"),
        (
            {"complementary_masks": True, "num_noise_samples": 2, "noise_eps": 0.6},
            "`noise_eps` must be at most 0.5 with `complementary_masks`.*, got 0.6",
        ),
        ({"noise_eps": 2.0}, "`noise_eps` must be from 0.0 to 1.0, got 2.0"),
        ({"train_data": "a", "eval_strategy": "steps"}, "`validation_data` must be given when `eval_strategy`"),
    ],
)
def test_an_option_that_cannot_work_raises_and_says_why(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_the_defaults_are_the_recipe_of_the_paper():
    args = config()
    assert (args.learning_rate, args.weight_decay, args.num_train_epochs) == (2.5e-5, 0.1, 3.0)
    assert (args.loss_normalization, args.eos_fill, args.turns) == ("answer", "batch", "random")
    assert (args.noise_eps, args.exact_count, args.num_noise_samples) == (1e-3, False, 1)


def test_the_schedule_is_that_of_the_paper():
    args = config()
    assert args.get_warmup_steps(10_000) == 50
    assert args.get_scheduler_kwargs(10_000) == {"num_decay_steps": 1000, "decay_type": "linear", "min_lr_ratio": 0.1}
    assert args.learning_rate * args.min_lr_ratio == pytest.approx(2.5e-6)


def test_warm_up_takes_at_most_half_of_a_short_training():
    args = config()
    assert args.get_warmup_steps(4) == 2
    for num_steps in range(1, 120):
        decay = args.get_scheduler_kwargs(num_steps)["num_decay_steps"]
        assert args.get_warmup_steps(num_steps) + decay <= num_steps


def test_the_fill_is_read_from_text_and_number():
    assert config().num_extra_eos is None
    assert config(eos_fill=3).num_extra_eos == config(eos_fill="3").num_extra_eos == 3


def test_true_is_accepted_where_only_responses_are_learnt_anyway():
    assert config(assistant_only_loss=True).assistant_only_loss
    assert config(completion_only_loss=True).completion_only_loss


def test_bfloat16_is_for_accelerators_unless_asked_for():
    assert config().bf16 is torch.accelerator.is_available()
    assert config(bf16=True).bf16
