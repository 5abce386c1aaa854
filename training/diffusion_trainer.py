"""What every trainer of LLaDA shares: noise, the diffusion loss, evaluation, metrics and the schedule."""

from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor

from llada_core.card import write_card
from llada_core.diffusion import NoisyBatch, low_discrepancy_noise_levels
from llada_core.tokenization import save_tokenizer

from .checkpoints import ResumableTrainer
from .collator import row_lengths
from .diffusion_config import DiffusionOptions
from .loss import MaskedPredictions, count_items, mean_loss, normalized_loss, score_masked
from .metrics import TrainingMetrics, level_sums, row_sums, summarize
from .noise import IGNORE_INDEX, draw_noise, training_noise_levels

# Evaluation draws the same masks at every step of every run.
EVALUATION_SEED, EVALUATION_STEP = 0, -1
# The diffusion loss brings its own; `Trainer` takes others as arguments.
REFUSED_ARGUMENTS = ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics")


class DiffusionTrainer(ResumableTrainer):
    """Base of the trainers; stands before `Trainer`, or a trainer of TRL, among the bases.

    A step: 1 collate · 2 draw noise by (seed, step, example id) · 3 mask · 4 forward, logits only where masked ·
    5 cross-entropy times weight · 6 divide by the items of the whole optimizer step · 7 update · 8 log.
    The loss is the same for any split of the step over accumulation and processes.
    """

    # The loss is divided by the items of the whole optimizer step here, so `Trainer` must not divide again.
    loss_is_scaled_for_ga = True
    # One of `LOSS_NORMALIZATIONS`.
    loss_normalization = "token"
    # Whether the model learns to answer, so that its card shows a conversation.
    learns_responses = False
    # Narrower than `Trainer` declares them.
    args: Any
    model: Any
    model_wrapped: Any
    processing_class: Any
    _signature_columns: Any

    def __init__(self, *positional: Any, args: DiffusionOptions, **options: Any):
        for name in REFUSED_ARGUMENTS:
            if options.get(name) is not None:
                raise ValueError(f"`{name}` must be unset, the diffusion loss brings its own, got one; leave it out.")
        super().__init__(*positional, args=args, compute_metrics=self._evaluation_metrics, **options)
        self.model_accepts_loss_kwargs = True
        self._step_metrics = TrainingMetrics()

    # 1 collate

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the batches of one optimizer step, settle their rows and give every row its noise levels."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        batches = self._settle_training_rows(batches)
        batches = self._with_noise_levels(batches)
        maskable = [(batch["labels"] != IGNORE_INDEX).sum() for batch in batches]
        counts = [sum(maskable), sum(row_lengths(batch).sum() for batch in batches)]
        num_maskable, num_seen = self._reduce_counts(counts, device).tolist()
        self._step_metrics.start_step(num_maskable * self.args.num_noise_samples, num_seen)
        return batches, self._get_num_items_in_batch(batches, device)

    def _settle_training_rows(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Change the rows of an optimizer step before they are masked."""
        return batches

    def _settle_evaluation_rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change the rows of an evaluation batch before they are masked; each by itself."""
        return batch

    def _with_noise_levels(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Step 2: noise levels are drawn for the whole optimizer step."""
        args, num_before, settled = self.args, 0, []
        num_levels = args.num_noise_samples // (2 if args.complementary_masks else 1)
        for index, batch in enumerate(batches):
            ids = batch["example_id"]
            levels = training_noise_levels(
                ids,
                self._slots(batch, index, num_before),
                args.seed,
                self.state.global_step,
                args.low_discrepancy,
                num_levels,
            )
            settled.append(batch | {"noise_levels": levels})
            num_before += len(ids)
        return settled

    def _slots(self, batch: dict[str, Tensor], index: int, num_before: int) -> Tensor:
        """Place of each row in the optimizer step: its place in the data, or distinct numbers if rows are packed."""
        args, rows = self.args, torch.arange(len(batch["example_id"]), device=batch["example_id"].device)
        if "packed_row" in batch:
            return (num_before + rows) * args.world_size + args.process_index
        return (index * args.world_size + args.process_index) * args.train_batch_size + rows

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """What the loss is divided by: items of the whole optimizer step, over accumulation and processes; scalar."""
        num_items = sum(count_items(batch["labels"], self.loss_normalization) for batch in batch_samples)
        return self._reduce_counts([num_items], device)[0].clamp(min=1)

    def _reduce_counts(self, counts: list, device: torch.device) -> Tensor:
        """Add up over processes; int64 [counts]."""
        return self.accelerator.reduce(torch.tensor([int(count) for count in counts], device=device), reduction="sum")

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
        args = self.args
        noisy, predictions = self._predict(
            model, inputs, args.seed, self.state.global_step, args.exact_count, args.complementary_masks
        )
        self._step_metrics.update(predictions, noisy)
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], inputs["input_ids"].device)
        labels = inputs["labels"].repeat(args.num_noise_samples, 1)
        num_items = num_items_in_batch * args.num_noise_samples
        loss = normalized_loss(predictions.token_losses, noisy, labels, num_items, self.loss_normalization)
        loss = loss * self.accelerator.num_processes
        return (loss, predictions) if return_outputs else loss

    def _predict(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        seed: int,
        step: int,
        exact_count: bool,
        complementary: bool = False,
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
            complementary=complementary,
        )
        num_draws = len(noisy.input_ids) // len(inputs["input_ids"])
        logits = model(**self._model_inputs(noisy, inputs, num_draws)).logits
        return noisy, score_masked(logits, inputs["labels"].repeat(num_draws, 1), noisy.is_masked)

    def _model_inputs(self, noisy: NoisyBatch, inputs: dict[str, Tensor], num_draws: int) -> dict[str, Any]:
        """Arguments of the model. Logits come in the order of `noisy.is_masked`."""
        mask = inputs.get("attention_mask")
        return {
            "input_ids": noisy.input_ids,
            "attention_mask": None if mask is None else mask.repeat(num_draws, 1),
            "logits_positions": noisy.is_masked,
        }

    # Evaluation: a function of the example alone

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Optional[list] = None
    ) -> tuple[None, Tensor, Tensor]:
        """Score one evaluation batch, with noise levels spread over the example ids and masks of exact count.

        Returns:
            None, the per-example sums that `_evaluation_metrics` averages; [batch, 6], and the example ids; [batch].
        """
        inputs = self._settle_evaluation_rows(self._prepare_inputs(inputs))
        inputs["noise_levels"] = low_discrepancy_noise_levels(inputs["example_id"])
        with torch.no_grad(), self.compute_loss_context_manager():
            noisy, predictions = self._predict(model, inputs, EVALUATION_SEED, EVALUATION_STEP, exact_count=True)
        sums = row_sums(predictions, noisy)
        num_tokens = (inputs["labels"] != IGNORE_INDEX).sum(-1)
        losses = sums[:, 2] * noisy.weights
        return None, torch.cat([sums, losses[:, None], num_tokens[:, None]], dim=1), inputs["example_id"]

    def _evaluation_metrics(self, gathered: Any) -> dict[str, float]:
        rows = torch.from_numpy(np.asarray(gathered.predictions)).double()
        loss = mean_loss(rows[:, 4], rows[:, 5], self.loss_normalization)
        return {"loss": loss} | summarize(level_sums(rows[:, :4]), rows[:, 5].sum().item())

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
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        if self.processing_class is not None:
            # Once more, so that transformers 4.57 can read the folder too.
            save_tokenizer(self.processing_class, folder)
        write_card(self, folder)

    def create_model_card(self, model_name: Optional[str] = None, **facts: Any) -> None:
        """Write the model card into `output_dir`, if a model lies there; `facts` are those of `write_card`."""
        if self.is_world_process_zero():
            write_card(self, self.args.output_dir, model_name, **facts)

    # 8 log

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log, with the diffusion metrics beside a training loss."""
        if "loss" in logs:
            logs.update(self._step_metrics.flush(lambda sums: self.accelerator.reduce(sums, reduction="sum")))
        super().log(logs, start_time)


def check_model(config: Any) -> None:
    """Refuse the config of a model that is no LLaDA, or has no mask token.

    Raises:
        ValueError: in these cases.
    """
    # A model loaded from the Hub is not an instance of the installed class.
    model_type = getattr(config, "model_type", None)
    if model_type != "llada":
        raise ValueError(
            f"`model` must be a LLaDA model (`model_type` llada), got {model_type!r}; "
            "a causal model cannot see the tokens after a mask."
        )
    if config.mask_token_id is None:
        raise ValueError("`model.config.mask_token_id` must be set, got None; give the tokenizer's mask id.")


def pad_id_of(config: Any) -> int:
    """Id that fills up rows: the pad token, else EOS (of a list the first), else 0. Padding is never seen."""
    for token_id in (config.pad_token_id, config.eos_token_id):
        if token_id is not None:
            return token_id[0] if isinstance(token_id, list) else token_id
    return 0
