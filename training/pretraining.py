"""The pre-training trainer: transformers' `Trainer` with the masked diffusion loss."""

from typing import Any

from torch import Tensor

from llada_core.diffusion import NoisyBatch

from .annealing import annealed_attention_mask
from .collator import LLaDACollator, cut_to_lengths, row_lengths
from .config import LLaDAPretrainingConfig
from .diffusion_trainer import DiffusionTrainer, check_model, pad_id_of
from .noise import random_lengths


class LLaDAPretrainingTrainer(DiffusionTrainer):
    """Pre-train a LLaDA model; the steps are those of `DiffusionTrainer`.

    Args:
        model: a `LLaDAModelLM`, installed or loaded as remote code.
        args: options.
        train_dataset, eval_dataset: sequences with `input_ids` and a stable number `example_id`, as made by
            `pack_documents`; optionally `labels`, -100 where a token is never masked.
        processing_class: the tokenizer, saved beside the model.
        data_collator: default `LLaDACollator`.
        options: further arguments of `Trainer`; `compute_metrics` and `compute_loss_func` do not apply.

    Raises:
        ValueError: for a model without a mask token or that is no LLaDA, for data without `example_id`, and for
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
            _check_dataset(name, dataset)
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

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "example_id"]

    def _settle_training_rows(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Cut some rows short."""
        args, settled = self.args, []
        for batch in batches:
            lengths = row_lengths(batch)
            shorter = random_lengths(
                lengths, batch["example_id"], args.seed, self.state.global_step, args.random_length_probability
            )
            if bool((shorter < lengths).any()):
                batch = cut_to_lengths(batch, shorter, self._pad_token_id)
            settled.append(batch)
        return settled

    def _model_inputs(self, noisy: NoisyBatch, inputs: dict[str, Tensor], num_draws: int) -> dict[str, Any]:
        """Add the limits of annealed attention while training; evaluation is bidirectional."""
        arguments = super()._model_inputs(noisy, inputs, num_draws)
        if self.model.training:
            arguments["attention_mask"] = annealed_attention_mask(
                arguments["attention_mask"],
                noisy.is_masked,
                self.state.global_step,
                self.args.attention_annealing_steps,
                self.args.seed,
            )
        return arguments


def _check_dataset(name: str, dataset: Any) -> None:
    columns = getattr(dataset, "column_names", None)
    if columns is not None and not {"input_ids", "example_id"} <= set(columns):
        raise ValueError(
            f"`{name}` must have the columns `input_ids` and `example_id`, got {', '.join(columns)}; "
            "make it with `llada_training.pack_documents`."
        )
