"""Direct preference optimisation: options, and TRL's `DPOTrainer` with the bound as log-probability (VRPO)."""

import difflib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional, Union

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from .diffusion_trainer import option
from .preference import PREFERENCE_FIXED_OPTIONS, PreferenceOptions, PreferenceTrainer

# Losses of TRL; all read the log-probabilities of whole answers.
LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
SFT_LOSS = "sft"
# Weight of the term of fine-tuning beside another loss.
SFT_WEIGHT = 0.05
# Options of DPOConfig that cannot apply, with the only value that fits.
DPO_FIXED_OPTIONS = PREFERENCE_FIXED_OPTIONS | {
    "use_weighting": (False, "its weights are probabilities of the next token"),
    "padding_free": (False, "rows are padded"),
    "truncation_mode": ("keep_start", "a prompt without its beginning is another prompt"),
    "pad_token": (None, "padding is neither seen nor scored"),
}


@dataclass
class LLaDADPOConfig(PreferenceOptions, DPOConfig):
    """Options of `LLaDADPOTrainer` and of `llada train dpo`.

    A batch is counted in pairs: one optimizer step sees `per_device_train_batch_size` times
    `gradient_accumulation_steps` times the number of processes pairs, each of two rows.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to this objective.

    Source: the defaults are the recipe of VRPO in LLaDA 1.5 (arXiv:2505.19223), whose batch is 64 pairs.
    Not handled: streaming data sets, images.
    """

    fixed_options: ClassVar[dict] = DPO_FIXED_OPTIONS

    # Fields of DPOConfig with another default here.
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid", SFT_LOSS],
        metadata={"help": f"Losses that are added up, of {', '.join(LOSS_TYPES)}. sft: the answer's loss of tuning."},
    )
    loss_weights: Optional[list[float]] = option(
        None, f"Weights of the losses. Unset: 1, and {SFT_WEIGHT} for sft beside others."
    )
    beta: float = option(0.2, "Strength of the pull towards the reference.")
    learning_rate: float = option(5e-7, "Highest learning rate.")
    warmup_steps: float = option(
        15, "Steps of the rising phase: a number, or a fraction of all steps if below 1; at most half of the training."
    )
    bf16: Optional[bool] = option(
        None, "Compute in bfloat16. Unset: where there is an accelerator, unless fp16 is set."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.loss_type:
            if name not in LOSS_TYPES:
                nearest = difflib.get_close_matches(str(name), LOSS_TYPES, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"`loss_type` must be of {', '.join(LOSS_TYPES)}, got {name!r}; did you mean {nearest!r}?"
                )
        if self.loss_weights is None:
            is_alone = set(self.loss_type) == {SFT_LOSS}
            self.loss_weights = [SFT_WEIGHT if name == SFT_LOSS and not is_alone else 1.0 for name in self.loss_type]


@dataclass
class PairCollator(DataCollatorForPreference):
    """Collates pairs as TRL does, chosen answers first, and numbers the answers."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate; `example_id`, int64 [2 * pairs], is 2 i for the chosen answer of pair i, else 2 i + 1."""
        ids = torch.tensor([example["example_id"] for example in examples])
        return super().torch_call(examples) | {"example_id": torch.cat([2 * ids, 2 * ids + 1])}


class LLaDADPOTrainer(PreferenceTrainer, DPOTrainer):
    """Train a LLaDA model on preferred and rejected answers.

    An answer's log-probability is its bound, estimated at `num_noise_samples` noise levels with the same masks for
    policy and reference. Data are what TRL takes: `prompt`, `chosen` and `rejected`, as texts or messages; the prompt
    may be part of the messages. Answers end with EOS.

    Args:
        model: a `LLaDAModelLM`, installed or loaded as remote code, plain or with an adapter of PEFT; or the folder or
            Hub id of one.
        ref_model: the reference. Default: a copy of the model, or with an adapter the model without it.
        args: options. Default: those of the paper, in a folder named after the model.
        train_dataset, eval_dataset: data sets as above; several of the latter in a dict.
        processing_class: the tokenizer. Default: the one beside the model.
        options: further arguments of `DPOTrainer` (`peft_config`, `callbacks` …); `compute_metrics`,
            `compute_loss_func`, `preprocess_logits_for_metrics` and `data_collator` do not apply.

    Raises:
        ValueError: for a model that is not a LLaDA model or has no mask token, a reference with another vocabulary, a
            tokenizer without EOS, data without the columns or with an empty answer, prompts that leave no room for an
            answer, soft prompts, and options that cannot apply.

    Source: VRPO in LLaDA 1.5 (arXiv:2505.19223). The levels of an answer are stratified here, drawn independently of
    each other there. The loss `sft` is that of fine-tuning (LLaDA, arXiv:2502.09992, Eq. 5), the mean over the pairs of
    the bound per token; TRL's is divided by the tokens of a batch, which depends on how a step is split.
    Not handled: TRL's metrics of the next token (entropy, logits, token accuracy), which are not logged.
    """

    _name = "LLaDA DPO"
    config_class = LLaDADPOConfig
    data_formats = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))
    data_columns = "`chosen` and `rejected`, and `prompt` unless these are whole conversations"
    answer_columns = ("chosen_ids", "rejected_ids")
    answers_per_example = 2
    args: LLaDADPOConfig

    def __init__(self, *positional: Any, **options: Any):
        super().__init__(*positional, **options)
        weights: Any = self.args.loss_weights
        self._sft_weight = sum(w for name, w in zip(self.args.loss_type, weights) if name == SFT_LOSS)
        others = [(name, w) for name, w in zip(self.args.loss_type, weights) if name != SFT_LOSS]
        self.loss_types, self.loss_weights = [name for name, _ in others], [w for _, w in others]

    def _make_collator(self, pad_token_id: int) -> PairCollator:
        return PairCollator(pad_token_id, max_length=self._max_length)

    def _further_loss(self, log_probs: Tensor, completion_mask: Tensor) -> Union[Tensor, float]:
        if not self._sft_weight:
            return 0.0
        lengths = completion_mask.sum(-1).clamp(min=1)
        bounds = (log_probs.sum(-1) / lengths).chunk(2)[0]
        return -self._sft_weight * bounds.mean()
