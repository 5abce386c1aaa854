"""The command `llada train sft`: a model, examples and a recipe in; the fine-tuned model and a loss curve out."""

import os
from typing import Any

from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.chat_template_utils import has_generation_markers

from llada_core.loading import check_tokenizer, load_model
from llada_core.tokenization import prepare_tokenizer, save_tokenizer

from .adapters import AdapterOptions, merge_adapter
from .command import load_data, load_tokenizer, parse_options, report_start, run_training, save_model
from .data import load_examples
from .sft import LLaDASFTConfig, LLaDASFTTrainer
from .sft_data import has_conversations

COMMAND = "llada train sft"
DESCRIPTION = (
    "Fine-tune a LLaDA model on conversations (messages), prompts with completions, or texts. --config RECIPE.yaml "
    "reads options from a file, options on the command line win over it. A run needs model, train_data and output_dir. "
    "With --use_peft true it trains a LoRA adapter."
)
ADAPTER_FOLDER = "adapter"


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
    return run_training(
        config,
        lambda: build_trainer(config, adapter),
        "Fine-tuning loss",
        (lambda trainer: save_adapter(trainer, adapter.merge_adapter)) if adapter.use_peft else save_model,
    )


def parse_sft(args: list[str]) -> tuple[LLaDASFTConfig, AdapterOptions]:
    """Read the options of fine-tuning and those of its adapter; errors as in `parse_options`, and if one is missing."""
    config, adapter = parse_options(args, [LLaDASFTConfig, AdapterOptions], COMMAND, DESCRIPTION)
    if config.model is None:
        raise ValueError("`model` must name a LLaDA checkpoint (folder or Hub id), got None; pass --model.")
    if adapter.use_peft and config.push_to_hub:
        raise ValueError(
            "`push_to_hub` must be False with `use_peft`, since adapter and model are two folders, got True; "
            "publish one with `llada push`."
        )
    return config, adapter


def build_trainer(config: LLaDASFTConfig, adapter: AdapterOptions) -> LLaDASFTTrainer:
    """Load examples, tokenizer and model, and put them into a trainer."""
    data = load_data(config, lambda sources, split: load_examples(sources, split, config.dataset_config_name))
    tokenizer = load_tokenizer(config)
    if any(has_conversations(examples) for examples in data.values()):
        tokenizer = _with_marked_template(tokenizer)
    options = {"attn_implementation": config.attn_implementation, **adapter.loading_options()}
    # `sft_main` has refused a run without `model`.
    model = load_model(str(config.model), dtype=adapter.dtype, **options)
    check_tokenizer(tokenizer, model.config)
    trainer = LLaDASFTTrainer(
        model,
        config,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        processing_class=tokenizer,
        peft_config=adapter.lora_config(),
    )
    report_start(config, trainer.model, data, "examples", config.max_length or model.config.max_sequence_length)
    return trainer


def save_adapter(trainer: Any, merge: bool) -> None:
    """Write the adapter into its sub-folder of the run, and, if asked, the whole model into the run's folder."""
    config = trainer.args
    folder = os.path.join(config.output_dir, ADAPTER_FOLDER)
    trainer.save_model(folder)
    if not trainer.is_world_process_zero():
        return
    print(f"LoRA adapter: {folder}")
    if merge:
        # The merged model is loaded by this process alone, and ZeRO-3 would share it out.
        unset_hf_deepspeed_config()
        merge_adapter(config.model, folder, config.output_dir, config.save_dtype)
        save_tokenizer(trainer.processing_class, config.output_dir)


def _with_marked_template(tokenizer: Any) -> Any:
    """Give a tokenizer LLaDA's chat template unless its own marks the assistant's words."""
    if tokenizer.chat_template and has_generation_markers(tokenizer.chat_template):
        return tokenizer
    print("The tokenizer's chat template does not mark the assistant's words; LLaDA's is used and saved instead.")
    return prepare_tokenizer(tokenizer, missing="spell_out")
