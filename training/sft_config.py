"""Options of supervised fine-tuning: every field of TRL's `SFTConfig`, and what LLaDA adds, checked in one place."""

from dataclasses import dataclass, field
from typing import ClassVar, Optional

import torch
from trl import SFTConfig

from .diffusion_config import FIXED_OPTIONS, DiffusionOptions
from .loss import LOSS_NORMALIZATIONS

TURN_CHOICES = ("random", "all")
# Fill up answers to the longest row of the optimizer step.
FILL_BATCH = "batch"
# Options of SFTConfig that cannot apply, with the only value that fits.
SFT_FIXED_OPTIONS = {
    "loss_type": ("nll", "other losses shift the labels; `loss_normalization` chooses what is averaged"),
    "padding_free": (False, "rows are padded; `packing` avoids it"),
    "packing_strategy": ("bfd", "other strategies cut documents apart"),
    "eval_packing": (False, "evaluation scores each example by itself"),
    "pad_to_multiple_of": (None, "rows are padded to the longest one"),
    "truncation_mode": ("keep_start", "a prompt without its beginning is another prompt"),
    "dataset_kwargs": (None, "examples must be numbered, checked and cut"),
    "pad_token": (None, "padding is neither seen nor scored"),
    "router_aux_loss_coef": (None, "there are no experts"),
}


@dataclass
class LLaDASFTConfig(DiffusionOptions, SFTConfig):
    """Options of `LLaDASFTTrainer` and of `llada train sft`.

    A batch is counted as in `TrainingArguments`: one optimizer step sees `per_device_train_batch_size` times
    `gradient_accumulation_steps` times the number of processes rows; with `packing` a row holds several documents.

    Only responses are learnt from: completions, and what an assistant says. `assistant_only_loss` and
    `completion_only_loss` are therefore unset; True is accepted, and TRL then insists on such data.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to this objective.

    Source: the defaults are the recipe of LLaDA (arXiv:2502.09992), section 2.3 and appendix B.1. `min_lr_ratio` also
    holds before warm-up, where the paper begins at 0.
    Not handled: streaming data sets, images.
    """

    fixed_options: ClassVar[dict] = FIXED_OPTIONS | SFT_FIXED_OPTIONS

    loss_normalization: str = field(
        default="answer",
        metadata={
            "help": "What the loss is divided by. answer: each answer's length, then the number of rows, as in the "
            "paper. token: the answer tokens of the whole optimizer step."
        },
    )
    # A number may also be an int; parsers of dataclasses would take nothing else if the type said so.
    eos_fill: str = field(
        default=FILL_BATCH,
        metadata={
            "help": "End-of-text tokens after an answer, which are learnt. batch: up to the longest row of the "
            "optimizer step, as in the paper. A number: so many beyond the first. Evaluation with batch has one."
        },
    )
    turns: str = field(
        default="random",
        metadata={
            "help": "Turns of a conversation that are learnt. random: one, drawn anew each time, with the history as "
            "its prompt, as in the paper. all: every assistant turn at once."
        },
    )

    # Fields of SFTConfig with another default here.
    max_length: Optional[int] = field(
        default=None,
        metadata={"help": "Longest row in tokens; answers are cut there. Unset: the model's max_sequence_length."},
    )
    eval_packing: Optional[bool] = field(default=False, metadata={"help": "Not supported: evaluation is never packed."})
    assistant_only_loss: Optional[bool] = field(
        default=None, metadata={"help": "Conversations are always learnt on the assistant's turns alone."}
    )
    bf16: Optional[bool] = field(
        default=None,
        metadata={"help": "Compute in bfloat16. Unset: where there is an accelerator, unless fp16 is set."},
    )
    learning_rate: float = field(default=2.5e-5, metadata={"help": "Highest learning rate."})
    warmup_steps: float = field(
        default=50,
        metadata={
            "help": "Steps of the rising phase: a number, or a fraction of all steps if below 1; at most half of the "
            "training."
        },
    )
    min_lr_ratio: float = field(
        default=0.1, metadata={"help": "Learning rate before warm-up and at the end, as a share of the highest."}
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data, unless `max_steps` is set."})

    def __post_init__(self) -> None:
        # Elsewhere TRL turns it on; most CPUs emulate it.
        if self.bf16 is None and not torch.accelerator.is_available():
            self.bf16 = False
        super().__post_init__()
        self._check_responses()

    @property
    def num_extra_eos(self) -> Optional[int]:
        """End-of-text tokens beyond the first; None fills up to the longest row of the optimizer step."""
        return None if self.eos_fill == FILL_BATCH else int(self.eos_fill)

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of warm-up steps, at most half of the training; a value below 1 is a fraction of it."""
        return min(super().get_warmup_steps(num_training_steps), num_training_steps // 2)

    def _check_responses(self) -> None:
        for name, choices in (("loss_normalization", LOSS_NORMALIZATIONS), ("turns", TURN_CHOICES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.eos_fill != FILL_BATCH and not str(self.eos_fill).isdecimal():
            raise ValueError(
                f"`eos_fill` must be batch or a number of at least 0, got {self.eos_fill!r}; 0 adds one EOS alone."
            )
        for name in ("assistant_only_loss", "completion_only_loss"):
            if getattr(self, name) is False:
                raise ValueError(
                    f"`{name}` must not be False (prompts are never masked), got False; leave it out, or give "
                    "the whole text in the column `text` to learn from all of it."
                )
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"`max_length` must be at least 2, got {self.max_length}; leave it out.")
        if self.packing and self.num_extra_eos is None:
            raise ValueError(
                "`eos_fill` must be a number with `packing`, which has no rows to fill up, got 'batch'; "
                "pass eos_fill=0 for one EOS after each answer."
            )
