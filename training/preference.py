"""What training on preferences shares, whatever its loss: the ELBO head, options of the noise, data, and the trainer.

The losses are TRL's. They score an answer by `model(..., labels=labels, fused_lm_head=True).log_probs`, which TRL
computes from left to right with a forward that it puts on the model's instance. Here that forward is replaced by the
ELBO head, for the policy and for the reference: the log-probability of an answer is its bound at several noise levels.

Shape legend: B rows (answers), T sequence length.
"""

import contextlib
import copy
import functools
import itertools
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, Union

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import SchedulerType
from transformers.utils import ModelOutput

from .adapters import complete_adapter
from .data import Formats, check_examples, check_ids, columns_of_format, names_full_disk
from .diffusion_trainer import (
    EVALUATION_SEED,
    EVALUATION_STEP,
    REFUSED_ARGUMENTS,
    SHARED_FIXED_OPTIONS,
    LLaDATrainer,
    TrainingOptions,
    check_model,
    check_num_noise_samples,
    complete_args,
    load_for_training,
    option,
    pad_id_of,
    refuse_arguments,
    without_adapter,
)
from .log_probability import draw_noises, token_terms
from .loss import MaskedPredictions, level_sums, row_sums, score_masked
from .sft_data import check_dataset, check_tokenizer, number_examples

# Options of TRL that cannot apply, with the only value that fits.
PREFERENCE_FIXED_OPTIONS = SHARED_FIXED_OPTIONS | {
    "remove_unused_columns": (True, "the collator knows only token ids, labels and `example_id`"),
    "pad_to_multiple_of": (None, "rows are padded to the longest one"),
    "router_aux_loss_coef": (None, "there are no experts"),
    "disable_dropout": (True, "dropout would draw other numbers for policy and reference"),
    "activation_offloading": (False, "`recompute_levels` keeps the activations of one noise level only"),
}
# Metrics of TRL that are about the next token.
NEXT_TOKEN_METRICS = ("entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected")
# Fields of a model's config that policy and reference must share.
SHARED_FIELDS = ("vocab_size", "embedding_size", "mask_token_id")


@dataclass
class PreferenceOptions(TrainingOptions):
    """Options of the noise, and of the published recipe, for every training on preferences. A mix-in.

    Raises:
        ValueError: as `TrainingOptions`.
    """

    fixed_options: ClassVar[dict[str, tuple[Any, str]]] = PREFERENCE_FIXED_OPTIONS

    num_noise_samples: int = option(
        8, "Noise levels per answer, with one mask each: passes of the policy, and as many of the reference."
    )
    complementary_masks: bool = option(
        False, "Half of the masks hide just what the other half left, so that every token is scored."
    )
    recompute_levels: bool = option(
        True,
        "Keep the activations of one noise level only: answers are scored first, then each level is run again for its "
        "gradient. Memory does not grow with num_noise_samples, for one more pass per level.",
    )

    # Fields of TRL's configuration with another default here.
    max_length: Optional[int] = option(
        None, "Longest row in tokens; answers are cut there. Unset: the model's max_sequence_length."
    )
    disable_dropout: bool = option(True, "Not supported otherwise: policy and reference must see the same network.")
    lr_scheduler_type: Union[SchedulerType, str] = option("cosine", "Schedule of the learning rate.")
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    adam_beta2: float = option(0.95, "Beta2 of AdamW.")
    num_train_epochs: float = option(1.0, "Passes over the data, unless `max_steps` is set.")

    @property
    def num_levels(self) -> int:
        """Noise levels that are drawn; with `complementary_masks` each is used twice."""
        return self.num_noise_samples // 2 if self.complementary_masks else self.num_noise_samples

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of warm-up steps, at most half of the training; a value below 1 is a fraction of it."""
        return min(super().get_warmup_steps(num_training_steps), num_training_steps // 2)

    def _check_noise(self) -> None:
        check_num_noise_samples(self, "LLaDA 1.5 uses 8.")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"`max_length` must be at least 3, got {self.max_length}; leave it out.")


# The head


@dataclass
class ElboOutput(ModelOutput):
    """What TRL's losses read of a model.

    Attributes:
        log_probs: the bound's terms by token, whose sum is the answer's; float32 [batch, seq - 1], without the first
            column, as TRL has it.
        entropy, mean_logits, is_top1: zeros, of the same shape. TRL's metrics of the next token have no meaning here.
        level_sums: result of `level_sums` over the noise levels; [bins, 3].
    """

    log_probs: Optional[Tensor] = None
    entropy: Optional[Tensor] = None
    mean_logits: Optional[Tensor] = None
    is_top1: Optional[Tensor] = None
    level_sums: Optional[Tensor] = None


@dataclass(frozen=True)
class ElboHead:
    """Scores answers by the bound on their log-probability, in the place of TRL's next-token head.

    With `recompute`, a pass without activations scores all levels, and the backward pass runs one level after the
    other again. That is exact for every loss: the gradient is that of keeping all activations.

    Attributes:
        num_levels, complementary: as in `draw_noises`.
        recompute: keep the activations of one noise level only.
        autocast: makes the context of mixed precision.
        seed_shift: added to the seed of the noise key; 0 shares the noise.

    Source: VRPO in LLaDA 1.5 (arXiv:2505.19223).
    Not handled: adapters that prepend embeddings (soft prompts).
    """

    num_levels: int
    complementary: bool
    recompute: bool
    autocast: Callable[[], contextlib.AbstractContextManager]
    seed_shift: int = 0

    def install(self, model: Any, own_forward: Optional[Callable] = None) -> None:
        """Put the head on the instance, over the forward that TRL put there.

        Without `fused_lm_head=True` the forward is that of the model's class. A deep copy of the model runs its own
        weights.

        Args:
            model: a model of transformers, without an adapter around it.
            own_forward: the forward that stood on the instance before TRL's, e.g. a hook of a model spread over
                devices.
        """
        head = self

        @functools.wraps(type(model).forward)
        def forward(
            model: Any,
            *args: Any,
            fused_lm_head: bool = False,
            labels: Optional[Tensor] = None,
            noise_key: Optional[Tensor] = None,
            **options: Any,
        ) -> Any:
            run = own_forward or functools.partial(type(model).forward, model)
            if not fused_lm_head:
                return run(*args, **options) if labels is None else run(*args, labels=labels, **options)
            ids, attention_mask = options["input_ids"], options["attention_mask"]
            return head.score(run, ids, attention_mask, labels, noise_key, model.config.mask_token_id)

        forward.is_elbo_head = True  # type: ignore[attr-defined]
        model.forward = types.MethodType(forward, model)

    def score(
        self,
        forward: Callable,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Any,
        noise_key: Any,
        mask_token_id: int,
    ) -> ElboOutput:
        """Score answers.

        Args:
            forward: the model.
            input_ids: clean ids of prompt and answer; int64 [batch, seq].
            attention_mask: 1 where a token is, 0 on padding; int64 [batch, seq].
            labels: the clean id in the answer, -100 elsewhere; int64 [batch, seq].
            noise_key: seed, step and number of each row; int64 [batch, 3]. Seed and step are the same for all rows.
            mask_token_id: id that stands for the mask.
        """
        seed, step = noise_key[0, :2].tolist()
        noises = draw_noises(
            input_ids,
            labels,
            noise_key[:, 2],
            mask_token_id,
            self.num_levels,
            seed + self.seed_shift,
            step,
            complementary=self.complementary,
        )
        visible = None if bool(attention_mask.all()) else attention_mask

        def predict(noisy_ids: Tensor, is_masked: Tensor) -> tuple[Tensor, ...]:
            with self.autocast():
                logits = forward(input_ids=noisy_ids, attention_mask=visible, logits_positions=is_masked).logits
            return tuple(score_masked(logits, labels, is_masked))

        if self.recompute and len(noises) > 1 and torch.is_grad_enabled():
            predict = functools.partial(checkpoint, predict, use_reentrant=False)
        terms, sums = [], []
        for noisy in noises:
            predictions = MaskedPredictions(*predict(noisy.input_ids, noisy.is_masked))
            terms.append(token_terms(predictions.token_losses, noisy))
            sums.append(level_sums(row_sums(predictions, noisy)))
        log_probs = torch.stack(terms).mean(0)[:, 1:]
        zeros = torch.zeros_like(log_probs)
        return ElboOutput(log_probs, zeros, zeros, zeros.bool(), torch.stack(sums).sum(0))


def own_forward(model: Any) -> Optional[Callable]:
    """The forward on the instance under an adapter, e.g. a hook; None for that of the class and for an ELBO head."""
    forward = getattr(without_adapter(model), "__dict__", {}).get("forward")
    return None if getattr(forward, "is_elbo_head", False) else forward


# The trainer


class PreferenceTrainer(LLaDATrainer):
    """Base of the trainers on preferences; list it before the trainer of TRL in the bases.

    Noise depends on (seed, step, example) and is the same for policy and reference, so that equal models have a log
    ratio of exactly 0; two answers to one prompt have their own. With `precompute_ref_log_probs`, where the reference
    is scored once, an example has the same noise in every epoch. Evaluation always has.
    """

    learns_responses = True
    loss_description = "those of the preferences, and rewards are beta times the log ratio to the reference"
    # Class of the options, sets of columns that the data may have, and how messages call them.
    config_class: ClassVar[type]
    data_formats: ClassVar[Formats]
    data_columns: ClassVar[str]
    # Columns of the token ids that are scored after `prompt_ids`.
    answer_columns: ClassVar[tuple[str, ...]]
    # Answers of an example in a batch, each a row.
    answers_per_example: ClassVar[int]
    # False draws other noise for a reference model: naive DPO, for comparisons.
    reference_shares_noise = True
    _signature_columns: Any
    ref_model: Any
    precompute_ref_logps: bool

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        data_collator: None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **options: Any,
    ):
        args = complete_args(model, args, self.config_class, "those of TRL's and some more")
        refused = (*REFUSED_ARGUMENTS, "data_collator")
        refuse_arguments(options | {"data_collator": data_collator}, "the bound", refused)
        if train_dataset is None:
            raise ValueError("`train_dataset` must be given, got None; pass a `datasets.Dataset`.")
        check_dataset(train_dataset, "train")
        if processing_class is not None:
            check_tokenizer(processing_class)
        if isinstance(model, str):
            self._model_config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code)
        else:
            self._model_config = getattr(model, "config", None)
        check_model(self._model_config)
        self._max_length = check_max_length(args.max_length, self._model_config)
        check_adapter(options.get("peft_config"), model)
        model = load_for_training(model, args, options)
        if ref_model is not None:
            check_reference(ref_model, self._model_config)
        elif self._needs_copy(model, args, options):
            # An equal one, also of a model that was never saved.
            ref_model = copy.deepcopy(model).requires_grad_(False).eval()
        self._own_forwards = own_forward(model), own_forward(ref_model)
        self._has_heads, self._precomputes_train = False, False
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=self._make_collator(pad_id_of(self._model_config)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **options,
        )
        self._install_heads()

    def _needs_copy(self, model: Any, args: Any, options: dict[str, Any]) -> bool:
        has_adapter = options.get("peft_config") is not None or hasattr(model, "peft_config")
        # Under ZeRO-3 a model's weights lie elsewhere; TRL loads the reference again, by its name.
        return not (has_adapter or args.precompute_ref_log_probs or is_deepspeed_zero3_enabled())

    def _make_collator(self, pad_token_id: int) -> Any:
        """The collator of TRL, with `example_id` [batch], a number for every answer."""
        raise NotImplementedError

    def _install_heads(self) -> None:
        """Put the ELBO head on policy and reference, once: mixed precision later wraps the policy's."""
        if self._has_heads:
            return
        args: Any = self.args
        head = functools.partial(
            ElboHead, args.num_levels, args.complementary_masks, args.recompute_levels, self.accelerator.autocast
        )
        head().install(without_adapter(self.model), self._own_forwards[0])
        if self.ref_model is not None:
            shift = 0 if self.reference_shares_noise else 1
            head(seed_shift=shift).install(self.accelerator.unwrap_model(self.ref_model), self._own_forwards[1])
        self._has_heads = True

    # Data

    @names_full_disk()
    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        """Check the examples, let TRL tokenise them, then check and number them; answers end with EOS."""
        check_dataset(dataset, dataset_name)
        check_preferences(dataset, f"the {dataset_name} data", self.data_formats, self.data_columns)
        check_tokenizer(processing_class)
        tokenizing = copy.copy(args)
        tokenizing.max_length = None  # TRL would drop long prompts silently
        arranged, prepare = self._arrange(dataset, args.seed), super()._prepare_dataset
        tokenized = number_examples(prepare(arranged, processing_class, tokenizing, dataset_name))
        config = self._model_config
        return tokenized.map(
            finish_answers,
            num_proc=args.dataset_num_proc,
            fn_kwargs={
                "columns": self.answer_columns,
                "name": f"the {dataset_name} data",
                "eos_token_id": processing_class.eos_token_id,
                "mask_token_id": config.mask_token_id,
                "vocab_size": config.embedding_size,
                "max_length": self._max_length,
            },
            desc=f"Checking {dataset_name} data",
        )

    def _arrange(self, dataset: Dataset, seed: int) -> Dataset:
        """Bring checked examples into the form and order that TRL should read."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "example_id" not in self._signature_columns:
            self._signature_columns.append("example_id")

    # Noise and loss

    def _with_noise_key(self, inputs: dict[str, Any], is_training: bool) -> dict[str, Any]:
        """The batch with a noise key (see `ElboHead.score`) in the place of `example_id`."""
        ids = inputs["example_id"]
        seed = self.args.seed if is_training else EVALUATION_SEED
        is_fixed = not is_training or self.precompute_ref_logps
        step = EVALUATION_STEP if is_fixed else self.state.global_step
        key = torch.stack([torch.full_like(ids, seed), torch.full_like(ids, step), ids], dim=-1)
        return {name: value for name, value in inputs.items() if name != "example_id"} | {"noise_key": key}

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Collect the batches of one optimizer step.

        Returns:
            The batches, and the number of examples in the whole step, over accumulation and processes.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        counts = torch.zeros(3, dtype=torch.long, device=device)  # answer tokens, tokens, answers
        for batch in batches:
            masks = batch["completion_mask"], batch["attention_mask"], torch.ones_like(batch["example_id"])
            counts += torch.stack([mask.sum() for mask in masks]).to(device)
        counts = self.accelerator.reduce(counts, reduction="sum")
        num_maskable, num_seen, num_answers = counts.tolist()
        self._step_metrics.start_step(num_maskable * self.args.num_noise_samples, num_seen)
        return batches, max(num_answers // self.answers_per_example, 1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one batch: its share of the mean over the examples of the optimizer step, times the processes.

        In evaluation, the mean over the batch.
        """
        result = super().compute_loss(model, inputs, return_outputs)
        if num_items_in_batch is None:
            return result
        num_examples = len(inputs["input_ids"]) // self.answers_per_example
        share = num_examples / int(num_items_in_batch) * self.accelerator.num_processes
        return (result[0] * share, result[1]) if return_outputs else result * share

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        """TRL's loss and metrics, with the bound in the place of the log-probability."""
        is_training, scored = self.model.training, []

        def score(**arguments: Any) -> Any:
            scored.append(model(**arguments))
            return scored[-1]

        compute = super()._compute_loss
        keyed = self._with_noise_key(inputs, is_training)
        loss = compute(score, keyed, return_outputs=False)
        # The last that the policy scored are the answers themselves.
        loss = loss + self._further_loss(scored[-1].log_probs, inputs["completion_mask"][:, 1:])
        metrics: Any = vars(self)["_metrics"]["train" if is_training else "eval"]
        for name in NEXT_TOKEN_METRICS:
            metrics.pop(name, None)
        if is_training:
            self._step_metrics.add(scored[-1].level_sums)
        return (loss, scored[-1]) if return_outputs else loss

    def _further_loss(self, log_probs: Tensor, completion_mask: Tensor) -> Union[Tensor, float]:
        """A term beside TRL's; both arguments [batch, seq - 1]."""
        return 0.0

    # The reference, scored before the training

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Score the answers by the reference; TRL keeps the values in a file, by the model, the data and the noise."""
        self._install_heads()  # TRL calls this while it is made
        args: Any = self.args
        self._precomputes_train = dataset is self.train_dataset
        seed = args.seed if self._precomputes_train else EVALUATION_SEED
        noise = ("elbo", seed, args.num_noise_samples, args.complementary_masks, self._max_length)
        model_hash = vars(self)["_precompute_model_hash"]
        self._precompute_model_hash = Hasher.hash((model_hash, noise))
        try:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self._precompute_model_hash = model_hash
            self._precomputes_train = False

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """The reference's log-probabilities of a batch, with the noise that the policy will have."""
        keyed = self._with_noise_key(inputs, self._precomputes_train)
        return super().compute_ref_log_probs(model, keyed)


# Checks


def check_max_length(max_length: Optional[int], config: Any) -> int:
    """The longest row in tokens: `max_length`, or the model's `max_sequence_length` where it is None.

    Raises:
        ValueError: if `max_length` is beyond the model's.
    """
    limit = config.max_sequence_length
    if max_length is not None and max_length > limit:
        raise ValueError(
            f"`max_length` must be at most the model's `max_sequence_length` ({limit}), got {max_length}; lower it, or "
            "leave it out."
        )
    return max_length or limit


def check_adapter(peft_config: Any, model: Any) -> None:
    """Fill in what a config of PEFT leaves open, and refuse soft prompts.

    Raises:
        ValueError: for an adapter that prepends embeddings, given or around `model`.
    """
    configs = [peft_config] if peft_config is not None else list(getattr(model, "peft_config", {}).values())
    for config in configs:
        if config.is_prompt_learning:
            raise ValueError(
                f"`peft_config` must not be a soft prompt, which has no place in a noisy answer, got "
                f"{config.peft_type}; use LoRA."
            )
    if peft_config is not None:
        complete_adapter(peft_config)


def check_reference(reference: Any, config: Any) -> None:
    """Refuse a reference that is not a LLaDA model with the policy's vocabulary.

    Raises:
        ValueError: in these cases.
    """
    check_model(getattr(reference, "config", None))
    for name in SHARED_FIELDS:
        theirs, ours = getattr(reference.config, name), getattr(config, name)
        if theirs != ours:
            raise ValueError(
                f"`ref_model` must have the policy's vocabulary (`{name}` {ours}), got {theirs}; leave it out for a "
                "copy of the policy."
            )


def check_preferences(dataset: Dataset, source: str, formats: Formats, wanted: str) -> None:
    """Refuse data without the columns, with missing values, an empty answer, or labels that are not true or false.

    A pair of equal answers is warned of: each has its own noise, so that their log ratios differ by noise.

    Raises:
        ValueError: in these cases.
    """
    columns = columns_of_format(dataset, formats)
    if columns is None:
        raise ValueError(
            f"Preferences must have the columns {wanted}, got {', '.join(dataset.column_names)} in {source}; rename "
            "its columns."
        )
    rows = check_examples(dataset.select_columns(list(columns)), source)
    for column in {"chosen", "rejected", "completion"} & set(columns):
        for index, value in enumerate(rows[column]):
            if _is_empty(value):
                raise ValueError(
                    f"`{column}` must not be empty, got {value!r} in row {index} of {source}; leave it out."
                )
    if {"chosen", "rejected"} <= set(columns):
        same = [index for index, pair in enumerate(zip(rows["chosen"], rows["rejected"])) if pair[0] == pair[1]]
        if same:
            warnings.warn(
                f"{len(same)} of {len(rows)} pairs of {source} have the same answer twice, the first is row {same[0]}; "
                "they add noise alone, so leave them out.",
                stacklevel=3,
            )
    if "label" in columns:
        for index, label in enumerate(rows["label"]):
            if label not in (True, False):
                raise ValueError(
                    f"`label` must be true (a good answer) or false, got {label!r} in row {index} of {source}."
                )


def _is_empty(answer: Any) -> bool:
    """Whether an answer, text or messages, says nothing."""
    if isinstance(answer, str):
        return not answer
    return not any(message.get("content") or message.get("tool_calls") for message in answer)


def finish_answers(
    example: dict,
    columns: tuple[str, ...],
    name: str,
    eos_token_id: int,
    mask_token_id: int,
    vocab_size: int,
    max_length: int,
) -> dict:
    """End the answers of one example with EOS, which TRL adds to texts alone.

    Args:
        example: with `prompt_ids`, `example_id` and token ids under `columns`.
        columns: the answers.
        name: name of the data in messages.
        eos_token_id: id that ends an answer.
        mask_token_id, vocab_size: as in `check_ids`.
        max_length: longest row in tokens.

    Returns:
        The answers.

    Raises:
        ValueError: for a prompt that is empty or leaves no room for a token and EOS, and as `check_ids`.
    """
    prompt, place = example["prompt_ids"], f"example {example['example_id']} of {name}"
    if not prompt:
        raise ValueError(f"`prompt` must hold at least one token, got none in {place}; begin it with the BOS token.")
    if len(prompt) + 2 > max_length:
        raise ValueError(
            f"`max_length` ({max_length}) must leave room for a token and EOS after the prompt, got a prompt of "
            f"{len(prompt)} tokens in {place}; raise it, or leave the example out."
        )
    check_ids(prompt, place, mask_token_id, vocab_size)
    answers = {column: example[column] for column in columns if column in example}
    for column, ids in answers.items():
        check_ids(ids, place, mask_token_id, vocab_size)
        answers[column] = ids if ids[-1:] == [eos_token_id] else [*ids, eos_token_id]
    return answers
