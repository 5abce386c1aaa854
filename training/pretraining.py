"""Pre-training: the options, and transformers' `Trainer` with the masked diffusion loss."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

from torch import Tensor
from transformers import TrainingArguments

from llada_core.diffusion import NoisyBatch

from .batch import LLaDACollator, annealed_attention_mask, set_lengths
from .diffusion_trainer import EVALUATION_STEP, DiffusionOptions, DiffusionTrainer, check_model, option, pad_id_of
from .noise import random_lengths

# Share of the pre-training sequences that are cut to a random length (LLaDA, arXiv:2502.09992, section 2.2).
RANDOM_LENGTH_PROBABILITY = 0.01
# The paper's, in tokens.
SEQUENCE_LENGTH = 4096


@dataclass
class LLaDAPretrainingConfig(DiffusionOptions, TrainingArguments):
    """Options of `LLaDAPretrainingTrainer` and of `llada train pretrain`.

    A batch is counted as in `TrainingArguments`: one optimizer step sees `per_device_train_batch_size` times
    `gradient_accumulation_steps` times the number of processes sequences of `sequence_length` tokens.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to this objective.

    Source: LLaDA (arXiv:2502.09992), section 2.2 and appendix A; its released pre-training guideline.
    Not handled: packing with separated documents, streams of validation data.
    """

    output_dir: str = option("llada-pretraining", "Folder for checkpoints, the final model and the loss curve.")
    model_config: Optional[Union[dict, str]] = option(
        None,
        "Fields of LLaDAConfig for a fresh model: a mapping, or the path of a JSON file. Token ids and the "
        "vocabulary size come from the tokenizer unless given.",
    )
    text_column: str = option("text", "Column that holds a document's text.")
    dataset_num_proc: Optional[int] = option(None, "Processes that tokenise the documents.")

    sequence_length: Optional[int] = option(
        None, f"Tokens of each training sequence. Unset: {SEQUENCE_LENGTH}, or the model's max_sequence_length if less."
    )
    random_length_probability: float = option(
        RANDOM_LENGTH_PROBABILITY,
        "Share of the sequences that are cut to a length drawn uniformly from 1 to their length.",
    )
    attention_annealing_steps: int = option(
        0,
        "Steps over which attention goes from causal to bidirectional, to go on from an autoregressive "
        "model. 0: bidirectional from the start.",
    )
    # Fields of TrainingArguments with another default here.
    learning_rate: float = option(4e-4, "Highest learning rate.")
    num_train_epochs: float = option(1.0, "Passes over the data, unless `max_steps` is set.")
    logging_steps: float = option(10, "Log every so many steps (a fraction if below 1).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.model_config, str):
            self.model_config = _read_mapping(self.model_config)

    def _check_noise(self) -> None:
        super()._check_noise()
        if self.sequence_length is not None and self.sequence_length < 1:
            raise ValueError(f"`sequence_length` must be at least 1, got {self.sequence_length}; leave it out.")
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


class LLaDAPretrainingTrainer(DiffusionTrainer):
    """Pre-train a LLaDA model; the steps are those of `DiffusionTrainer`.

    Args:
        model: a `LLaDAModelLM`, installed or loaded as remote code.
        args: options.
        train_dataset, eval_dataset: sequences with `input_ids` and a stable number `example_id`, as made by
            `pack_documents`; optionally `labels`, -100 where a token is never masked.
        processing_class: the tokenizer, saved beside the model.
        data_collator: default `LLaDACollator`; batches of another one must have the same entries.
        options: further arguments of `Trainer`; `compute_metrics` and `compute_loss_func` do not apply.

    Raises:
        ValueError: for a model that is not a LLaDA model or has no mask token, for data without `example_id`, and for
            options that cannot apply.

    Source: LLaDA (arXiv:2502.09992), algorithm 1.
    """

    args: LLaDAPretrainingConfig

    def __init__(
        self,
        model: Any,
        args: LLaDAPretrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Any = None,
        **options: Any,
    ):
        check_model(getattr(model, "config", None))
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            columns = getattr(dataset, "column_names", None)
            if columns is not None and not {"input_ids", "example_id"} <= set(columns):
                raise ValueError(
                    f"`{name}` must have the columns `input_ids` and `example_id`, got {', '.join(columns)}; "
                    "make it with `llada_training.pack_documents`."
                )
        self._pad_token_id = pad_id_of(model.config)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or LLaDACollator(self._pad_token_id),
            **options,
        )

    def _prepare_rows(self, batches: list[dict[str, Tensor]], seed: int, step: int) -> list[dict[str, Tensor]]:
        """Cut some rows of an optimizer step short."""
        probability = self.args.random_length_probability
        if step == EVALUATION_STEP or not probability:
            return batches
        return [
            set_lengths(
                batch,
                random_lengths(batch["lengths"], batch["example_id"], seed, step, probability),
                self._pad_token_id,
            )
            for batch in batches
        ]

    def _model_inputs(self, noisy: NoisyBatch, inputs: dict[str, Tensor], num_draws: int) -> dict[str, Any]:
        """Add the limits of annealed attention while training; evaluation is bidirectional."""
        arguments = super()._model_inputs(noisy, inputs, num_draws)
        args, step = self.args, self.state.global_step
        if self.model.training and step < args.attention_annealing_steps:
            lengths, width = inputs["lengths"].repeat(num_draws), noisy.input_ids.shape[1]
            mask = annealed_attention_mask(lengths, width, step, args.attention_annealing_steps, args.seed)
            arguments["attention_mask"] = mask
        return arguments


def _read_mapping(text_or_path: str) -> dict:
    """Read `model_config` from JSON, written out or in a file."""
    text = text_or_path
    if not text.lstrip().startswith("{"):
        if not os.path.isfile(text_or_path):
            raise ValueError(
                f"`model_config` must be a mapping or the path of a JSON file, got {text_or_path!r}, which does not "
                "exist."
            )
        text = Path(text_or_path).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"`model_config` must be JSON, got {text_or_path!r}, which is not: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"`model_config` must hold a mapping of LLaDAConfig fields, got a {type(content).__name__}.")
    return content
