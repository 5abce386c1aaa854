"""What the trainers of LLaDA share: options, schedule, logs and saving; below, noise, diffusion loss and evaluation."""

import itertools
import math
import numbers
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, Union

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from llada_core.card import write_card
from llada_core.diffusion import NOISE_EPS, NoisyBatch, low_discrepancy_noise_levels
from llada_core.loading import DTYPES, load_model
from llada_core.tokenization import save_tokenizer
from modeling_llada.configuration_llada import MODEL_TYPES

from .batch import COLUMNS, pack_rows, padding_mask
from .checkpoints import ResumableTrainer
from .loss import (
    MaskedPredictions,
    TrainingMetrics,
    level_sums,
    mean_loss,
    pretraining_loss,
    row_sums,
    score_masked,
    sft_loss,
    summarize,
)
from .noise import IGNORE_INDEX, draw_noise, training_noise_levels
from .stream import settle_streaming

# Evaluation draws the same masks at every step of every run.
EVALUATION_SEED, EVALUATION_STEP = 0, -1
# The diffusion loss brings its own; `Trainer` takes others as arguments.
REFUSED_ARGUMENTS = ("compute_metrics", "compute_loss_func", "preprocess_logits_for_metrics")
DECAY_TYPES = ("linear", "cosine", "1-sqrt")
SAVE_DTYPES = tuple(name for name in DTYPES if name != "auto")
WARMUP_STABLE_DECAY = SchedulerType.WARMUP_STABLE_DECAY.value
# Options of TrainingArguments that would change or bypass the objective, with the only value that fits.
SHARED_FIXED_OPTIONS = {
    "label_smoothing_factor": (0.0, "the bound is a plain cross-entropy of the clean tokens"),
    "use_liger_kernel": (False, "its fused loss shifts the labels"),
    "use_cache": (False, "training sees whole sequences"),
    "logging_nan_inf_filter": (False, "a loss that is not a number must show"),
}
FIXED_OPTIONS = SHARED_FIXED_OPTIONS | {
    "prediction_loss_only": (False, "evaluation returns per-example sums"),
    "batch_eval_metrics": (False, "evaluation is averaged over all examples at once"),
    "remove_unused_columns": (True, "the collator knows only `input_ids`, `labels` and `example_id`"),
    "average_tokens_across_devices": (True, "the loss is divided by the tokens of the whole optimizer step"),
}

# Numbers that `TrainingArguments` takes unchecked: the lowest and the highest; None is any finite number.
NUMBER_RANGES: dict[str, tuple[int, Optional[float]]] = {
    "learning_rate": (0, None),
    "weight_decay": (0, None),
    "adam_epsilon": (0, None),
    "max_grad_norm": (0, math.inf),
    "warmup_steps": (0, None),
    "decay_steps": (0, None),
    "num_train_epochs": (0, None),
    "logging_steps": (0, None),
    "save_steps": (0, None),
    "eval_steps": (0, None),
    "gradient_accumulation_steps": (1, None),
    "per_device_train_batch_size": (1, None),
    "per_device_eval_batch_size": (1, None),
    # What numpy takes as a seed.
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
}


def option(default: Any, help: str, also: tuple[str, ...] = ()) -> Any:
    """A field of a class of options, with what `--help` says of it, and other names of it on the command line."""
    flags = [f"--{name.replace('_', separator)}" for name in also for separator in "_-"]
    return field(default=default, metadata={"help": help, "aliases": flags})


@dataclass
class TrainingOptions:
    """Options that every training shares. A mix-in; list it before the class of training arguments in the bases.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to this objective.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = SHARED_FIXED_OPTIONS

    model: Optional[str] = option(
        None,
        "LLaDA checkpoint (folder or Hub id) to start from. Unset: pre-training begins anew.",
        also=("model_name_or_path",),
    )
    attn_implementation: Optional[str] = option(
        None,
        "Attention while training: sdpa, eager, or on a GPU flash_attention_2, flex_attention and others that "
        "transformers knows. Short sequences train faster on a CPU with eager.",
    )
    tokenizer: Optional[str] = option(None, "Folder or Hub id of the tokenizer. Unset: the one beside `model`.")
    train_data: Optional[list[str]] = option(
        None,
        "Files (.jsonl, .json, .parquet, .txt), and folders or names of data sets. Each may have a slice and a weight: "
        "a.jsonl*2 b.parquet[:1000].",
        also=("dataset_name",),
    )
    validation_data: Optional[list[str]] = option(
        None, "As `train_data`, for evaluation. Needed when `eval_strategy` is not no."
    )
    dataset_config_name: Optional[str] = option(None, "Configuration of named data sets.", also=("dataset_config",))
    train_split: str = option("train", "Split of named data sets to train on.", also=("dataset_train_split",))
    validation_split: str = option(
        "validation", "Split of named data sets to evaluate on.", also=("dataset_test_split",)
    )

    save_dtype: Optional[str] = option(
        None, "Data type of the final weights: float32, bfloat16 or float16. Unset: as trained."
    )

    decay_steps: float = option(0.1, "Steps of the falling phase: a number, or a fraction of all steps if below 1.")
    decay_type: str = option("linear", "Shape of the falling phase: linear, cosine, 1-sqrt.")
    min_lr_ratio: float = option(0.0, "Learning rate before warm-up and at the end, as a share of the highest.")
    # Fields of TrainingArguments with another default here.
    lr_scheduler_type: Union[SchedulerType, str] = option(WARMUP_STABLE_DECAY, "Schedule of the learning rate.")
    warmup_steps: float = option(0.01, "Steps of the rising phase: a number, or a fraction of all steps if below 1.")
    weight_decay: float = option(0.1, "Weight decay of AdamW.")
    logging_nan_inf_filter: bool = option(False, "Not supported: a loss that is not a number must show.")

    def __post_init__(self) -> None:
        self._check_numbers()
        # transformers 4 knows only whole warm-up steps; `get_warmup_steps` below reads both.
        warmup_steps, self.warmup_steps = self.warmup_steps, 0
        # Without this, `bf16` raises on a machine that has only its CPU.
        if not torch.accelerator.is_available():
            self.use_cpu = True
            # Where it is unset, TRL turns it on; most CPUs emulate it.
            vars(self)["bf16"] = bool(vars(self)["bf16"])
        self._name_checkpointing()
        super().__post_init__()  # type: ignore[misc]
        self.warmup_steps = warmup_steps
        for name in ("train_data", "validation_data"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        self._check_fixed_options()
        self._check_noise()
        self._check_schedule()
        self._check_sources()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of warm-up steps; a value below 1 is a fraction of `num_training_steps`."""
        return steps_or_fraction(self.warmup_steps, num_training_steps)

    def get_scheduler_kwargs(self, num_training_steps: int) -> Any:
        """Arguments for transformers' scheduler: those of warmup-stable-decay, else `lr_scheduler_kwargs` as given.

        Raises:
            ValueError: if warm-up and decay together are longer than the training.
        """
        if self.lr_scheduler_type != WARMUP_STABLE_DECAY:
            return self.lr_scheduler_kwargs  # type: ignore[attr-defined]
        num_warmup = self.get_warmup_steps(num_training_steps)
        num_decay = steps_or_fraction(self.decay_steps, num_training_steps)
        if num_warmup + num_decay > num_training_steps:
            raise ValueError(
                f"`warmup_steps` and `decay_steps` together must be at most the number of training steps "
                f"({num_training_steps}), got {num_warmup} + {num_decay}; lower them or train longer."
            )
        return {"num_decay_steps": num_decay, "decay_type": self.decay_type, "min_lr_ratio": self.min_lr_ratio}

    def _name_checkpointing(self) -> None:
        """Give gradient checkpointing its new name where transformers has one and warns of the old."""
        for suffix in ("", "_kwargs"):
            old, new = f"gradient_checkpointing{suffix}", f"activation_checkpointing{suffix}"
            if new in vars(self) and getattr(self, new) is None:
                setattr(self, new, getattr(self, old))

    def _check_numbers(self) -> None:
        for name, (lowest, highest) in NUMBER_RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            is_number = isinstance(value, numbers.Real)
            if not is_number or not lowest <= value <= (sys.float_info.max if highest is None else highest):
                wanted = f"from {lowest} to {highest}" if highest else f"a finite number of at least {lowest}"
                raise ValueError(f"`{name}` must be {wanted}, got {value!r}; leave it out for the default.")

    def _check_fixed_options(self) -> None:
        for name, (value, reason) in self.fixed_options.items():
            if getattr(self, name, value) != value:
                raise ValueError(f"`{name}` must be {value} ({reason}), got {getattr(self, name)}; leave it out.")

    def _check_noise(self) -> None:
        """Check the options of the noise, which differ between objectives."""

    def _check_schedule(self) -> None:
        if self.save_dtype not in (None, *SAVE_DTYPES):
            raise ValueError(f"`save_dtype` must be one of {', '.join(SAVE_DTYPES)}, got {self.save_dtype!r}.")
        if self.decay_type not in DECAY_TYPES:
            raise ValueError(f"`decay_type` must be one of {', '.join(DECAY_TYPES)}, got {self.decay_type!r}.")
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            raise ValueError(f"`min_lr_ratio` must be from 0 to 1, got {self.min_lr_ratio}; LLaDA ends at 0.025.")
        given = self.lr_scheduler_kwargs  # type: ignore[attr-defined]
        if self.lr_scheduler_type == WARMUP_STABLE_DECAY and given:
            raise ValueError(
                f"`lr_scheduler_kwargs` must be unset with {WARMUP_STABLE_DECAY}, got {given}; "
                "use `warmup_steps`, `decay_steps`, `decay_type` and `min_lr_ratio`."
            )

    def _check_sources(self) -> None:
        if self.do_eval and self.train_data and not self.validation_data:  # type: ignore[attr-defined]
            raise ValueError(
                "`validation_data` must be given when `eval_strategy` is not no, got None; name a file, or pass "
                "eval_strategy=no."
            )


@dataclass
class DiffusionOptions(TrainingOptions):
    """Options of the trainings with the diffusion loss. A mix-in, as `TrainingOptions`.

    Raises:
        ValueError: as `TrainingOptions`.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = FIXED_OPTIONS

    streaming: bool = option(
        False,
        "Read the training data while they are used, for data that do not fit on the disk. Needs `max_steps`; rows are "
        "shuffled in chunks only.",
        also=("dataset_streaming",),
    )
    noise_eps: float = option(NOISE_EPS, "Smallest masking probability; not used with `exact_count`.")
    exact_count: bool = option(
        False, "Mask exactly ceil(t L) tokens of a sequence: unbiased like independent masks, less noisy."
    )
    low_discrepancy: bool = option(
        False, "Spread the noise levels of an optimizer step evenly over (0, 1]; each alone stays uniform."
    )
    num_noise_samples: int = option(
        1, "Noise draws per example and step, averaged; each costs a pass over the example."
    )
    complementary_masks: bool = option(
        False, "Half of the draws mask just what the other half left, so that every token is learnt from."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming:
            settle_streaming(self)

    def _check_noise(self) -> None:
        if not 0.0 <= self.noise_eps <= 1.0:
            raise ValueError(f"`noise_eps` must be from 0.0 to 1.0, got {self.noise_eps}; leave it out.")
        check_num_noise_samples(self)
        if self.complementary_masks and self.noise_eps > 0.5 and not self.exact_count:
            raise ValueError(
                "`noise_eps` must be at most 0.5 with `complementary_masks`, or no complement is ever in range, got "
                f"{self.noise_eps}; leave it out."
            )


def steps_or_fraction(value: float, num_training_steps: int) -> int:
    """A number of steps as it is; a value below 1 as a fraction of `num_training_steps`, rounded."""
    return int(value) if value >= 1 else round(value * num_training_steps)


class LLaDATrainer(ResumableTrainer):
    """What is the same for every objective: schedule, logs, saved models and cards.

    The loss of a batch is its share of the mean over the whole optimizer step, times the number of processes, whose
    gradients are averaged. So it is the same for any split of the step over accumulation and processes.
    List a class derived from this one before `Trainer`, or a trainer of TRL, in the bases.
    """

    # The loss is divided by the items of the whole optimizer step here, so `Trainer` must not divide again.
    loss_is_scaled_for_ga = True
    # Whether the model learns to answer, so that its card shows a conversation.
    learns_responses = False
    # What the card says of the logged losses.
    loss_description = "those of the diffusion objective, in nats per token"
    # Narrower than `Trainer` declares them.
    processing_class: Any
    lr_scheduler: Any

    def __init__(self, *positional: Any, args: TrainingOptions, **options: Any):
        super().__init__(*positional, args=args, **options)
        # What `loss_is_scaled_for_ga` says, in the words of transformers 4.
        self.model_accepts_loss_kwargs = True
        self._step_metrics = TrainingMetrics()

    def create_scheduler(self, num_training_steps: int, optimizer: Optional[torch.optim.Optimizer] = None) -> Any:
        """Create the schedule of the options, whose fractions of the training become numbers of steps here."""
        if self.lr_scheduler is None:
            args = self.args
            self.lr_scheduler = get_scheduler(
                args.lr_scheduler_type,
                self.optimizer if optimizer is None else optimizer,
                args.get_warmup_steps(num_training_steps),
                num_training_steps,
                args.get_scheduler_kwargs(num_training_steps),
            )
            # `Trainer` makes a new one for the next training.
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log, with the diffusion metrics beside a training loss.

        Raises:
            ValueError: after logging, if a loss is infinite or not a number, as the training has diverged.
        """
        if "loss" in logs:
            metrics, self._step_metrics = self._step_metrics, TrainingMetrics()
            logs.update(metrics.summarize(lambda sums: self.accelerator.reduce(sums, reduction="sum")))
        super().log(logs, start_time)
        for name, value in logs.items():
            if (name == "loss" or name.endswith("_loss")) and not math.isfinite(value):
                raise ValueError(f"`{name}` must be finite, got {value} at {self.way_back()}")

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False) -> None:
        """Save the whole model for `from_pretrained` with its tokenizer and card; all processes must call it."""
        super().save_model(output_dir, _internal_call)
        folder = output_dir or self.args.output_dir
        if self.args.should_save and write_card(self, folder) and self.processing_class is not None:
            # Once more, so that transformers 4.57 can read the folder too.
            save_tokenizer(self.processing_class, folder)

    def create_model_card(self, model_name: Optional[str] = None, **facts: Any) -> None:
        """Write the model card into `output_dir`, if a model lies there; `facts` are those of `write_card`."""
        if self.is_world_process_zero():
            write_card(self, self.args.output_dir, model_name, **facts)


class DiffusionTrainer(LLaDATrainer):
    """Base of the trainers with the diffusion loss; list it before `Trainer`, or a trainer of TRL, in the bases.

    A step: 1 collate · 2 draw noise by (seed, step, example id) · 3 mask · 4 forward, logits only where masked ·
    5 cross-entropy times weight · 6 divide by the items of the whole optimizer step · 7 update · 8 log.
    Noise levels (2) are drawn with the batches, because they may be spread over the whole step; masks (3) are drawn
    batch by batch in `compute_loss`.
    """

    # One of `LOSS_NORMALIZATIONS`.
    loss_normalization = "token"

    def __init__(self, *positional: Any, args: DiffusionOptions, **options: Any):
        refuse_arguments(options, "the diffusion loss")
        super().__init__(*positional, args=args, compute_metrics=self._evaluation_metrics, **options)
        self._signature_columns: Any = COLUMNS

    # 1 and 2: the batches of a step and their noise levels

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the batches of one optimizer step, settle their rows and give every row its noise levels.

        Returns:
            The batches, and what their loss is divided by: items of the whole step, over accumulation and processes.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        batches = self._prepare_rows(batches, self.args.seed, self.state.global_step)
        self._draw_noise_levels(batches)
        counts = torch.zeros(3, dtype=torch.long, device=device)  # maskable tokens, tokens, items of the loss
        for batch in batches:
            is_maskable = batch["labels"] != IGNORE_INDEX
            items = is_maskable.any(-1) if self.loss_normalization == "answer" else is_maskable
            counts += torch.stack([is_maskable.sum(), batch["lengths"].sum(), items.sum()]).to(device)
        counts = self.accelerator.reduce(counts, reduction="sum")
        num_maskable, num_seen, _ = counts.tolist()
        self._step_metrics.start_step(num_maskable * self.args.num_noise_samples, num_seen)
        return batches, counts[2].clamp(min=1)

    def _prepare_rows(self, batches: list[dict[str, Tensor]], seed: int, step: int) -> list[dict[str, Tensor]]:
        """Change the rows of an optimizer step, or of an evaluation batch (`EVALUATION_STEP`), before the masking."""
        return batches

    def _draw_noise_levels(self, batches: list[dict[str, Tensor]]) -> None:
        args, num_before = self.args, 0
        num_levels = args.num_noise_samples // (2 if args.complementary_masks else 1)
        for index, batch in enumerate(batches):
            ids = batch["example_id"]
            rows = torch.arange(len(ids), device=ids.device)
            # Place of each row in the optimizer step: its place in the data, or distinct numbers if rows are packed.
            if "packed_row" in batch:
                slots = (num_before + rows) * args.world_size + args.process_index
            else:
                slots = (index * args.world_size + args.process_index) * args.train_batch_size + rows
            batch["noise_levels"] = training_noise_levels(
                ids, slots, args.seed, self.state.global_step, args.low_discrepancy, num_levels
            )
            num_before += len(ids)

    # 3 to 6: masks, forward, loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one batch: its share of the mean over the optimizer step, times the number of processes.

        Processes average their gradients, so the factor makes the average a sum. Batch and number of items are those
        of `get_batch_samples`.
        """
        args = self.args
        noisy, predictions, aux_loss = self._predict(
            model, inputs, args.seed, self.state.global_step, args.exact_count, args.complementary_masks
        )
        self._step_metrics.update(predictions, noisy)
        num_draws = args.num_noise_samples
        num_items = num_items_in_batch * num_draws
        if self.loss_normalization == "answer":
            loss = sft_loss(predictions.token_losses, noisy, inputs["labels"].repeat(num_draws, 1), num_items)
        else:
            loss = pretraining_loss(predictions.token_losses, noisy, num_items)
        loss = loss * self.accelerator.num_processes
        if aux_loss is not None:  # a mean over the batches of the step, and over the processes
            share = self.model.config.router_aux_loss_coef / self.current_gradient_accumulation_steps
            loss = loss + share * aux_loss
        return (loss, predictions) if return_outputs else loss

    def _predict(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        seed: int,
        step: int,
        exact_count: bool,
        complementary: bool = False,
    ) -> tuple[NoisyBatch, MaskedPredictions, Optional[Tensor]]:
        """Mask the batch, and score the masked positions; with them the load-balancing loss of a mixture of experts."""
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
        output = model(**self._model_inputs(noisy, inputs, num_draws))
        predictions = score_masked(output.logits, inputs["labels"].repeat(num_draws, 1), noisy.is_masked)
        return noisy, predictions, getattr(output, "aux_loss", None)

    def _model_inputs(self, noisy: NoisyBatch, inputs: dict[str, Tensor], num_draws: int) -> dict[str, Any]:
        """Arguments of the model: packed documents move into their rows. Logits keep the order of `noisy.is_masked`."""
        lengths = inputs["lengths"].repeat(num_draws)
        if "packed_row" in inputs:
            row = inputs["packed_row"]
            rows = torch.cat([row + draw * (row[-1] + 1) for draw in range(num_draws)])
            return pack_rows(noisy.input_ids, noisy.is_masked, lengths, rows, self.model.config._attn_implementation)
        mask = padding_mask(lengths, noisy.input_ids.shape[1])
        return {"input_ids": noisy.input_ids, "attention_mask": mask, "logits_positions": noisy.is_masked}

    # Evaluation: a function of the example alone

    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Optional[list] = None
    ) -> tuple[None, Tensor, Tensor]:
        """Score one evaluation batch, with noise levels spread over the example ids and masks of exact count.

        Returns:
            None, the per-example sums that `_evaluation_metrics` averages; [batch, 6], and the example ids; [batch].
        """
        (inputs,) = self._prepare_rows([self._prepare_inputs(inputs)], EVALUATION_SEED, EVALUATION_STEP)
        inputs["noise_levels"] = low_discrepancy_noise_levels(inputs["example_id"])
        with torch.no_grad(), self.compute_loss_context_manager():
            noisy, predictions, _ = self._predict(model, inputs, EVALUATION_SEED, EVALUATION_STEP, exact_count=True)
        sums = row_sums(predictions, noisy)
        num_tokens = (inputs["labels"] != IGNORE_INDEX).sum(-1)
        losses = sums[:, 2] * noisy.weights
        return None, torch.cat([sums, losses[:, None], num_tokens[:, None]], dim=1), inputs["example_id"]

    def _evaluation_metrics(self, gathered: Any) -> dict[str, float]:
        rows = torch.from_numpy(np.asarray(gathered.predictions)).double()
        loss = mean_loss(rows[:, 4], rows[:, 5], self.loss_normalization)
        return {"loss": loss} | summarize(level_sums(rows[:, :4]), rows[:, 5].sum().item())


def complete_args(model: Any, args: Any, config_class: type, fields: str) -> Any:
    """Return a trainer's `args`; if they are None, those with a folder named after the model and the training.

    Args:
        model: of the trainer, or its name.
        args: of the trainer.
        config_class: what they must be.
        fields: whose fields it has, for the message.

    Raises:
        ValueError: for arguments of another class.
    """
    if args is None:
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "llada"
        training = config_class.__name__.removeprefix("LLaDA").removesuffix("Config")
        args = config_class(f"{name.rstrip('/').split('/')[-1]}-{training}")
    if not isinstance(args, config_class):
        raise ValueError(
            f"`args` must be a `{config_class.__name__}`, got {type(args).__name__}; its fields are {fields}."
        )
    return args


def check_num_noise_samples(options: Any, way_out: str = "leave it out.") -> None:
    """Refuse a number of noise samples that cannot be drawn.

    Raises:
        ValueError: below 1, or odd with `complementary_masks`.
    """
    count = options.num_noise_samples
    if count < 1:
        raise ValueError(f"`num_noise_samples` must be at least 1, got {count}; {way_out}")
    if options.complementary_masks and count % 2:
        raise ValueError(
            "`num_noise_samples` must be even with `complementary_masks`, which go in pairs, got "
            f"{count}; pass num_noise_samples={count + 1}."
        )


def refuse_arguments(options: dict[str, Any], objective: str, names: tuple[str, ...] = REFUSED_ARGUMENTS) -> None:
    """Refuse arguments of `Trainer` that would replace the objective.

    Raises:
        ValueError: if one of `names` is given.
    """
    for name in names:
        if options.get(name) is not None:
            raise ValueError(f"`{name}` must be unset, {objective} brings its own, got one; leave it out.")


def load_for_training(model: Any, args: Any, options: dict[str, Any]) -> Any:
    """Load a model that is named by its folder or Hub id, in float32; a model that is loaded already stays as it is.

    TRL would initialise missing weights randomly.

    Args:
        model: the model, or its folder or Hub id.
        args: options of the training, with TRL's `model_init_kwargs` and `trust_remote_code`. The former are used up.
        options: arguments of the trainer; `quantization_config` is taken out if the model is loaded here.
    """
    if not isinstance(model, str):
        return model
    settings = {"dtype": "float32", "trust_remote_code": args.trust_remote_code}
    if args.attn_implementation is not None:
        settings["attn_implementation"] = args.attn_implementation
    settings |= args.model_init_kwargs or {}
    args.model_init_kwargs = None
    if options.get("quantization_config") is not None:
        settings["quantization_config"] = options.pop("quantization_config")
    return load_model(model, **settings)


def without_adapter(model: Any) -> Any:
    """The model of transformers under an adapter of PEFT, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_model(config: Any) -> None:
    """Refuse the config of a model that is not a LLaDA model, or has no mask token.

    Raises:
        ValueError: in these cases.
    """
    # A model loaded from the Hub is not an instance of the installed class.
    model_type = getattr(config, "model_type", None)
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"`model` must be a LLaDA model (`model_type` {' or '.join(MODEL_TYPES)}), got {model_type!r}; "
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
