"""The command `llada train sft`: a model, examples and a recipe in; the fine-tuned model and a loss curve out."""

from typing import Any

from trl.chat_template_utils import has_generation_markers

from llada_core.tokenization import prepare_tokenizer

from .adapters import AdapterOptions
from .command import load_data, load_policy, load_tokenizer, parse_with_adapter, report_start, run_training
from .data import load_examples, stream_examples
from .sft import LLaDASFTConfig, LLaDASFTTrainer
from .sft_data import has_conversations

COMMAND = "llada train sft"
DESCRIPTION = (
    "Fine-tune a LLaDA model on conversations (messages), prompts with completions, or texts. --config RECIPE.yaml "
    "reads options from a file, options on the command line win over it. A run needs model, train_data and output_dir. "
    "With --use_peft true it trains a LoRA adapter."
)


def sft_main(args: list[str]) -> str:
    """Run `llada train sft`.

    Args:
        args: command line without the command's name, e.g. `["--config", "recipe.yaml", "--max_steps", "100"]`.

    Returns:
        The folder that holds the result. With `use_peft` the adapter lies in its sub-folder `adapter`.

    Raises:
        ValueError: for options, data or tokenizers that cannot work; the message says what to do.
        ImportError: with `load_in_4bit`, without bitsandbytes.
    """
    config, adapter = parse_sft(args)
    return run_training(config, lambda: build_trainer(config, adapter), "Fine-tuning loss", adapter)


def parse_sft(args: list[str]) -> tuple[LLaDASFTConfig, AdapterOptions]:
    """Read the options of fine-tuning and those of its adapter; errors as in `parse_with_adapter`."""
    return parse_with_adapter(args, LLaDASFTConfig, COMMAND, DESCRIPTION)


def build_trainer(config: LLaDASFTConfig, adapter: AdapterOptions) -> LLaDASFTTrainer:
    """Load examples, tokenizer and model, and put them into a trainer."""
    config_name = config.dataset_config_name
    data = load_data(
        config,
        lambda sources, split: load_examples(sources, split, config_name),
        lambda sources, split: stream_examples(sources, split, config_name),
    )
    tokenizer = load_tokenizer(config)
    if any(has_conversations(examples) for examples in data.values()):
        tokenizer = _with_marked_template(tokenizer)
    model = load_policy(config, adapter, tokenizer)
    trainer = LLaDASFTTrainer(
        model,
        config,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=tokenizer,
        peft_config=adapter.lora_config(),
    )
    report_start(config, trainer.model, data, "example", config.max_length or model.config.max_sequence_length)
    return trainer


def _with_marked_template(tokenizer: Any) -> Any:
    """Give a tokenizer LLaDA's chat template unless its own marks the assistant's words."""
    if tokenizer.chat_template and has_generation_markers(tokenizer.chat_template):
        return tokenizer
    print("The tokenizer's chat template does not mark the assistant's words; LLaDA's is used and saved instead.")
    return prepare_tokenizer(tokenizer, missing="spell_out")
