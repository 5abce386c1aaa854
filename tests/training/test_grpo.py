"""Laws of reinforcement learning: exact ratios, keyed random numbers, resumed runs, processes, adapters, bad input."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from datasets import Dataset

from llada_training import LLaDAGRPOConfig, LLaDAGRPOTrainer
from llada_training.rollouts import Rollout
from modeling_llada import LLaDAModelLM, LLaDAMoEConfig, LLaDAMoEModelLM
from tests.helpers import run_stranger

from .conftest import CHECKPOINTS
from .grpo_processes import DATA, OPTIONS, THRESHOLDS, letters, make_trainer, train

pytestmark = pytest.mark.newest_only

OBJECTIVES = tuple(THRESHOLDS)
SCRIPT = Path(__file__).with_name("grpo_processes.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder with the toy model and its tokenizer, in which runs are kept."""
    folder = tmp_path_factory.mktemp("grpo")
    shutil.copytree(CHECKPOINTS / "mha", folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def make(make_model, tokenizer, tmp_path):
    """Make a trainer of the small model; keyword arguments are options, `reward`, `data`, `model` and `peft_config`."""

    def make(objective="fork", reward=letters, data=None, model=None, **options):
        arguments = {name: options.pop(name) for name in ("peft_config", "tools", "eval_dataset") if name in options}
        given = OPTIONS | {"objective": objective, "threshold": THRESHOLDS[objective]}
        given |= {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4} | options
        data = Dataset.from_dict(DATA) if data is None else data
        model = make_model() if model is None else model
        return LLaDAGRPOTrainer(
            model, reward, LLaDAGRPOConfig(**given), train_dataset=data, processing_class=tokenizer, **arguments
        )

    return make


def first_round(trainer):
    """The answers of the first round, scored, as TRL's dictionary."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def weights_of(trainer):
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


# --- ratios -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_ratio_to_an_equal_policy_is_exactly_one_and_the_loss_is_the_advantage(make, objective):
    trainer = make(objective, gradient_accumulation_steps=1, steps_per_generation=1, per_device_train_batch_size=8)
    inputs = first_round(trainer)
    for iteration in range(2):
        trainer._iterations = (iteration,)
        trainer._rollout = Rollout(*(inputs[f"rollout_{name}"] for name in Rollout._fields))
        width = inputs["completion_ids"].shape[1]
        ids = torch.zeros(8, 1)
        scores, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, None, width, compute_entropy=True
        )
        for name in ("old", "ref"):
            assert torch.equal(scores.detach(), inputs[f"{name}_per_token_logps"][:, iteration])
        assert scores.requires_grad and not entropies.requires_grad
        trainer._step = iteration
        loss = trainer._compute_loss(trainer.model, inputs)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        assert loss.item() == pytest.approx(-(inputs["advantages"] * mask.any(-1)).mean().item(), abs=1e-6)
    metrics = trainer._metrics["train"]
    assert set(metrics["kl"] + metrics["clip_ratio/region_mean"]) == {0.0}
    passes = inputs["old_per_token_logps"]
    # Fork has no noise; the others draw anew for each pass over the answers.
    assert torch.equal(passes[:, 0], passes[:, 1]) == (objective == "fork")


def test_forks_scores_are_those_of_generation(make):
    trainer = make(max_steps=2)
    trainer.train()
    [gap] = [entry["rollout/logp_gap_max"] for entry in trainer.state.log_history if "rollout/logp_gap_max" in entry]
    assert gap < 1e-5


def test_only_fallback_tokens_count_with_fork(make):
    inputs = first_round(make())
    width = inputs["completion_ids"].shape[1]
    rollout = inputs["rollout_is_fallback"] & inputs["rollout_is_answer"]
    counted = inputs["completion_mask"] * inputs["tool_mask"]
    assert torch.equal(counted.bool(), rollout[:, -12:][:, :width])
    assert inputs["num_items_in_batch"] == counted.sum()
    assert 0 < counted.sum() < inputs["completion_mask"].sum()


def test_the_gradient_of_fork_is_that_of_the_exact_policy_gradient(make):
    trainer = make(beta=0.0, num_iterations=1, gradient_accumulation_steps=1, per_device_train_batch_size=8)
    inputs = first_round(trainer)
    trainer._compute_loss(trainer.model, inputs).backward()
    found = [weight.grad.clone() for weight in trainer.model.parameters()]
    trainer.model.zero_grad()
    # The plain form: every fallback token at its canvas, one by one.
    total = 0.0
    for row in range(8):
        passes, ids = inputs["rollout_passes"][row], inputs["rollout_ids"][row]
        columns = (inputs["rollout_is_fallback"] & inputs["rollout_is_answer"])[row].nonzero()[:, 0].tolist()
        for column in columns:
            valid = inputs["rollout_is_valid"][row]
            canvas = ids.masked_fill(passes >= passes[column], 488)[valid]
            logits = trainer.model(canvas[None]).logits[0, int(valid[:column].sum())]
            hidden = torch.zeros_like(logits)
            hidden[488] = -torch.inf
            chosen = (logits + hidden).log_softmax(-1)[ids[column]]
            total = total - inputs["advantages"][row] * chosen / len(columns) / 8
    total.backward()
    for one, other in zip(found, trainer.model.parameters()):
        assert torch.allclose(one, other.grad, atol=1e-5)


# --- the same run, however it is run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_equals_a_whole_one_bit_for_bit_also_from_the_middle_of_a_round(make, objective, tmp_path):
    options = {"max_steps": 7, "gradient_accumulation_steps": 1, "steps_per_generation": 2, "save_steps": 1}
    options |= {"data": Dataset.from_dict({name: values[:4] for name, values in DATA.items()})}
    whole = make(objective, **options, save_strategy="steps")
    whole.train()
    logged = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    # A round is 4 steps, and 2 prompts: step 4 ends a round, 5 and 6 stand in one; an epoch has 2 rounds.
    for step in (4, 6):
        resumed = make(objective, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry] == logged
        assert torch.equal(weights_of(resumed), weights_of(whole))


def test_a_checkpoint_without_the_answers_of_a_process_is_refused(make, tmp_path):
    make(max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "rollouts_0.pt").unlink()
    with pytest.raises(ValueError, match="`resume_from_checkpoint` must hold the answers of every process"):
        make(max_steps=2).train(resume_from_checkpoint=str(checkpoint))


def test_two_runs_are_equal_and_another_seed_is_another_run(make):
    runs = [make(seed=seed) for seed in (7, 7, 8)]
    for trainer in runs:
        trainer.train()
    first, second, other = map(weights_of, runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_an_order_of_the_prompts_belongs_to_the_seed_and_the_epoch(make):
    trainer = make()
    sampler = trainer._get_train_sampler()
    orders = {}
    for epoch in (0.0, 1.0, 0.0, 2.0):
        trainer.state.epoch = epoch
        orders.setdefault(epoch, []).append(list(sampler))
    assert orders[0.0][0] == orders[0.0][1]
    assert orders[0.0][0] != orders[1.0][0] != orders[2.0][0]


def test_evaluation_answers_alike_every_time(make):
    trainer = make(eval_dataset=Dataset.from_dict(DATA), per_device_eval_batch_size=4)
    first, second = (trainer.evaluate() for _ in range(2))
    assert first["eval_reward"] == second["eval_reward"]
    assert first["eval_loss"] == second["eval_loss"]


@pytest.mark.slow
def test_two_processes_train_like_one(place):
    expected = {objective: train(place, objective, 8) for objective in OBJECTIVES}
    config = Path(__file__).parents[2] / "accelerate_configs" / "ddp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*command, "--mixed_precision", "no", "--main_process_port", "0", str(SCRIPT), str(place)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]
    found = torch.load(place / "results.pt")
    for objective in OBJECTIVES:
        one, two = expected[objective], found[objective]
        assert two["rewards"] == pytest.approx(one["rewards"], abs=1e-5)
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert torch.allclose(one["weights"], two["weights"], atol=1e-5)


# --- adapters, saved models -------------------------------------------------------------------------------------------

STRANGER = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps(model(torch.tensor([[5, 6, 488]])).logits.flatten().tolist()))
"""


def test_an_adapter_alone_learns_and_the_reference_is_the_model_without_it(place):
    trainer = make_trainer(place, "espo", 4)
    base = trainer.model
    trainer = LLaDAGRPOTrainer(
        base, letters, trainer.args, train_dataset=Dataset.from_dict(DATA), processing_class=trainer.processing_class,
        peft_config=peft.LoraConfig(r=2),
    )  # fmt: skip
    assert trainer.ref_model is None
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, before[name]) != ("lora_" in name), name
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == 0.0 and kl[-1] > 0.0
    trainer.save_model()
    fresh = LLaDAModelLM.from_pretrained(place / "model", dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(fresh, trainer.args.output_dir).eval()
    ids = torch.tensor([[5, 6, 488]])
    assert torch.equal(again(ids).logits, trainer.model.eval()(ids).logits)


def test_a_saved_model_loads_as_remote_code(make, tmp_path):
    trainer = make(max_steps=1)
    trainer.train()
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert re.search("objective.*fork", (folder / "README.md").read_text())
    done = run_stranger(sys.executable, tmp_path, STRANGER, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    expected = trainer.model.eval()(torch.tensor([[5, 6, 488]])).logits.detach().flatten()
    assert torch.allclose(torch.tensor(json.loads(done.stdout.splitlines()[-1])), expected, atol=1e-5)


def make_mixture(**fields):
    """A mixture of experts over the toy vocabulary."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "expert_intermediate_size": 12, "dense_intermediate_size": 40}
    ids = {"vocab_size": 512, "mask_token_id": 488, "eos_token_id": 481, "pad_token_id": 481}
    return LLaDAMoEModelLM(LLaDAMoEConfig(**sizes, **ids, max_position_embeddings=64, **fields))


def test_a_mixture_of_experts_learns_by_the_policys_loss_alone(make):
    trainer = make(model=make_mixture(), beta=0.0, max_steps=1)
    trainer.train()
    assert "aux_loss" not in trainer.state.log_history[0]
    with pytest.raises(ValueError, match="output_router_logits` must be False, the loss is the policy"):
        make(model=make_mixture(output_router_logits=True))


# --- bad input --------------------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ({"objective": "ppo"}, "`objective` must be one of fork, espo, diffu, got 'ppo'"),
    ({"use_vllm": True}, "`use_vllm` must be False .vLLM decodes from left to right., got True"),
    ({"use_liger_kernel": True}, "`use_liger_kernel` must be False"),
    ({"use_transformers_continuous_batching": True}, "`use_transformers_continuous_batching` must be False"),
    ({"disable_dropout": False}, "`disable_dropout` must be True"),
    ({"top_p": 0.9}, "`top_p` must be 1.0 .tokens must be drawn from the distribution that is scored."),
    ({"sync_ref_model": True}, "`sync_ref_model` must be False"),
    ({"temperature": 0.0}, "`temperature` must be above 0"),
    ({"denoising_steps": 4}, "`denoising_steps` must be None with objective=fork"),
    ({"objective": "espo", "loss_type": "dapo"}, "`loss_type` must be grpo with objective=espo"),
    ({"objective": "espo", "importance_sampling_level": "token"}, "`importance_sampling_level` must be sequence"),
    ({"objective": "espo", "num_noise_samples": 0}, "`num_noise_samples` must be at least 1, got 0"),
    ({"objective": "espo", "num_noise_samples": 3}, "`num_noise_samples` must be even .* pass num_noise_samples=4"),
    ({"objective": "espo", "levels": "even"}, "`levels` must be one of stratified, quadrature, got 'even'"),
    ({"objective": "diffu", "prompt_mask_rate": 1.0}, "`prompt_mask_rate` must be in .0, 1., got 1.0"),
    ({"rollout_batch_size": 0}, "`rollout_batch_size` must be at least 1, got 0"),
    ({"threshold": 2.0}, "`threshold` must be None or in .0, 1., got 2.0"),
    ({"generation_kwargs": {"threshold": 0.5}}, "`generation_kwargs` must not hold `threshold`; use the option"),
    ({"generation_kwargs": {"cfg_scale": 0.5}}, "`generation_kwargs` must not hold `cfg_scale`: tokens must be drawn"),
    ({"generation_kwargs": {"thresold": 0.5}}, "Unknown generation option `thresold`; did you mean `threshold`"),
    ({"max_completion_length": None}, "`max_completion_length` must be set"),
]


@pytest.mark.parametrize("options, message", BAD_OPTIONS, ids=[str(options) for options, _ in BAD_OPTIONS])
def test_options_that_cannot_apply_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        LLaDAGRPOConfig(str(tmp_path), **{**OPTIONS, "per_device_train_batch_size": 4, **options})


def rows(**columns):
    return Dataset.from_dict(DATA | columns)


BAD_DATA = [
    (lambda: Dataset.from_dict({"text": ["a"] * 8}), "`train_dataset` must have the column `prompt`, .* got text"),
    (
        lambda: Dataset.from_dict({"prompt": ["a"] * 8}),
        "must have the column `wanted`, which the reward `letters` reads",
    ),
    (lambda: rows(prompt=["a"] * 7 + ["word " * 60]), r"`prompt` must have from 1 to 52 tokens, .* got \d+ in row 7"),
    (lambda: rows(prompt=["a", ""] * 4), "`prompt` must have from 1 to 52 tokens, .* got 0 in row 1"),
    (lambda: rows(prompt=["a <|mdm_mask|>"] * 8), "`prompt` must not hold the mask token, got one in row 0"),
]


@pytest.mark.parametrize("data, message", BAD_DATA, ids=[message for _, message in BAD_DATA])
def test_data_that_cannot_be_trained_on_are_refused_before_the_first_step(make, data, message):
    with pytest.raises(ValueError, match=message):
        make(data=data())


def test_a_run_without_data_is_refused(make_model, tokenizer, tmp_path):
    config = LLaDAGRPOConfig(**OPTIONS, output_dir=str(tmp_path), per_device_train_batch_size=4)
    with pytest.raises(ValueError, match="`train_dataset` must be given, got None"):
        LLaDAGRPOTrainer(make_model(), letters, config, processing_class=tokenizer)


def test_a_model_is_loaded_by_its_folder_and_an_answer_without_room_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = r"`max_completion_length` must leave room for a prompt .* \(256\), got 512; lower it"
    with pytest.raises(ValueError, match=message):
        LLaDAGRPOTrainer(str(place / "model"), letters, train_dataset=Dataset.from_dict(DATA))
    config = LLaDAGRPOConfig(**OPTIONS, output_dir=str(tmp_path), per_device_train_batch_size=4)
    trainer = LLaDAGRPOTrainer(str(place / "model"), letters, config, train_dataset=Dataset.from_dict(DATA))
    assert trainer.model.config.n_layers == 2 and trainer.processing_class.mask_token_id == 488
    assert trainer.ref_model is not None


def test_the_reference_is_a_copy_that_does_not_move_and_the_options_stay_as_they_were(make):
    trainer = make("espo", max_steps=2)
    before = [weight.clone() for weight in trainer.ref_model.parameters()]
    assert trainer.args.beta == trainer.beta == 0.1
    trainer.train()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.ref_model.parameters()))
    assert not any(weight.requires_grad for weight in trainer.ref_model.parameters())


def test_arguments_of_other_engines_are_refused(make):
    with pytest.raises(ValueError, match="`tools` must be unset, an answer is one canvas in one turn"):
        make(tools=[print])


def test_a_model_that_is_no_llada_model_and_a_config_of_trl_are_refused(make, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="`model` must be a LLaDA model"):
        make(model=LlamaForCausalLM(LlamaConfig(vocab_size=492, **sizes)))
    with pytest.raises(ValueError, match="`args` must be a `LLaDAGRPOConfig`, got GRPOConfig"):
        LLaDAGRPOTrainer(LLaDAModelLM, letters, GRPOConfig("x", bf16=False))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_a_finite_number_is_refused(make, bad):
    def broken(completions, **columns):
        return [bad] * len(completions)

    trainer = make(reward=broken)
    with pytest.raises(ValueError, match=f"The reward `broken` must return finite numbers, got {bad}; return"):
        trainer.train()


def test_an_answer_that_no_reward_can_judge_moves_nothing(make):
    def silent(completions, **columns):
        return [None] * len(completions)

    trainer = make(reward=silent, beta=0.0, weight_decay=0.0, max_steps=2)
    before = weights_of(trainer)
    trainer.train()
    assert torch.equal(weights_of(trainer), before)


def test_equal_rewards_are_said_once(make, caplog):
    def same(completions, **columns):
        return [1.0] * len(completions)

    trainer = make(reward=same, max_steps=4)
    with caplog.at_level(logging.WARNING, "llada_training.grpo"):
        trainer.train()
    said = [record for record in caplog.records if "got the same reward" in record.getMessage()]
    assert len(said) == 1


def test_an_answer_of_its_end_alone_is_trained_on(make, make_model):
    model = make_model()
    with torch.no_grad():
        model.model.transformer.ff_out.weight[481] = 0.0
        model.model.transformer.ff_out.weight[:481] = 0.0

    def rewarded(completions, **columns):
        return [float(not text) for text in completions]

    for objective in OBJECTIVES:
        trainer = make(objective, model=model, reward=rewarded, max_completion_length=1, max_steps=2)
        trainer.train()
