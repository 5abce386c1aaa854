"""The command `llada train grpo`: a model, prompts and rewards in; the trained model and a curve out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .adapters import AdapterOptions
from .command import (
    load_data,
    load_policy,
    load_tokenizer,
    parse_with_adapter,
    report_start,
    run_training,
    with_chat_template,
)
from .data import load_prompts
from .diffusion_trainer import option
from .grpo import LLaDAGRPOConfig, LLaDAGRPOTrainer
from .rewards import countdown_reward, format_reward, math_reward, sudoku_reward

COMMAND = "llada train grpo"
DESCRIPTION = (
    "Train a model on prompts by rewards for its answers. --config RECIPE.yaml reads options from a file, options on "
    "the command line win over it. A run needs model, train_data, rewards and output_dir. With --use_peft true it "
    "trains a LoRA adapter."
)
REWARDS: dict[str, Callable[..., Any]] = {
    "math": math_reward,
    "countdown": countdown_reward,
    "sudoku": sudoku_reward,
    "format": format_reward,
}


@dataclass
class PromptOptions:
    """Options of `llada train grpo` for prompts and rewards."""

    rewards: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Any of {', '.join(REWARDS)}, or a function of yours: my_package.my_module.my_reward. They are "
            "added up with `reward_weights`."
        },
    )
    prompt_column: str = option("prompt", "Column of the prompts in the data.")
    as_chat: bool = option(False, "Make each prompt that is a text the question of a conversation.")


def grpo_main(args: list[str]) -> str:
    """Run `llada train grpo`.

    Args:
        args: command line without the command's name, e.g. `["--config", "recipe.yaml", "--max_steps", "100"]`.

    Returns:
        The folder that holds the result. With `use_peft` the adapter lies in its sub-folder `adapter`.

    Raises:
        ValueError: for options, data, rewards or tokenizers that cannot work; the message says what to do.
        ImportError: without a package that a reward or `load_in_4bit` needs.
    """
    config, adapter, prompts = parse_grpo(args)
    return run_training(config, lambda: build_trainer(config, adapter, prompts), "GRPO loss", adapter)


def parse_grpo(args: list[str]) -> tuple[LLaDAGRPOConfig, AdapterOptions, PromptOptions]:
    """Read the options of the training, its adapter and its prompts; errors as in `parse_with_adapter`.

    Raises:
        ValueError: also if no reward is named.
    """
    config, adapter, prompts = parse_with_adapter(args, LLaDAGRPOConfig, COMMAND, DESCRIPTION, (PromptOptions,))
    if not prompts.rewards:
        raise ValueError(f"`rewards` must name at least one of {', '.join(REWARDS)}, or a function, got none.")
    return config, adapter, prompts


def build_trainer(config: LLaDAGRPOConfig, adapter: AdapterOptions, prompts: PromptOptions) -> LLaDAGRPOTrainer:
    """Load prompts, rewards, tokenizer and model, and put them into a trainer."""
    rewards = [find_reward(name) for name in prompts.rewards]
    data = load_data(
        config,
        lambda sources, split: load_prompts(sources, split, config.dataset_config_name, prompts.prompt_column),
    )
    if prompts.as_chat:
        data = {name: rows.map(_as_question, desc="Prompts as questions") for name, rows in data.items()}
    tokenizer = with_chat_template(load_tokenizer(config), data)
    model = load_policy(config, adapter, tokenizer)
    trainer = LLaDAGRPOTrainer(
        model,
        rewards,
        config,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=tokenizer,
        peft_config=adapter.lora_config(),
    )
    report_start(config, trainer.model, data, "prompt", model.config.max_sequence_length)
    return trainer


def find_reward(name: str) -> Callable[..., Any]:
    """The reward of a name: one of `REWARDS`, or a function by its module and name.

    Raises:
        ValueError: if there is none.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function) if module else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`rewards` must name functions that can be imported, got {name!r}: {error}.") from error
    if not callable(found):
        raise ValueError(
            f"`rewards` must be of {', '.join(REWARDS)}, or functions as my_module.my_reward, got {name!r}."
        )
    return found


def _as_question(row: dict[str, Any]) -> dict[str, Any]:
    prompt = row["prompt"]
    return {"prompt": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}
