"""The command `llada train pretrain`: options and recipe in, a complete model folder and a loss curve out."""

from typing import Any, cast

from datasets import Dataset

from llada_core import loading
from modeling_llada import LLaDAConfig, LLaDAModelLM

from .command import load_data, load_tokenizer, parse_options, report_start, run_training
from .data import PACK_BATCH, load_documents, only_text, pack_documents, stream_documents
from .pretraining import SEQUENCE_LENGTH, LLaDAPretrainingConfig, LLaDAPretrainingTrainer
from .stream import Stream

COMMAND = "llada train pretrain"
DESCRIPTION = (
    "Pre-train a LLaDA model. --config RECIPE.yaml reads options from a file, options on the command line win over it. "
    "A run needs train_data and output_dir, and either model (continue) or model_config and tokenizer (start afresh)."
)


def pretrain_main(args: list[str]) -> str:
    """Run `llada train pretrain`.

    Args:
        args: command line without the command's name, e.g. `["--config", "recipe.yaml", "--max_steps", "100"]`.

    Returns:
        The folder that holds the result.

    Raises:
        ValueError: for options, data or tokenizers that cannot work; the message says what to do.
    """
    config = parse_pretraining(args)
    return run_training(config, lambda: build_trainer(config), "Pre-training loss")


def parse_pretraining(args: list[str]) -> LLaDAPretrainingConfig:
    """Read the options of pre-training; errors as in `parse_options`."""
    return parse_options(args, [LLaDAPretrainingConfig], COMMAND, DESCRIPTION)[0]


def build_trainer(config: LLaDAPretrainingConfig) -> LLaDAPretrainingTrainer:
    """Load or make tokenizer, model and data, and put them into a trainer."""
    tokenizer = load_tokenizer(config)
    model = load_model(config, tokenizer)
    vocab_size, mask_token_id = model.config.embedding_size, model.config.mask_token_id

    # `load_model` has set it.
    length = cast(int, config.sequence_length)

    def pack(documents: Dataset, first: int = 0) -> tuple[Dataset, int]:
        # A chunk of a stream is packed in a moment, and needs no processes.
        num_proc = None if config.streaming else config.dataset_num_proc
        packed = pack_documents(documents, tokenizer, length, vocab_size, mask_token_id, num_proc, first)
        return packed, first + len(packed)

    def load_packed(sources: list[str], split: str) -> Dataset:
        return pack(load_documents(sources, config.text_column, split, config.dataset_config_name))[0]

    def pack_chunk(chunk: Dataset, first: int) -> tuple[Dataset, int]:
        return pack(only_text(chunk, "text", f"the documents from sequence {first} on"), first)

    def stream_packed(sources: list[str], split: str) -> Stream:
        documents = stream_documents(sources, config.text_column, split, config.dataset_config_name)
        return Stream(documents, pack_chunk, PACK_BATCH, config.seed)

    packed = load_data(config, load_packed, stream_packed)
    report_start(config, model, packed, "sequence", length)
    return LLaDAPretrainingTrainer(
        model,
        config,
        train_dataset=packed["train"],
        eval_dataset=packed.get("validation"),
        processing_class=tokenizer,
    )


def load_model(config: LLaDAPretrainingConfig, tokenizer: Any) -> Any:
    """Load the checkpoint `model`, or make a fresh model of the sizes in `model_config`.

    A fresh model takes vocabulary size and token ids from the tokenizer, unless `model_config` gives them.

    Raises:
        ValueError: if neither is given, if the tokenizer has no mask token, or its ids and the model's differ.
    """
    if config.model is not None:
        # In float32: mixed precision is the trainer's, and saving in another type is `save_dtype`'s.
        model = loading.load_model(config.model, dtype="float32", attn_implementation=config.attn_implementation)
    elif config.model_config is not None:
        model = LLaDAModelLM._from_config(
            LLaDAConfig(**_token_fields(tokenizer) | cast(dict, config.model_config)),
            attn_implementation=config.attn_implementation,
        )
    else:
        raise ValueError("One of `model` (continue) and `model_config` (start afresh) must be given, got neither.")
    loading.check_tokenizer(tokenizer, model.config)
    if config.sequence_length is None:
        config.sequence_length = min(SEQUENCE_LENGTH, model.config.max_sequence_length)
    elif config.sequence_length > model.config.max_sequence_length:
        raise ValueError(
            "`sequence_length` must be at most the model's `max_sequence_length` "
            f"({model.config.max_sequence_length}), got {config.sequence_length}; lower it, or raise "
            "max_sequence_length in `model_config`."
        )
    return model


def _token_fields(tokenizer: Any) -> dict:
    if tokenizer.mask_token_id is None:
        raise ValueError(
            "`tokenizer` must declare a mask token for a fresh model, got none; set `tokenizer.mask_token`, "
            "or give mask_token_id in `model_config`."
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = {name: getattr(tokenizer, name) for name in ("mask_token_id", "eos_token_id", "bos_token_id")}
    return {"vocab_size": len(tokenizer), "pad_token_id": pad, **ids}
