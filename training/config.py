"""Options of pre-training: every field of `TrainingArguments`, and what LLaDA adds, checked in one place."""

import json
import os
from dataclasses import dataclass, field
from typing import Optional, Union

from transformers import TrainingArguments

from .diffusion_config import DiffusionOptions

# Share of the pre-training sequences that are cut to a random length (LLaDA, arXiv:2502.09992, section 2.2).
RANDOM_LENGTH_PROBABILITY = 0.01


@dataclass
class LLaDAPretrainingConfig(DiffusionOptions, TrainingArguments):
    """Options of `LLaDAPretrainingTrainer` and of `llada train pretrain`.

    A batch is counted as in `TrainingArguments`: one optimizer step sees `per_device_train_batch_size` times
    `gradient_accumulation_steps` times the number of processes sequences of `sequence_length` tokens.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to this objective.

    Source: LLaDA (arXiv:2502.09992), section 2.2 and appendix A; its released pre-training guideline.
    Not handled: streaming data sets, packing with separated documents.
    """

    output_dir: str = field(
        default="llada-pretraining", metadata={"help": "Folder for checkpoints, the final model and the loss curve."}
    )
    model_config: Optional[Union[dict, str]] = field(
        default=None,
        metadata={
            "help": "Fields of LLaDAConfig for a fresh model: a mapping, or the path of a JSON file. Token ids and the "
            "vocabulary size come from the tokenizer unless given."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds a document's text."})
    dataset_num_proc: Optional[int] = field(default=None, metadata={"help": "Processes that tokenise the documents."})

    sequence_length: int = field(default=4096, metadata={"help": "Tokens of each training sequence."})
    random_length_probability: float = field(
        default=RANDOM_LENGTH_PROBABILITY,
        metadata={"help": "Share of the sequences that are cut to a length drawn uniformly from 1 to their length."},
    )
    attention_annealing_steps: int = field(
        default=0,
        metadata={
            "help": "Steps over which attention goes from causal to bidirectional, to go on from an autoregressive "
            "model. 0: bidirectional from the start."
        },
    )
    # Fields of TrainingArguments with another default here.
    learning_rate: float = field(default=4e-4, metadata={"help": "Highest learning rate."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the data, unless `max_steps` is set."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps (a fraction if below 1)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.model_config, str):
            self.model_config = _read_mapping(self.model_config)

    def _check_noise(self) -> None:
        super()._check_noise()
        if self.sequence_length < 1:
            raise ValueError(f"`sequence_length` must be at least 1, got {self.sequence_length}; the default is 4096.")
        if not 0.0 <= self.random_length_probability <= 1.0:
            raise ValueError(
                "`random_length_probability` must be from 0.0 to 1.0, got "
                f"{self.random_length_probability}; leave it out."
            )
        if self.attention_annealing_steps < 0:
            raise ValueError(
                f"`attention_annealing_steps` must be at least 0, got {self.attention_annealing_steps}; leave it out."
            )

    def _check_sources(self) -> None:
        super()._check_sources()
        if self.model is not None and self.model_config is not None:
            raise ValueError(
                f"`model_config` describes a fresh model and cannot change the checkpoint `model`={self.model!r}; "
                "give one of the two."
            )


def _read_mapping(text_or_path: str) -> dict:
    """Read `model_config` from JSON, written out or in a file."""
    text = text_or_path
    if not text.lstrip().startswith("{"):
        if not os.path.isfile(text_or_path):
            raise ValueError(
                f"`model_config` must be a mapping or the path of a JSON file, got {text_or_path!r}, which is no file."
            )
        with open(text_or_path, encoding="utf-8") as file:
            text = file.read()
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`model_config` must be JSON, got {text_or_path!r}, which is not: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`model_config` must hold a mapping of LLaDAConfig fields, got a {type(content).__name__}.")
    return content
