"""Fine-tuning: the options, and TRL's `SFTTrainer` with the masked diffusion loss on responses."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import AutoConfig
from trl import SFTConfig, SFTTrainer

from .adapters import complete_adapter
from .batch import COLUMNS, LLaDACollator, check_attention, draw_turns, lengths_with_eos, set_lengths
from .data import as_messages, check_examples, columns_of_format, names_full_disk
from .diffusion_trainer import (
    EVALUATION_STEP,
    FIXED_OPTIONS,
    DiffusionOptions,
    DiffusionTrainer,
    check_model,
    complete_args,
    load_for_training,
    option,
    pad_id_of,
    without_adapter,
)
from .loss import LOSS_NORMALIZATIONS
from .sft_data import (
    check_conversations,
    check_dataset,
    check_tokenizer,
    finish_examples,
    has_conversations,
    number_examples,
    pack_examples,
)
from .stream import EXAMPLE_CHUNK, Stream, settle_streaming

# What TRL calls the training data.
TRAIN = "train"
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
    Not handled: images, streams of validation data.
    """

    fixed_options: ClassVar[dict] = FIXED_OPTIONS | SFT_FIXED_OPTIONS

    loss_normalization: str = option(
        "answer",
        "What the loss is divided by. answer: each answer's length, then the number of rows, as in the "
        "paper. token: the answer tokens of the whole optimizer step.",
    )
    # A number may also be an int; parsers of dataclasses would take nothing else if the type said so.
    eos_fill: str = option(
        FILL_BATCH,
        "End-of-text tokens after an answer, which are learnt. batch: up to the longest row of the "
        "optimizer step, as in the paper. A number: so many beyond the first. Evaluation with batch has one.",
    )
    turns: str = option(
        "random",
        "Turns of a conversation that are learnt. random: one, drawn anew each time, with the history as "
        "its prompt, as in the paper. all: every assistant turn at once.",
    )

    # Fields of SFTConfig with another default here.
    max_length: Optional[int] = option(
        None, "Longest row in tokens; answers are cut there. Unset: the model's max_sequence_length."
    )
    eval_packing: Optional[bool] = option(False, "Not supported: evaluation is never packed.")
    assistant_only_loss: Optional[bool] = option(
        None, "Conversations are always learnt on the assistant's turns alone."
    )
    bf16: Optional[bool] = option(
        None, "Compute in bfloat16. Unset: where there is an accelerator, unless fp16 is set."
    )
    learning_rate: float = option(2.5e-5, "Highest learning rate.")
    warmup_steps: float = option(
        50, "Steps of the rising phase: a number, or a fraction of all steps if below 1; at most half of the training."
    )
    min_lr_ratio: float = option(0.1, "Learning rate before warm-up and at the end, as a share of the highest.")
    num_train_epochs: float = option(3.0, "Passes over the data, unless `max_steps` is set.")

    def __post_init__(self) -> None:
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


class LLaDASFTTrainer(DiffusionTrainer, SFTTrainer):
    """Fine-tune a LLaDA model on responses; the steps are those of `DiffusionTrainer`.

    Data are what TRL takes: `messages` (or `conversations`), `prompt` and `completion`, or `text`, whose every token
    is a response. Before noise is drawn, each row of a step gets its turn (`turns`) and its end-of-text tokens
    (`eos_fill`). With `packing`, documents share rows in the model's forward only: noise, loss and metrics are those
    of a row for each.

    Args:
        model: a `LLaDAModelLM`, installed or loaded as remote code, plain or with an adapter of PEFT; or the folder or
            Hub id of one.
        args: options. Default: those of the paper, in a folder named after the model.
        train_dataset, eval_dataset: data sets as above; several of the latter in a dict.
        processing_class: the tokenizer. Default: the one beside the model.
        options: further arguments of `SFTTrainer` (`peft_config`, `callbacks`, `formatting_func` …); `compute_metrics`,
            `compute_loss_func`, `preprocess_logits_for_metrics` and `data_collator` do not apply.

    Raises:
        ValueError: for a model that is not a LLaDA model or has no mask token, a tokenizer without EOS, a chat
            template that marks no responses, data without responses or with the mask token, attention that cannot keep
            packed documents apart, and options that cannot apply.

    Source: LLaDA (arXiv:2502.09992), section 2.3, appendix B.1 and algorithm 2.
    """

    _name = "LLaDA SFT"
    learns_responses = True
    args: LLaDASFTConfig

    def __init__(
        self,
        model: Any,
        args: Optional[LLaDASFTConfig] = None,
        data_collator: None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **options: Any,
    ):
        args = complete_args(model, args, LLaDASFTConfig, "SFTConfig's")
        if data_collator is not None:
            raise ValueError(
                "`data_collator` must be unset, the step needs `LLaDACollator`, got one; change the examples instead."
            )
        if processing_class is not None:
            check_tokenizer(processing_class, args.eos_token)
        if isinstance(model, str):
            self._model_config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code)
        else:
            self._model_config = getattr(model, "config", None)
        check_model(self._model_config)
        limit = self._model_config.max_sequence_length
        if args.max_length is not None and args.max_length > limit:
            raise ValueError(
                f"`max_length` must be at most the model's `max_sequence_length` ({limit}), got {args.max_length}; "
                "lower it, or leave it out."
            )
        self._max_length = args.max_length or limit
        self.loss_normalization = args.loss_normalization
        if (adapter := options.get("peft_config")) is not None:
            complete_adapter(adapter)
        model = load_for_training(model, args, options)
        own_forward = vars(without_adapter(model)).get("forward")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **options,
        )
        drop_fused_forward(without_adapter(self.model), own_forward)
        if args.packing:
            check_attention(self.model.config._attn_implementation)
        # Set late: TRL sets the pad token only if it makes the collator itself, and accepts none with packing.
        self._pad_token_id = pad_id_of(self.model.config)
        self.data_collator = LLaDACollator(self._pad_token_id)

    # Data

    @names_full_disk()
    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        """Number the examples, let TRL tokenise and label them, then check, cut and pack them.

        Of a stream this is done chunk by chunk, while it is read.
        """
        if isinstance(dataset, IterableDataset) and dataset_name == TRAIN:
            settle_streaming(args)

            def prepare(chunk: Dataset, first: int) -> tuple[Dataset, int]:
                # What messages call the chunk, whose rows they count.
                name = f"{TRAIN} (from row {first})" if first else TRAIN
                rows = number_examples(chunk, first)
                rows = self._prepare_dataset(rows, processing_class, args, packing, formatting_func, name)
                return rows, first + len(chunk)

            return Stream(dataset, prepare, EXAMPLE_CHUNK, args.seed)
        check_dataset(dataset, dataset_name)
        if set(COLUMNS) <= set(dataset.column_names):
            return dataset
        columns = None if formatting_func is not None else columns_of_format(dataset)
        if columns is not None and "input_ids" not in dataset.column_names:
            check_examples(dataset.select_columns(list(columns)), f"the {dataset_name} data")
            dataset = as_messages(dataset, columns)
        check_tokenizer(processing_class)
        tokenizing = copy.copy(args)
        tokenizing.max_length, tokenizing.shuffle_dataset = None, False
        if "input_ids" not in dataset.column_names and formatting_func is None and has_conversations(dataset):
            check_conversations(dataset, processing_class, dataset_name)
            tokenizing.assistant_only_loss = True
        labelled = super()._prepare_dataset(
            number_examples(dataset), processing_class, tokenizing, False, formatting_func, dataset_name
        )
        finished = finish_examples(
            labelled,
            dataset_name,
            self._max_length,
            processing_class.eos_token_id,
            self._model_config.mask_token_id,
            self._model_config.embedding_size,
            args.dataset_num_proc,
        )
        if args.shuffle_dataset:
            finished = finished.shuffle(seed=args.seed)
        return pack_examples(finished, self._max_length, 1 + args.num_extra_eos) if packing else finished

    def _prepare_rows(self, batches: list[dict[str, Tensor]], seed: int, step: int) -> list[dict[str, Tensor]]:
        """Draw each row's turn, then add end-of-text tokens: in evaluation as many as depend on the example alone."""
        args, longest = self.args, 0
        if args.turns == "random":
            batches = [draw_turns(batch, seed, step, self._pad_token_id) for batch in batches]
        if args.num_extra_eos is None and step != EVALUATION_STEP:
            # With one EOS, over accumulation and processes.
            longest = max((int(lengths_with_eos(batch, self._max_length).max()) for batch in batches), default=0)
            longest = int(self.accelerator.gather(torch.tensor([longest], device=self.accelerator.device)).max())
        filled = []
        for batch in batches:
            lengths = lengths_with_eos(batch, self._max_length, args.num_extra_eos or 0, longest)
            filled.append(set_lengths(batch, lengths, self._pad_token_id, self.processing_class.eos_token_id))
        return filled


def drop_fused_forward(model: Any, own_forward: Any) -> None:
    """Take away the forward that TRL put on the instance: a deep copy would keep running this model's weights.

    The hooks of a model spread over devices also stand on the instance; with them, TRL's stays (nothing calls it).
    """
    if own_forward is not None:
        model.forward = own_forward
    elif not hasattr(model, "_hf_hook"):
        vars(model).pop("forward", None)
