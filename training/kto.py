"""Kahneman-Tversky optimisation: options, and TRL's `KTOTrainer` with the bound as log-probability (ELBO-KTO)."""

import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch
from datasets import Dataset
from torch import Tensor
from trl import KTOConfig, KTOTrainer
from trl.data_utils import extract_prompt, unpair_preference_dataset
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import use_adapter

from .diffusion_trainer import option
from .noise import IGNORE_INDEX
from .preference import PREFERENCE_FIXED_OPTIONS, PreferenceOptions, PreferenceTrainer

LOSS_TYPES = ("kto", "apo_zero_unpaired")


@dataclass
class LLaDAKTOConfig(PreferenceOptions, KTOConfig):
    """Options of `LLaDAKTOTrainer` and of `llada train kto`.

    The loss `kto` compares each answer with the other answers of its batch, so it depends on
    `per_device_train_batch_size`, which must be at least 2; `apo_zero_unpaired` does not.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to this objective.

    Source: the defaults are the recipe of ELBO-KTO (arXiv:2510.23658).
    Not handled: streaming data sets, images.
    """

    fixed_options: ClassVar[dict] = PREFERENCE_FIXED_OPTIONS

    # Fields of KTOConfig with another default here.
    learning_rate: float = option(1e-6, "Highest learning rate.")
    warmup_steps: float = option(
        0.03,
        "Steps of the rising phase: a number, or a fraction of all steps if below 1; at most half of the training.",
    )
    bf16: Optional[bool] = option(
        None, "Compute in bfloat16. Unset: where there is an accelerator, unless fp16 is set."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"`loss_type` must be one of {', '.join(LOSS_TYPES)}, got {self.loss_type!r}; leave it out."
            )


@dataclass
class AnswerCollator(DataCollatorForUnpairedPreference):
    """Collates answers as TRL does, and numbers them."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate; `example_id`, int64 [answers], is 2 i for answer i; 2 i + 1 is that of its KL answer."""
        ids = torch.tensor([example["example_id"] for example in examples])
        return super().torch_call(examples) | {"example_id": 2 * ids}


class LLaDAKTOTrainer(PreferenceTrainer, KTOTrainer):
    """Train a LLaDA model on answers that are good or bad.

    An answer's log-probability is estimated as in `LLaDADPOTrainer`. Data are what TRL takes: `prompt`, `completion`
    and `label` (true for a good answer), or pairs, whose answers are taken apart and shuffled. With the loss
    `kto`, TRL reads rows in their order: shuffle your own.

    Args:
        model, ref_model, args, train_dataset, eval_dataset, processing_class, options: as in `LLaDADPOTrainer`.

    Raises:
        ValueError: as `LLaDADPOTrainer`.

    Source: ELBO-KTO (arXiv:2510.23658), KTO (arXiv:2402.01306).
    """

    _name = "LLaDA KTO"
    config_class = LLaDAKTOConfig
    data_formats = (("prompt", "completion", "label"), ("prompt", "chosen", "rejected"), ("chosen", "rejected"))
    data_columns = "`prompt`, `completion` and `label`, or `prompt`, `chosen` and `rejected`"
    answer_columns = ("completion_ids", "KL_completion_ids")
    answers_per_example = 1
    args: LLaDAKTOConfig

    def _make_collator(self, pad_token_id: int) -> AnswerCollator:
        return AnswerCollator(pad_token_id, max_length=self._max_length)

    def _arrange(self, dataset: Dataset, seed: int) -> Dataset:
        """Take pairs apart, in an order drawn by the seed: TRL has all good answers first, and reads rows in order."""
        if "label" in dataset.column_names:
            return dataset
        if "prompt" not in dataset.column_names:
            dataset = dataset.map(extract_prompt, desc="Extracting prompts")
        # A number of the pair would be that of both answers, whose noise must differ.
        pairs = dataset.select_columns(["prompt", "chosen", "rejected"])
        return unpair_preference_dataset(pairs, desc="Taking pairs apart").shuffle(seed=seed)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Tensor]) -> Optional[Tensor]:
        """Log-probability of each prompt's wrong answer, without gradient and with noise of its own; [batch]."""
        if not self.calculate_KL:
            return None
        with torch.no_grad():
            return _log_probability(model, batch, "KL_")

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Optional[Tensor]]:
        """The reference's log-probabilities of a batch, and of its wrong answers, with the noise of the policy."""
        keyed = self._with_noise_key(inputs, self._precomputes_train)
        adapter: Any = contextlib.nullcontext()
        if self.ref_model is None and hasattr(self.model, "peft_config"):
            policy = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None)
        with torch.no_grad(), adapter:
            return _log_probability(model, keyed), self._compute_kl_logps(model, keyed)


def _log_probability(model: Any, batch: dict[str, Tensor], prefix: str = "") -> Tensor:
    """Log-probability of the answers under `prefix`, by the model's ELBO head; [batch]."""
    ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
    key = batch["noise_key"]
    return model(
        input_ids=ids,
        attention_mask=batch[f"{prefix}attention_mask"],
        noise_key=key + torch.tensor([0, 0, 1], device=key.device) if prefix else key,
        labels=ids.masked_fill(mask == 0, IGNORE_INDEX),
        fused_lm_head=True,
    ).log_probs.sum(-1)
