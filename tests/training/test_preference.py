"""Laws of training on preferences: shared noise, the closed form at the start, one training however it is run."""

import copy
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from trl import DPOConfig

from llada_core.loading import load_model
from llada_core.tokenization import save_tokenizer
from llada_training import (
    LLaDADPOConfig,
    LLaDADPOTrainer,
    LLaDAKTOConfig,
    LLaDAKTOTrainer,
    draw_noises,
    elbo_log_probability,
)
from llada_training.adapters import LORA_TARGET_MODULES, merge_adapter
from llada_training.dpo import LOSS_TYPES
from modeling_llada import LLaDAModelLM
from tests.helpers import run_stranger

pytestmark = pytest.mark.newest_only

# Metrics that equal models must show, whatever the noise.
LEVEL_START = {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/margins": 0.0}
# The closed form of each loss for a log ratio of 0 and beta 0.2.
STARTS = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": (1 / 0.4) ** 2,
    "exo_pair": -math.log(2) - (math.log(0.9) + math.log(0.1)) / 2,
    "nca_pair": 2 * math.log(2),
    "robust": math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 2 * (0.5 / 0.2) ** 2,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * math.log(2) + 0.5,
    "sigmoid_norm": math.log(2),
}

# Runs where none of our packages can be imported; prints the logits, exactly.
STRANGER = """
import json, sys
for name in ("modeling_llada", "llada_training", "llada_core", "peft"):
    sys.modules[name] = None
import torch, transformers
torch.set_num_threads(1)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, trust_remote_code=True)
with torch.no_grad():
    print(json.dumps(model.eval()(torch.tensor(json.loads(sys.argv[2]))).logits.flatten().tolist()))
"""


@pytest.fixture(scope="module")
def preferences():
    """16 prompts with a right and a wrong answer of different lengths."""
    rows = range(16)
    return Dataset.from_dict(
        {
            "prompt": [f"{n} and {n} make" for n in rows],
            "chosen": [f" {2 * n}, I say" * (n % 3 + 1) for n in rows],
            "rejected": [f" {3 * n + 1} or so" * (n % 2 + 1) for n in rows],
        }
    )


@pytest.fixture(scope="module")
def verdicts(preferences):
    """The same answers by themselves, good ones and bad ones in turn."""
    rows = [(row["prompt"], row[kind], kind == "chosen") for row in preferences for kind in ("chosen", "rejected")]
    return Dataset.from_list([dict(zip(("prompt", "completion", "label"), row)) for row in rows])


@pytest.fixture
def make(tmp_path, make_model, tokenizer, preferences, verdicts):
    """Make a trainer of the small model; what the trainer does not take is an option of the configuration."""

    def make(trainer_class=LLaDADPOTrainer, model=None, **options):
        names = ("ref_model", "train_dataset", "eval_dataset", "processing_class", "peft_config", "data_collator")
        given = {name: options.pop(name) for name in names if name in options}
        data = preferences if issubclass(trainer_class, LLaDADPOTrainer) else verdicts
        given = {"train_dataset": data, "processing_class": tokenizer} | given
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "num_noise_samples": 2,
            "max_steps": 3,
            "warmup_steps": 1,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "seed": 7,
        }
        config_class = LLaDADPOConfig if issubclass(trainer_class, LLaDADPOTrainer) else LLaDAKTOConfig
        model = make_model(max_sequence_length=160) if model is None else model
        return trainer_class(model, args=config_class(**defaults | options), **given)

    return make


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def gradient_of_first_batch(trainer):
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


def moved(model, scale=0.05):
    """The model, its weights moved a little."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


# The start


@pytest.mark.parametrize("loss_type", STARTS)
def test_every_loss_starts_at_its_closed_form_with_a_log_ratio_of_exactly_zero(make, loss_type):
    smoothing = {"label_smoothing": 0.1} if loss_type == "exo_pair" else {}
    trainer = make(loss_type=[loss_type], max_steps=1, **smoothing)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([STARTS[loss_type]], abs=1e-5)
    first = trainer.state.log_history[0]
    assert {name: first[name] for name in LEVEL_START} == LEVEL_START
    assert math.isfinite(first["grad_norm"]) and first["grad_norm"] > 0


def test_no_loss_of_trl_is_forgotten():
    assert {*STARTS, "sft"} == set(LOSS_TYPES)
    documented = re.search(r"Possible values are: (.*?)\. If", DPOConfig.__doc__, flags=re.DOTALL)
    assert set(re.findall(r"'(\w+)'", documented[1])) == set(LOSS_TYPES)


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto_starts_at_one_half_with_a_log_ratio_of_exactly_zero(make, loss_type):
    trainer = make(LLaDAKTOTrainer, loss_type=loss_type, max_steps=1)
    trainer.train()
    assert logged(trainer, "loss") == [0.5]
    first = trainer.state.log_history[0]
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["kl"] == 0


def test_the_default_loss_is_that_of_the_paper(make):
    trainer = make(max_steps=1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    policy, reference = moved(trainer.model), trainer.ref_model
    trainer.model.load_state_dict(policy.state_dict())
    trainer.model.train()
    ids, seen, labels = batch["input_ids"], batch["attention_mask"], batch["input_ids"].clone()
    labels[batch["completion_mask"] == 0] = -100
    noises = draw_noises(ids, labels, batch["example_id"], 488, 2, seed=7, step=0)

    def bounds(model):
        def logits_at(noisy, where):
            return LLaDAModelLM.forward(model, noisy, seen, logits_positions=where).logits

        return elbo_log_probability(logits_at, noises, labels).detach()

    chosen, rejected = (bounds(trainer.model) - bounds(reference)).chunk(2)
    lengths = batch["completion_mask"].sum(-1)[:4]
    expected = -F.logsigmoid(0.2 * (chosen - rejected)).mean() - 0.05 * (bounds(trainer.model)[:4] / lengths).mean()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(chosen - rejected).min() > 0.01


# Noise


def test_policy_and_reference_share_noise_and_the_two_answers_of_a_pair_do_not(make):
    trainer = make()
    batch = trainer.data_collator([trainer.train_dataset[i] | {"rejected_ids": trainer.train_dataset[i]["chosen_ids"]}
                                   for i in range(4)])  # fmt: skip
    assert batch["example_id"].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.equal(batch["input_ids"][:4], batch["input_ids"][4:])
    seen = {"policy": [], "reference": []}
    for name, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        model.register_forward_pre_hook(
            lambda module, args, options, name=name: seen[name].append(options["noise_key"]), with_kwargs=True
        )
    trainer.compute_loss(trainer.model, batch)
    assert torch.equal(*(torch.stack(keys) for keys in seen.values()))
    chosen, rejected = trainer.model(
        **{name: batch[name] for name in ("input_ids", "attention_mask")},
        labels=batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100),
        noise_key=seen["policy"][0],
        fused_lm_head=True,
    ).log_probs.sum(-1).chunk(2)  # fmt: skip
    assert (chosen != rejected).all()


def test_equal_models_with_other_noise_do_not_start_at_ln_2(make):
    class NaiveTrainer(LLaDADPOTrainer):
        reference_shares_noise = False

    trainer = make(NaiveTrainer, num_noise_samples=1, beta=1.0, loss_type=["sigmoid"], max_steps=1)
    trainer.train()
    assert logged(trainer, "loss")[0] > 1.0


def test_complementary_masks_score_every_answer_token_at_each_pair_of_passes(make):
    trainer = make(complementary_masks=True)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    keyed = trainer._with_noise_key(batch, True)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    output = trainer.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels,
        noise_key=keyed["noise_key"], fused_lm_head=True,
    )  # fmt: skip
    assert ((output.log_probs != 0) == (labels[:, 1:] != -100)).all()


# Gradient and memory


@pytest.mark.parametrize("trainer_class", [LLaDADPOTrainer, LLaDAKTOTrainer])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_level_by_level_equals_that_of_keeping_all_activations(make, trainer_class, checkpointing):
    losses, gradients = [], []
    for recompute in (False, True):
        trainer = make(trainer_class, recompute_levels=recompute, num_noise_samples=4,
                       gradient_checkpointing=checkpointing and recompute)  # fmt: skip
        trainer.model.load_state_dict(moved(trainer.model).state_dict())
        loss, gradient = gradient_of_first_batch(trainer)
        losses.append(loss)
        gradients.append(gradient)
    assert torch.equal(*losses)
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-6) and gradients[0].abs().max() > 1e-3


# One training, however it is run


@pytest.mark.parametrize("trainer_class, options", [
    (LLaDADPOTrainer, {}), (LLaDAKTOTrainer, {"loss_type": "apo_zero_unpaired"})
])  # fmt: skip
def test_a_batch_of_four_trains_like_four_accumulated_batches_of_one(make, trainer_class, options):
    options = {"optim": "sgd", "learning_rate": 0.1, **options}
    whole = make(trainer_class, **options)
    split = make(trainer_class, per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    whole.train()
    split.train()
    assert logged(whole, "loss") == pytest.approx(logged(split, "loss"), abs=1e-5)
    assert torch.allclose(weights(whole), weights(split), atol=1e-6)
    assert not torch.equal(weights(whole), weights(make(trainer_class)))


@pytest.mark.parametrize("trainer_class", [LLaDADPOTrainer, LLaDAKTOTrainer])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does_bit_for_bit(make, tmp_path, trainer_class):
    options = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps"}
    whole = make(trainer_class, output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    again = make(trainer_class, output_dir=str(tmp_path / "again"), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights(whole), weights(again))
    assert logged(again, "loss")[-2:] == logged(whole, "loss")[-2:]


@pytest.mark.parametrize("trainer_class", [LLaDADPOTrainer, LLaDAKTOTrainer])
def test_a_reference_scored_beforehand_gives_the_log_ratio_of_its_noise(make, preferences, trainer_class):
    trainer = make(trainer_class, precompute_ref_log_probs=True, max_steps=1,
                   eval_dataset=preferences.select(range(4)))  # fmt: skip
    assert trainer.ref_model is None
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    # Scored by the model as it was; the same rows as with a copy of it.
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(
        make(trainer_class, model=trainer.model, ref_model=make().ref_model,
             eval_dataset=preferences.select(range(4))).evaluate()["eval_rewards/margins"], abs=1e-5
    )  # fmt: skip


def test_values_scored_beforehand_are_not_taken_for_those_of_other_noise(make):
    values = [make(precompute_ref_log_probs=True, **options).train_dataset["ref_chosen_logps"]
              for options in ({}, {"seed": 8}, {"num_noise_samples": 4}, {})]  # fmt: skip
    assert values[0] == values[3] and values[0] != values[1] and values[0] != values[2]


def test_evaluation_depends_on_the_examples_alone(make, preferences):
    losses = [
        make(seed=seed, ref_model=make().ref_model, eval_dataset=preferences, model=moved(make().ref_model),
             per_device_eval_batch_size=size).evaluate()["eval_loss"]
        for seed, size in ((7, 16), (7, 3), (8, 16))
    ]  # fmt: skip
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_a_training_prefers_what_was_preferred(make):
    trainer = make(max_steps=8, num_noise_samples=4, learning_rate=5e-3)
    trainer.train()
    assert logged(trainer, "rewards/margins")[-1] > 0.5
    assert logged(trainer, "rewards/accuracies")[-1] == 1.0
    last = trainer.state.log_history[-2]
    assert {"masked_accuracy", "masked_fraction", "tokens_per_second", "logps/chosen"} <= set(last)
    # TRL's metrics of the next token would be zeros here.
    assert not {"entropy", "mean_token_accuracy", "logits/chosen"} & set(last)


def test_a_deep_copy_of_the_policy_runs_its_own_weights(make):
    trainer = make()
    copied, ids = copy.deepcopy(trainer.model), torch.arange(8)[None]
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert copied(ids).logits.abs().max() == 0 < trainer.model(ids).logits.abs().max()


# LoRA


@pytest.mark.parametrize("trainer_class", [LLaDADPOTrainer, LLaDAKTOTrainer])
def test_with_lora_only_the_adapter_changes_and_the_merged_model_loads_as_remote_code(
    make, make_model, tokenizer, tmp_path, trainer_class
):
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    make_model(max_sequence_length=160).save_pretrained(base)
    save_tokenizer(tokenizer, base)
    model = LLaDAModelLM.from_pretrained(base, dtype=torch.float32)
    trainer = make(trainer_class, model=model, peft_config=peft.LoraConfig(r=2))
    assert trainer.ref_model is None
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name
    adapter, merged, ids = str(tmp_path / "adapter"), tmp_path / "merged", torch.tensor([[480, 389, 163, 488]])
    trainer.save_model(adapter)
    assert "adapter_model.safetensors" in os.listdir(adapter)
    merge_adapter(str(base), adapter, str(merged))
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits.flatten()
    run = run_stranger(sys.executable, tmp_path, STRANGER, str(merged), str(ids.tolist()))
    assert run.returncode == 0, run.stderr
    assert torch.allclose(torch.tensor(json.loads(run.stdout)), expected, atol=1e-5)


def test_an_adapter_that_was_trained_before_starts_from_itself_as_reference(make, make_model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=LORA_TARGET_MODULES, task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(1)
    trainer = make(model=peft.get_peft_model(make_model(max_sequence_length=160), config), max_steps=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0


def test_a_model_of_remote_code_in_bfloat16_starts_with_a_log_ratio_of_exactly_zero(make, tmp_path):
    folder = tmp_path / "base"
    make().save_model(str(folder))
    model = load_model(folder, dtype="float32", trust_remote_code=True)
    assert not isinstance(model, LLaDAModelLM)
    trainer = make(model=model, bf16=True, loss_type=["sigmoid"], max_steps=1)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([math.log(2)], abs=1e-6)
    assert trainer.state.log_history[0]["rewards/margins"] == 0


def test_several_sets_are_evaluated_by_name(make, preferences):
    sets = {"first": preferences.select(range(4)), "second": preferences.select(range(4, 8))}
    found = make(eval_dataset=sets).evaluate()
    assert found["eval_first_loss"] > math.log(2) and found["eval_second_loss"] > math.log(2)


def test_kto_takes_pairs_apart_and_mixes_good_and_bad_answers(make, preferences):
    numbered = preferences.add_column("example_id", list(range(len(preferences))))
    trainer = make(LLaDAKTOTrainer, train_dataset=numbered)
    assert 2 <= sum(trainer.train_dataset["label"][:16]) <= 14
    assert len(trainer.train_dataset) == 2 * len(preferences)
    assert sum(trainer.train_dataset["label"]) == len(preferences)
    assert len(set(trainer.train_dataset["example_id"])) == 2 * len(preferences)


def test_a_saved_model_has_a_card_of_its_training(make, tmp_path):
    trainer = make(max_steps=1)
    trainer.train()
    trainer.save_model()
    card = Path(trainer.args.output_dir, "README.md").read_text(encoding="utf-8")
    assert "num_noise_samples" in card and "beta" in card and "dpo" in card


# Bad input


@pytest.mark.parametrize("options, message", [
    ({"loss_type": ["sigmiod"]}, r"`loss_type` must be of .*, got 'sigmiod'; did you mean 'sigmoid'"),
    ({"use_weighting": True}, r"`use_weighting` must be False \(its weights are probabilities of the next token\)"),
    ({"use_liger_kernel": True}, r"`use_liger_kernel` must be False"),
    ({"padding_free": True}, r"`padding_free` must be False"),
    ({"disable_dropout": False}, r"`disable_dropout` must be True"),
    ({"activation_offloading": True}, r"`activation_offloading` must be False"),
    ({"pad_to_multiple_of": 8}, r"`pad_to_multiple_of` must be None"),
    ({"label_smoothing_factor": 0.1}, r"`label_smoothing_factor` must be 0.0"),
    ({"num_noise_samples": 0}, r"`num_noise_samples` must be at least 1, got 0; LLaDA 1.5 uses 8"),
    ({"num_noise_samples": 3, "complementary_masks": True}, r"`num_noise_samples` must be even with"),
    ({"max_length": 2}, r"`max_length` must be at least 3, got 2"),
])  # fmt: skip
def test_options_that_cannot_apply_are_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        LLaDADPOConfig(str(tmp_path), report_to="none", **options)


def test_an_unknown_loss_of_kto_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`loss_type` must be one of kto, apo_zero_unpaired, got 'bco'"):
        LLaDAKTOConfig(str(tmp_path), report_to="none", loss_type="bco")


@pytest.mark.parametrize("columns, message", [
    ({"prompt": None}, r"Every row must have a `prompt`, got none in row 0 of the train data"),
    ({"rejected": ""}, r"`rejected` must not be empty, got '' in row 0 of the train data"),
    ({"chosen": [{"role": "assistant", "content": ""}], "rejected": [{"role": "assistant", "content": "no"}],
      "prompt": [{"role": "user", "content": "?"}]}, r"`chosen` must not be empty"),
    ({"prompt": "1, 2, 3, 4, 5, 6" * 40}, r"`max_length` \(160\) must leave room for a token and EOS after the prompt"),
    ({"prompt": "a <|mdm_mask|>"}, r"The text must not hold the mask token"),
    ({"prompt": ""}, r"`prompt` must hold at least one token, got none in example 0"),
])  # fmt: skip
def test_examples_that_cannot_be_scored_are_named(make, columns, message):
    row = {"prompt": "1 and 1 make", "chosen": " 2", "rejected": " 3"} | columns
    with pytest.raises(ValueError, match=message):
        make(train_dataset=Dataset.from_list([row, row]))


def test_data_without_the_columns_are_refused(make, preferences, verdicts):
    with pytest.raises(
        ValueError, match=r"Preferences must have the columns `chosen` and `rejected`.*got prompt, comp"
    ):
        make(train_dataset=verdicts)
    with pytest.raises(ValueError, match=r"Preferences must have the columns `prompt`, `completion` and `label`"):
        make(LLaDAKTOTrainer, train_dataset=preferences.select_columns(["prompt"]))
    with pytest.raises(ValueError, match=r"`label` must be true \(a good answer\) or false, got 3 in row 0"):
        make(LLaDAKTOTrainer, train_dataset=verdicts.remove_columns("label").add_column("label", [3] * len(verdicts)))
    with pytest.raises(ValueError, match="`train_dataset` must be given, got None"):
        make(train_dataset=None)
    with pytest.raises(ValueError, match=r"must be a `datasets\.Dataset`.*got list"):
        make(train_dataset=[1])


def test_pairs_of_equal_answers_are_counted_in_a_warning(make):
    row = {"prompt": "1 and 1 make", "chosen": " 2", "rejected": " 3"}
    with pytest.warns(
        UserWarning, match="1 of 2 pairs of the train data have the same answer twice, the first is row 1"
    ):
        make(train_dataset=Dataset.from_list([row, row | {"rejected": " 2"}]))


def test_a_reference_with_another_vocabulary_is_refused(make, make_model):
    with pytest.raises(
        ValueError, match=r"`ref_model` must have the policy's vocabulary \(`embedding_size` 512\), got 640"
    ):
        make(ref_model=make_model(max_sequence_length=160, embedding_size=640))


def test_arguments_that_replace_the_objective_are_refused(make, make_model, tmp_path):
    with pytest.raises(ValueError, match="`data_collator` must be unset, the bound brings its own"):
        make(data_collator=print)
    with pytest.raises(
        ValueError, match="`max_length` must be at most the model's `max_sequence_length` \\(160\\), got 161"
    ):
        make(max_length=161)
    with pytest.raises(ValueError, match="`args` must be a `LLaDADPOConfig`, got LLaDAKTOConfig"):
        LLaDADPOTrainer(make_model(), args=LLaDAKTOConfig(str(tmp_path), report_to="none"))
    peft = pytest.importorskip("peft")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="`peft_config` must not be a soft prompt"):
        make(peft_config=prompt)


def test_answers_end_with_eos_in_conversations_too(make, tokenizer):
    row = {
        "prompt": [{"role": "user", "content": "1 and 1?"}],
        "chosen": [{"role": "assistant", "content": "2"}],
        "rejected": [{"role": "assistant", "content": "3"}],
    }
    trainer = make(train_dataset=Dataset.from_list([row] * 4))
    example = trainer.train_dataset[0]
    assert example["chosen_ids"][-1] == example["rejected_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example["chosen_ids"]).startswith("2")
