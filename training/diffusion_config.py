"""Options that pre-training and fine-tuning share: sources, noise, the learning rate's schedule, and their checks."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, Union

import torch
from transformers.trainer_utils import SchedulerType

from llada_core.diffusion import NOISE_EPS

DECAY_TYPES = ("linear", "cosine", "1-sqrt")
SAVE_DTYPES = ("float32", "bfloat16", "float16")
WARMUP_STABLE_DECAY = SchedulerType.WARMUP_STABLE_DECAY.value
# Options of TrainingArguments that would change or bypass the diffusion loss, with the only value that fits.
FIXED_OPTIONS = {
    "label_smoothing_factor": (0.0, "the bound is a plain cross-entropy of the clean tokens"),
    "use_liger_kernel": (False, "its fused loss shifts the labels"),
    "use_cache": (False, "training sees whole sequences"),
    "prediction_loss_only": (False, "evaluation returns per-example sums"),
    "batch_eval_metrics": (False, "evaluation is averaged over all examples at once"),
    "remove_unused_columns": (True, "the collator knows only `input_ids`, `labels` and `example_id`"),
    "average_tokens_across_devices": (True, "the loss is divided by the tokens of the whole optimizer step"),
}


@dataclass
class DiffusionOptions:
    """Mix-in for a class of training arguments: stands before it among the bases.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to this objective.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = FIXED_OPTIONS

    model: Optional[str] = field(
        default=None,
        metadata={"help": "LLaDA checkpoint (folder or Hub id) to start from. Unset: pre-training begins anew."},
    )
    attn_implementation: Optional[str] = field(
        default=None,
        metadata={"help": "Attention while training: sdpa or eager. Short sequences train faster on a CPU with eager."},
    )
    tokenizer: Optional[str] = field(
        default=None, metadata={"help": "Folder or Hub id of the tokenizer. Unset: the one beside `model`."}
    )
    train_data: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Text files (.txt), JSON-lines files (.jsonl), or one data set's name or folder."},
    )
    validation_data: Optional[list[str]] = field(
        default=None, metadata={"help": "As `train_data`, for evaluation. Needed when `eval_strategy` is not no."}
    )
    dataset_config_name: Optional[str] = field(default=None, metadata={"help": "Configuration of the named data set."})
    train_split: str = field(default="train", metadata={"help": "Split of a named data set to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split of a named data set to evaluate on."})

    noise_eps: float = field(
        default=NOISE_EPS, metadata={"help": "Smallest masking probability; not used with `exact_count`."}
    )
    exact_count: bool = field(
        default=False,
        metadata={"help": "Mask exactly ceil(t L) tokens of a sequence: unbiased like independent masks, less noisy."},
    )
    low_discrepancy: bool = field(
        default=False,
        metadata={"help": "Spread the noise levels of an optimizer step evenly over (0, 1]; each alone stays uniform."},
    )
    num_noise_samples: int = field(
        default=1, metadata={"help": "Noise draws per example and step, averaged; each costs a pass over the example."}
    )
    complementary_masks: bool = field(
        default=False,
        metadata={"help": "Half of the draws mask just what the other half left, so that every token is learnt from."},
    )
    save_dtype: Optional[str] = field(
        default=None,
        metadata={"help": "Data type of the final weights: float32, bfloat16 or float16. Unset: as trained."},
    )

    decay_steps: float = field(
        default=0.1, metadata={"help": "Steps of the falling phase: a number, or a fraction of all steps if below 1."}
    )
    decay_type: str = field(default="linear", metadata={"help": "Shape of the falling phase: linear, cosine, 1-sqrt."})
    min_lr_ratio: float = field(
        default=0.0, metadata={"help": "Learning rate before warm-up and at the end, as a share of the highest."}
    )
    # Fields of TrainingArguments with another default here.
    lr_scheduler_type: Union[SchedulerType, str] = field(
        default=WARMUP_STABLE_DECAY, metadata={"help": "Schedule of the learning rate."}
    )
    warmup_steps: float = field(
        default=0.01, metadata={"help": "Steps of the rising phase: a number, or a fraction of all steps if below 1."}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})

    def __post_init__(self) -> None:
        # transformers 4 knows only whole warm-up steps; `get_warmup_steps` below reads both.
        warmup_steps, self.warmup_steps = self.warmup_steps, 0
        # Without this, `bf16` raises on a machine that has only its CPU.
        if not torch.accelerator.is_available():
            self.use_cpu = True
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

    def _check_fixed_options(self) -> None:
        for name, (value, reason) in self.fixed_options.items():
            if getattr(self, name, value) != value:
                raise ValueError(f"`{name}` must be {value} ({reason}), got {getattr(self, name)}; leave it out.")

    def _check_noise(self) -> None:
        if not 0.0 <= self.noise_eps <= 1.0:
            raise ValueError(f"`noise_eps` must be from 0.0 to 1.0, got {self.noise_eps}; leave it out.")
        if self.num_noise_samples < 1:
            raise ValueError(f"`num_noise_samples` must be at least 1, got {self.num_noise_samples}; leave it out.")
        if self.complementary_masks and self.num_noise_samples % 2:
            raise ValueError(
                "`num_noise_samples` must be even with `complementary_masks`, which go in pairs, got "
                f"{self.num_noise_samples}; pass num_noise_samples={self.num_noise_samples + 1}."
            )
        if self.complementary_masks and self.noise_eps > 0.5 and not self.exact_count:
            raise ValueError(
                "`noise_eps` must be at most 0.5 with `complementary_masks`, or no complement is ever in range, got "
                f"{self.noise_eps}; leave it out."
            )
        if self.save_dtype not in (None, *SAVE_DTYPES):
            raise ValueError(f"`save_dtype` must be one of {', '.join(SAVE_DTYPES)}, got {self.save_dtype!r}.")

    def _check_schedule(self) -> None:
        if self.decay_type not in DECAY_TYPES:
            raise ValueError(f"`decay_type` must be one of {', '.join(DECAY_TYPES)}, got {self.decay_type!r}.")
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            raise ValueError(f"`min_lr_ratio` must be from 0 to 1, got {self.min_lr_ratio}; LLaDA ends at 0.025.")
        for name in ("warmup_steps", "decay_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}; 0 leaves the phase out.")
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


def steps_or_fraction(value: float, num_training_steps: int) -> int:
    """A number of steps as it is; a value below 1 as a fraction of `num_training_steps`, rounded."""
    return int(value) if value >= 1 else round(value * num_training_steps)
