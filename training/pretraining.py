"""The pre-training trainer: transformers' `Trainer` with the masked diffusion loss."""

from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer

from modeling_llada.diffusion_llada import NoisyBatch, low_discrepancy_noise_levels
from modeling_llada.tokenization_llada import save_tokenizer

from .collator import LLaDACollator, cut_to_lengths, row_lengths
from .config import LLaDAPretrainingConfig
from .loss import MaskedPredictions, pretraining_loss, score_masked
from .metrics import TrainingMetrics, level_sums, row_sums, summarize
from .noise import IGNORE_INDEX, draw_noise, random_lengths, training_noise_levels

# Evaluation draws the same masks at every step of every run.
EVALUATION_SEED, EVALUATION_STEP = 0, -1


class LLaDAPretrainingTrainer(Trainer):
    """Pre-train a LLaDA model.

    A step: 1 collate · 2 draw noise by (seed, step, example id) · 3 mask · 4 forward, logits only where masked ·
    5 cross-entropy times weight · 6 divide by the tokens of the whole optimizer step · 7 update · 8 log.
    The loss is the same for any split of the step over accumulation and processes.

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

    # The loss is divided by the items of the whole optimizer step here, so `Trainer` must not divide again.
    loss_is_scaled_for_ga = True
    # Narrower than `Trainer` declares them.
    args: LLaDAPretrainingConfig
    model: Any
    model_wrapped: Any
    processing_class: Any
    _signature_columns: Any

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
        _check_model(model)
        for name in ("compute_metrics", "compute_loss_func"):
            if options.get(name) is not None:
                raise ValueError(f"`{name}` must be unset, the diffusion loss brings its own, got one; leave it out.")
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            _check_dataset(name, dataset)
        self._pad_token_id = _first(model.config.pad_token_id, model.config.eos_token_id)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or LLaDACollator(self._pad_token_id),
            compute_metrics=self._evaluation_metrics,
            **options,
        )
        self.model_accepts_loss_kwargs = True
        self._metrics = TrainingMetrics()

    # 1 collate

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "labels", "example_id"]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the batches of one optimizer step, cut some rows short and give every row its noise level."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        batches = [self._with_noise_level(batch, index) for index, batch in enumerate(batches)]
        num_tokens = self._get_num_items_in_batch(batches, device)
        self._metrics.start_step(float(num_tokens))
        return batches, num_tokens

    def _with_noise_level(self, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Steps 1 and 2 for batch `index` of the optimizer step: everything that the whole step decides."""
        args, step, ids = self.args, self.state.global_step, batch["example_id"]
        if args.random_length_probability > 0:
            lengths = row_lengths(batch)
            shorter = random_lengths(lengths, ids, args.seed, step, args.random_length_probability)
            if bool((shorter < lengths).any()):
                batch = cut_to_lengths(batch, shorter, self._pad_token_id)
        rank = index * args.world_size + args.process_index
        slots = rank * args.train_batch_size + torch.arange(len(ids), device=ids.device)
        return batch | {"noise_levels": training_noise_levels(ids, slots, args.seed, step, args.low_discrepancy)}

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Tokens that may be masked in the whole optimizer step, over accumulation and processes; scalar."""
        num_tokens = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in batch_samples)
        return self.accelerator.reduce(torch.as_tensor(num_tokens).to(device), reduction="sum").clamp(min=1)

    # 2 to 6: noise, forward, loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Optional[Union[Tensor, int]] = None,
    ) -> Any:
        """Loss of one batch: its share of the mean over the optimizer step, times the number of processes.

        Processes average their gradients, so the factor makes the average a sum.
        """
        noisy, predictions = self._predict(model, inputs, self.args.seed, self.state.global_step, self.args.exact_count)
        self._metrics.update(predictions, noisy)
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], inputs["input_ids"].device)
        loss = pretraining_loss(predictions.token_losses, noisy, num_items_in_batch) * self.accelerator.num_processes
        return (loss, predictions) if return_outputs else loss

    def _predict(
        self, model: Any, inputs: dict[str, Tensor], seed: int, step: int, exact_count: bool
    ) -> tuple[NoisyBatch, MaskedPredictions]:
        """Steps 2 to 5: mask the batch, and score the masked positions."""
        noisy = draw_noise(
            inputs["input_ids"],
            inputs["labels"],
            inputs["example_id"],
            inputs["noise_levels"],
            self.model.config.mask_token_id,
            seed,
            step,
            exact_count=exact_count,
            eps=self.args.noise_eps,
        )
        logits = model(
            input_ids=noisy.input_ids,
            attention_mask=inputs.get("attention_mask"),
            logits_positions=noisy.is_masked,
        ).logits
        return noisy, score_masked(logits, inputs["labels"], noisy.is_masked)

    # Evaluation: a function of the example alone

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Optional[list] = None
    ) -> tuple[None, Tensor, Tensor]:
        """Score one evaluation batch, with noise levels spread over the example ids and masks of exact count.

        Returns:
            None, the per-example sums that `_evaluation_metrics` averages; [batch, 6], and the example ids; [batch].
        """
        inputs = self._prepare_inputs(inputs)
        inputs["noise_levels"] = low_discrepancy_noise_levels(inputs["example_id"])
        with torch.no_grad(), self.compute_loss_context_manager():
            noisy, predictions = self._predict(model, inputs, EVALUATION_SEED, EVALUATION_STEP, exact_count=True)
        sums = row_sums(predictions, noisy)
        num_tokens = (inputs["labels"] != IGNORE_INDEX).sum(-1)
        losses = sums[:, 2] * noisy.weights
        return None, torch.cat([sums, losses[:, None], num_tokens[:, None]], dim=1), inputs["example_id"]

    def _evaluation_metrics(self, gathered: Any) -> dict[str, float]:
        rows = torch.from_numpy(np.asarray(gathered.predictions)).double()
        num_tokens = rows[:, 5].sum().item()
        return {"loss": rows[:, 4].sum().item() / num_tokens} | summarize(level_sums(rows[:, :4]), num_tokens)

    # 7 update

    def train(self, *args: Any, **options: Any) -> Any:
        """Train, as `Trainer.train`."""
        # An evaluation before training leaves the model prepared but unwrapped, and processes would drift apart.
        if self.args.world_size > 1:
            self.accelerator._models.clear()
            self.model.__dict__.pop("_is_accelerate_prepared", None)
            self.model_wrapped = self.model
        return super().train(*args, **options)

    def create_scheduler(self, num_training_steps: int, optimizer: Optional[torch.optim.Optimizer] = None) -> Any:
        """Create the schedule; fractions of the training become numbers of steps here."""
        self.args.lr_scheduler_kwargs, given = (
            self.args.get_scheduler_kwargs(num_training_steps),
            self.args.lr_scheduler_kwargs,
        )
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        finally:
            self.args.lr_scheduler_kwargs = given

    def _save(self, output_dir: Optional[str] = None, state_dict: Optional[dict] = None) -> None:
        super()._save(output_dir, state_dict)
        # Once more, so that transformers 4.57 can read the folder too.
        if self.args.should_save and self.processing_class is not None:
            save_tokenizer(self.processing_class, output_dir or self.args.output_dir)

    # 8 log

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log, with the diffusion metrics beside a training loss."""
        if "loss" in logs:
            logs.update(self._metrics.flush(lambda sums: self.accelerator.reduce(sums, reduction="sum")))
        super().log(logs, start_time)


def _check_model(model: Any) -> None:
    # A model loaded from the Hub is not an instance of the installed class.
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type != "llada":
        raise ValueError(
            f"`model` must be a LLaDA model (`model_type` llada), got {model_type!r}; "
            "a causal model cannot see the tokens after a mask."
        )
    if model.config.mask_token_id is None:
        raise ValueError("`model.config.mask_token_id` must be set, got None; give the tokenizer's mask id.")


def _check_dataset(name: str, dataset: Any) -> None:
    columns = getattr(dataset, "column_names", None)
    if columns is not None and not {"input_ids", "example_id"} <= set(columns):
        raise ValueError(
            f"`{name}` must have the columns `input_ids` and `example_id`, got {', '.join(columns)}; "
            "make it with `llada_training.pack_documents`."
        )


def _first(*ids: Any) -> int:
    """The first id given, of a list the first one; 0 if none (padding is never seen)."""
    for token_id in ids:
        if token_id is not None:
            return token_id[0] if isinstance(token_id, list) else token_id
    return 0
