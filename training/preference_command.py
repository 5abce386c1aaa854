"""The commands `llada train dpo` and `llada train kto`: a model and preferences in; the trained model out."""

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
from .data import load_examples
from .dpo import LLaDADPOConfig, LLaDADPOTrainer
from .kto import LLaDAKTOConfig, LLaDAKTOTrainer

DPO_COMMAND, KTO_COMMAND = "llada train dpo", "llada train kto"
DESCRIPTION = (
    "Train a model on {}, by bounds on log-probabilities (VRPO). The reference is the model itself as it was. --config "
    "RECIPE.yaml reads options from a file, options on the command line win over it. A run needs model, train_data and "
    "output_dir. With --use_peft true it trains a LoRA adapter."
)


def dpo_main(args: list[str]) -> str:
    """Run `llada train dpo`.

    Args:
        args: command line without the command's name, e.g. `["--config", "recipe.yaml", "--max_steps", "100"]`.

    Returns:
        The folder that holds the result. With `use_peft` the adapter lies in its sub-folder `adapter`.

    Raises:
        ValueError: for options, data or tokenizers that cannot work; the message says what to do.
        ImportError: with `load_in_4bit`, without bitsandbytes.
    """
    config, adapter = parse_dpo(args)
    return run_training(config, lambda: build_trainer(LLaDADPOTrainer, config, adapter), "DPO loss", adapter)


def kto_main(args: list[str]) -> str:
    """Run `llada train kto`; all as in `dpo_main`."""
    config, adapter = parse_kto(args)
    return run_training(config, lambda: build_trainer(LLaDAKTOTrainer, config, adapter), "KTO loss", adapter)


def parse_dpo(args: list[str]) -> tuple[LLaDADPOConfig, AdapterOptions]:
    """Read the options of DPO and those of its adapter; errors as in `parse_with_adapter`."""
    return parse_with_adapter(args, LLaDADPOConfig, DPO_COMMAND, DESCRIPTION.format("pairs of answers (DPO)"))


def parse_kto(args: list[str]) -> tuple[LLaDAKTOConfig, AdapterOptions]:
    """Read the options of KTO and those of its adapter; errors as in `parse_with_adapter`."""
    return parse_with_adapter(args, LLaDAKTOConfig, KTO_COMMAND, DESCRIPTION.format("good and bad answers (KTO)"))


def build_trainer(trainer_class: Any, config: Any, adapter: AdapterOptions) -> Any:
    """Load preferences, tokenizer and model, and put them into a trainer."""
    formats, wanted = trainer_class.data_formats, trainer_class.data_columns
    data = load_data(
        config, lambda sources, split: load_examples(sources, split, config.dataset_config_name, formats, wanted)
    )
    tokenizer = with_chat_template(load_tokenizer(config), data)
    model = load_policy(config, adapter, tokenizer)
    trainer = trainer_class(
        model,
        args=config,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=tokenizer,
        peft_config=adapter.lora_config(),
    )
    longest = config.max_length or model.config.max_sequence_length
    report_start(config, trainer.model, data, "example", longest)
    return trainer
