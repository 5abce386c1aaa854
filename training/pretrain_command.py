"""The command `llada train pretrain`: options and recipe in, a complete model folder and a loss curve out."""

import difflib
import os
from typing import Any, Optional, cast

import torch
from transformers import PreTrainedTokenizerFast, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from modeling_llada import LLaDAConfig, LLaDAModelLM
from modeling_llada.tokenization_llada import BOS_TOKEN, EOS_TOKEN, MASK_TOKEN, missing_tokens, prepare_tokenizer

from .config import LLaDAPretrainingConfig
from .data import load_documents, pack_documents
from .plots import plot_loss_curve
from .pretraining import LLaDAPretrainingTrainer

LOSS_CURVE = "loss_curve.png"
USAGE = "llada train pretrain [--config RECIPE.yaml] [--option value ...]"
DESCRIPTION = (
    "Pre-train a LLaDA model. --config RECIPE.yaml reads options from a file, options on the command line win over it. "
    "A run needs train_data and output_dir, and either model (continue) or model_config and tokenizer (start afresh)."
)


def parse_options(args: list[str]) -> LLaDAPretrainingConfig:
    """Read options from the command line and from the file after `--config`; the command line wins.

    Raises:
        ValueError: for an unknown option, naming the nearest known one, and for values out of range.
    """
    if "--config" in args[:-1] and not os.path.isfile(args[args.index("--config") + 1]):
        raise ValueError(
            f"`--config` must name a YAML file, got {args[args.index('--config') + 1]!r}, which is no file."
        )
    parser = TrlParser([cast(Any, LLaDAPretrainingConfig)], usage=USAGE, description=DESCRIPTION, allow_abbrev=False)
    config, unknown = parser.parse_args_and_config(args, return_remaining_strings=True)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        nearest = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1, cutoff=0.0)[0]
        raise ValueError(f"Unknown option {unknown[0]!r}; did you mean {nearest!r}? `--help` lists all options.")
    return config


def pretrain_main(args: list[str]) -> str:
    """Run `llada train pretrain`.

    Args:
        args: command line without the command's name, e.g. `["--config", "recipe.yaml", "--max_steps", "100"]`.

    Returns:
        The folder that holds the result.

    Raises:
        ValueError: for options, data or tokenizers that cannot work; the message says what to do.
    """
    config = parse_options(args)
    set_seed(config.seed)
    trainer = build_trainer(config)
    checkpoint = find_checkpoint(config)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    save_result(trainer)
    return config.output_dir


def build_trainer(config: LLaDAPretrainingConfig) -> LLaDAPretrainingTrainer:
    """Load or make tokenizer, model and data, and put them into a trainer."""
    tokenizer = load_tokenizer(config)
    model = load_model(config, tokenizer)
    data = {"train": config.train_data or []}
    if config.validation_data:
        data["validation"] = config.validation_data
    splits = {"train": config.train_split, "validation": config.validation_split}
    packed = {}
    with config.main_process_first(desc="data preparation"):
        for name, sources in data.items():
            documents = load_documents(sources, config.text_column, splits[name], config.dataset_config_name)
            packed[name] = pack_documents(
                documents,
                tokenizer,
                config.sequence_length,
                model.config.embedding_size,
                model.config.mask_token_id,
                config.dataset_num_proc,
            )
    _report(config, model, packed)
    return LLaDAPretrainingTrainer(
        model,
        config,
        train_dataset=packed["train"],
        eval_dataset=packed.get("validation"),
        processing_class=tokenizer,
    )


def load_tokenizer(config: LLaDAPretrainingConfig) -> Any:
    """Load the tokenizer named by `tokenizer`, else the one beside `model`."""
    source = config.tokenizer or config.model
    if source is None:
        raise ValueError("`tokenizer` must name a folder or Hub id when `model` does not, got None; train one first.")
    # By its class: AutoTokenizer would ask to run the code beside the checkpoint.
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(source)
    if tokenizer.mask_token_id is None and not missing_tokens(tokenizer, [MASK_TOKEN, BOS_TOKEN, EOS_TOKEN]):
        # The released tokenizers hold LLaDA's tokens but declare no mask.
        tokenizer = prepare_tokenizer(tokenizer, missing="spell_out")
    return tokenizer


def load_model(config: LLaDAPretrainingConfig, tokenizer: Any) -> Any:
    """Load the checkpoint `model`, or make a fresh model of the sizes in `model_config`.

    A fresh model takes vocabulary size and token ids from the tokenizer, unless `model_config` gives them. Weights
    are float32: mixed precision is the trainer's, and saving in another type is `save_dtype`'s.

    Raises:
        ValueError: if neither is given, if the tokenizer has no mask token, or its ids and the model's differ.
    """
    if config.model is not None:
        model = LLaDAModelLM.from_pretrained(
            config.model, dtype=torch.float32, attn_implementation=config.attn_implementation
        )
    elif config.model_config is not None:
        model = LLaDAModelLM._from_config(
            LLaDAConfig(**_token_fields(tokenizer) | cast(dict, config.model_config)),
            attn_implementation=config.attn_implementation,
        )
    else:
        raise ValueError("One of `model` (continue) and `model_config` (start afresh) must be given, got neither.")
    for name in ("mask_token_id", "eos_token_id"):
        ours, theirs = getattr(model.config, name), getattr(tokenizer, name)
        if theirs is not None and theirs not in (ours if isinstance(ours, list) else [ours]):
            raise ValueError(
                f"`{name}` must be the same in model and tokenizer, got {ours} and {theirs}; use the model's tokenizer."
            )
    if config.sequence_length > model.config.max_sequence_length:
        raise ValueError(
            "`sequence_length` must be at most the model's `max_sequence_length` "
            f"({model.config.max_sequence_length}), got {config.sequence_length}; lower it, or raise "
            "max_sequence_length in `model_config`."
        )
    return model


def find_checkpoint(config: LLaDAPretrainingConfig) -> Optional[str]:
    """Folder to resume from, or None to start afresh.

    Raises:
        ValueError: if there is nothing to resume, or if checkpoints of another run would be mixed with this one's.
    """
    found = get_last_checkpoint(config.output_dir) if os.path.isdir(config.output_dir) else None
    wish = config.resume_from_checkpoint
    if wish is None or str(wish).lower() == "false":
        if found is not None and not getattr(config, "overwrite_output_dir", False):
            raise ValueError(
                f"`output_dir` must not hold checkpoints of an earlier run, got {found}; pass "
                "--resume_from_checkpoint true to continue it, or another --output_dir."
            )
        return None
    checkpoint = found if str(wish).lower() == "true" else wish
    if checkpoint is None or not os.path.isdir(checkpoint):
        raise ValueError(
            f"`resume_from_checkpoint` must be true or the folder of a checkpoint, got {wish}, but there is none in "
            f"{config.output_dir if checkpoint is None else checkpoint}; leave it out to start afresh."
        )
    return checkpoint


def save_result(trainer: LLaDAPretrainingTrainer) -> None:
    """Write the final model folder (weights, config, tokenizer, generation config) and the loss curve."""
    config = trainer.args
    if config.save_dtype is not None:
        trainer.accelerator.unwrap_model(trainer.model).to(getattr(torch, config.save_dtype))
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    curve = plot_loss_curve(trainer.state.log_history, os.path.join(config.output_dir, LOSS_CURVE), "Pre-training loss")
    print(f"Model, tokenizer and training log: {config.output_dir}\nLoss curve: {curve}")


def _token_fields(tokenizer: Any) -> dict:
    if tokenizer.mask_token_id is None:
        raise ValueError(
            "`tokenizer` must declare a mask token for a fresh model, got none; set `tokenizer.mask_token`, "
            "or give mask_token_id in `model_config`."
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad,
        "bos_token_id": tokenizer.bos_token_id,
    }


def _report(config: LLaDAPretrainingConfig, model: Any, packed: dict) -> None:
    if config.process_index:
        return
    parts = ", ".join(f"{len(data):,} sequences for {name}" for name, data in packed.items())
    size = model.num_parameters() / 1e6
    print(f"Model of {size:.1f} M parameters; {parts}, of at most {config.sequence_length} tokens.")
