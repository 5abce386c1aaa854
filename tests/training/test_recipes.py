"""Laws of the recipes: each is read by its command, and those of the paper hold the paper's numbers."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from llada_training.grpo_command import parse_grpo
from llada_training.preference_command import parse_dpo, parse_kto
from llada_training.pretrain_command import parse_pretraining
from llada_training.sft_command import parse_sft
from modeling_llada import LLaDAConfig, LLaDAModelLM

pytestmark = pytest.mark.newest_only

RECIPES = Path(__file__).parents[2] / "recipes"
PRETRAINING_BATCH, SFT_BATCH = 1280, 256  # the paper's, in sequences of 4096 tokens and in pairs
VRPO_BATCH = 64  # that of LLaDA 1.5, in pairs
TOKENS_OF_A_STEP = PRETRAINING_BATCH * 4096
# How a command reads its options; those of the training come first.
PARSERS = {
    "pretrain": lambda arguments: (parse_pretraining(arguments),),
    "sft": parse_sft,
    "dpo": parse_dpo,
    "kto": parse_kto,
    "grpo": parse_grpo,
}
NUM_GPUS = {"pretrain-1b": 32, "pretrain-8b": 64, "pretrain-8b-stage2": 64, "sft-8b": 8, "sft-lora-8b": 1, "vrpo-8b": 8}


def read(name: str) -> Any:
    """The options of a recipe, read by the command that its head names."""
    path = RECIPES / f"{name}.yaml"
    command = re.search(r"^#.*llada(?:_cli)? train (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    return PARSERS[command](["--config", str(path)])[0]


def rates(config: Any, num_steps: int, steps: list[int]) -> list[float]:
    """The learning rate at `steps` of a training of `num_steps`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    schedule = get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        config.get_warmup_steps(num_steps),
        num_steps,
        config.get_scheduler_kwargs(num_steps),
    )
    return [config.learning_rate * schedule.lr_lambdas[0](step) for step in steps]


def count_parameters(config: Any) -> tuple[int, int]:
    """Parameters in all, and those outside embedding and head."""
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig(**config.model_config))
    num_all = model.num_parameters()
    return num_all, num_all - 2 * 126464 * config.model_config["d_model"]


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_is_read_by_its_command_without_a_gpu(name):
    assert read(name).output_dir.startswith("runs/")


@pytest.mark.parametrize("name, batch", [("pretrain-1b", PRETRAINING_BATCH), ("pretrain-8b", PRETRAINING_BATCH),
                                         ("pretrain-8b-stage2", PRETRAINING_BATCH), ("sft-8b", SFT_BATCH),
                                         ("sft-lora-8b", 32), ("vrpo-8b", VRPO_BATCH)])  # fmt: skip
def test_the_gpus_a_recipe_names_give_its_batch(name, batch):
    config, head = read(name), (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    per_device, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    assert NUM_GPUS[name] * per_device * accumulation == batch
    assert re.search(rf"{NUM_GPUS[name]} GPUs?\b", head) and f"{accumulation} accumulations = {batch} " in head


def test_the_8b_pretraining_has_the_papers_tokens_and_learning_rates():
    first, second = read("pretrain-8b"), read("pretrain-8b-stage2")
    assert round(first.max_steps * TOKENS_OF_A_STEP / 1e12, 3) == 1.2
    assert round((first.max_steps + second.max_steps) * TOKENS_OF_A_STEP / 1e12, 3) == 2.3
    assert rates(first, first.max_steps, [0, 1000, 2000, first.max_steps - 1]) == pytest.approx([0, 2e-4, 4e-4, 4e-4])
    start = second.max_steps - round(0.3e12 / TOKENS_OF_A_STEP)
    assert rates(second, second.max_steps, [0, start, second.max_steps]) == pytest.approx([1e-4, 1e-4, 1e-5], rel=1e-3)
    for config in (first, second):
        assert (config.weight_decay, config.sequence_length, config.random_length_probability) == (0.1, 4096, 0.01)


def test_the_8b_fine_tuning_has_the_papers_epochs_and_learning_rates():
    config = read("sft-8b")
    num_steps = math.ceil(4_500_000 * 3 / SFT_BATCH)
    assert (config.num_train_epochs, config.weight_decay, config.eos_fill) == (3, 0.1, "batch")
    middle, start = num_steps // 2, num_steps - num_steps // 10
    expected = [2.5e-5, 2.5e-5, 2.5e-5, 2.5e-6]
    assert rates(config, num_steps, [50, middle, start - 1, num_steps]) == pytest.approx(expected, rel=1e-3)


def test_the_preferences_at_8b_have_the_settings_of_llada_1_5():
    config = read("vrpo-8b")
    num_steps = math.ceil(350_000 / VRPO_BATCH)
    assert (config.loss_type, config.loss_weights, config.beta) == (["sigmoid", "sft"], [1.0, 0.05], 0.2)
    assert (config.num_noise_samples, config.num_train_epochs, config.weight_decay) == (8, 1, 0.01)
    assert (config.adam_beta1, config.adam_beta2) == (0.9, 0.95)
    expected = [0, 5e-7, 2.5e-7, 0]
    assert rates(config, num_steps, [0, 15, 15 + (num_steps - 15) // 2, num_steps]) == pytest.approx(
        expected, rel=1e-3, abs=1e-15
    )


@pytest.mark.parametrize("name, num_all, num_inner", [("pretrain-8b", 8.02, 6.98), ("pretrain-1b", 1.49, 0.97)])
def test_fresh_models_have_the_papers_numbers_of_parameters(name, num_all, num_inner):
    counted = [round(number / 1e9, 2) for number in count_parameters(read(name))]
    assert counted == [num_all, num_inner]


def test_the_recipe_for_an_adapter_trains_one():
    config, adapter = parse_sft(["--config", str(RECIPES / "sft-lora-8b.yaml")])
    assert (adapter.use_peft, adapter.lora_r, adapter.dtype, config.save_dtype) == (True, 16, "bfloat16", "bfloat16")


@pytest.mark.parametrize("name, num_gpus, batch", [("grpo-fork-8b", 4, 256), ("grpo-espo-8b", 8, 96),
                                                   ("grpo-diffu-8b", 8, 96)])  # fmt: skip
def test_a_recipe_of_reinforcement_learning_has_whole_groups_and_the_batch_that_its_head_says(name, num_gpus, batch):
    config, head = read(name), (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    per_device, accumulation = config.per_device_train_batch_size, config.gradient_accumulation_steps
    assert num_gpus * per_device * accumulation == batch
    assert f"{num_gpus} x {per_device} answers x {accumulation} accumulations = {batch} answers" in head
    assert batch % config.num_generations == 0
    assert config.max_completion_length // config.block_length <= (config.denoising_steps or 256)


def test_the_recipes_of_reinforcement_learning_have_the_published_settings():
    fork, espo, diffu = (read(f"grpo-{objective}-8b") for objective in ("fork", "espo", "diffu"))
    assert (fork.objective, fork.threshold, fork.fallback, fork.temperature) == ("fork", 0.8, "leftmost", 0.8)
    assert (fork.num_generations, fork.num_iterations, fork.beta, fork.epsilon) == (16, 1, 0.0, 0.2)
    assert (espo.num_levels, espo.complementary_masks, espo.num_iterations, espo.beta) == (2, True, 8, 3e-3)
    assert (espo.importance_sampling_level, espo.scale_rewards, espo.epsilon) == ("sequence", "none", 0.0)
    assert (diffu.prompt_mask_rate, diffu.epsilon, diffu.beta, diffu.num_iterations) == (0.15, 0.5, 0.04, 8)
    for config in (espo, diffu):
        assert (config.num_generations, config.learning_rate, config.max_completion_length) == (6, 3e-6, 256)
        assert (config.denoising_steps, config.block_length, config.max_grad_norm) == (128, 32, 0.2)
