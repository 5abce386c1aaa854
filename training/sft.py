"""The fine-tuning trainer: TRL's `SFTTrainer` with the masked diffusion loss on responses."""

import copy
from typing import Any, Optional

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig
from trl import SFTTrainer

from llada_core.diffusion import NoisyBatch

from .collator import LLaDACollator, row_lengths
from .diffusion_trainer import EVALUATION_SEED, EVALUATION_STEP, DiffusionTrainer, check_model, pad_id_of
from .packing import check_attention, pack_rows
from .registration import register_auto_classes
from .responses import draw_turns, fill_with_eos, lengths_with_eos
from .sft_config import LLaDASFTConfig
from .sft_data import (
    COLUMNS,
    check_conversations,
    check_dataset,
    check_tokenizer,
    finish_examples,
    has_conversations,
    number_examples,
    pack_examples,
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
        ValueError: for a model without a mask token or that is no LLaDA, a tokenizer without EOS, a chat template
            that marks no responses, data without responses or with the mask token, attention that cannot keep packed
            documents apart, and options that cannot apply.

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
        register_auto_classes()
        args = _complete_args(model, args)
        if data_collator is not None:
            raise ValueError(
                "`data_collator` must be unset, the step needs `LLaDACollator`, got one; change the examples instead."
            )
        if processing_class is not None:
            check_tokenizer(processing_class, args.eos_token)
        self._model_config = _config_of(model, args)
        check_model(self._model_config)
        self._max_length = _longest_row(args.max_length, self._model_config.max_sequence_length)
        self.loss_normalization = args.loss_normalization
        own_forward = None if isinstance(model, str) else vars(_without_adapter(model)).get("forward")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **options,
        )
        _drop_fused_forward(_without_adapter(self.model), own_forward)
        if args.packing:
            check_attention(self.model.config._attn_implementation)
        # Set late: TRL sets the pad token only if it makes the collator itself, and accepts none with packing.
        self._pad_token_id = pad_id_of(self.model.config)
        self.data_collator = LLaDACollator(self._pad_token_id)

    # Data

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        """Number the examples, let TRL tokenise and label them, then check, cut and pack them."""
        check_dataset(dataset, dataset_name)
        if set(COLUMNS) <= set(dataset.column_names):
            return dataset
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

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = COLUMNS

    # What happens to rows before they are masked

    def _settle_training_rows(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Draw each row's turn, then add end-of-text tokens."""
        args = self.args
        if args.turns == "random":
            batches = [draw_turns(batch, args.seed, self.state.global_step, self._pad_token_id) for batch in batches]
        longest = self._longest_row_of_step(batches) if args.num_extra_eos is None else 0
        return [self._fill(batch, args.num_extra_eos, longest) for batch in batches]

    def _settle_evaluation_rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, with draws and a number of end-of-text tokens that depend on the example alone."""
        if self.args.turns == "random":
            batch = draw_turns(batch, EVALUATION_SEED, EVALUATION_STEP, self._pad_token_id)
        return self._fill(batch, self.args.num_extra_eos or 0, 0)

    def _fill(self, batch: dict[str, Tensor], num_extra: Optional[int], longest: int) -> dict[str, Tensor]:
        lengths = lengths_with_eos(batch, num_extra, self._max_length, longest)
        return fill_with_eos(batch, lengths, self.processing_class.eos_token_id, self._pad_token_id)

    def _longest_row_of_step(self, batches: list[dict[str, Tensor]]) -> int:
        """Tokens of the longest row with one EOS, over accumulation and processes."""
        lengths = [lengths_with_eos(batch, 0, self._max_length).max() for batch in batches]
        longest = torch.stack(lengths).max().reshape(1) if lengths else torch.zeros(1, dtype=torch.long)
        return int(self.accelerator.gather(longest.to(self.accelerator.device)).max())

    # Forward

    def _model_inputs(self, noisy: NoisyBatch, inputs: dict[str, Tensor], num_draws: int) -> dict[str, Any]:
        """As for every trainer, but packed documents move into their rows."""
        if "packed_row" not in inputs:
            return super()._model_inputs(noisy, inputs, num_draws)
        row = inputs["packed_row"]
        rows = torch.cat([row + draw * (row[-1] + 1) for draw in range(num_draws)])
        return pack_rows(noisy.input_ids, noisy.is_masked, row_lengths(inputs).repeat(num_draws), rows)


def _complete_args(model: Any, args: Any) -> LLaDASFTConfig:
    if args is None:
        name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "llada"
        args = LLaDASFTConfig(f"{name.rstrip('/').split('/')[-1]}-SFT")
    if not isinstance(args, LLaDASFTConfig):
        raise ValueError(f"`args` must be a `LLaDASFTConfig`, got {type(args).__name__}; its fields are SFTConfig's.")
    if isinstance(model, str) and args.attn_implementation is not None:
        given: Any = args.model_init_kwargs or {}
        args.model_init_kwargs = {"attn_implementation": args.attn_implementation} | given
    return args


def _config_of(model: Any, args: LLaDASFTConfig) -> Any:
    if isinstance(model, str):
        return AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code)
    return getattr(model, "config", None)


def _longest_row(wanted: Optional[int], limit: int) -> int:
    if wanted is not None and wanted > limit:
        raise ValueError(
            f"`max_length` must be at most the model's `max_sequence_length` ({limit}), got {wanted}; lower it, or "
            "leave it out."
        )
    return wanted or limit


def _without_adapter(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _drop_fused_forward(model: Any, own_forward: Any) -> None:
    """Take away the forward that TRL put on the instance: a deep copy would keep running this model's weights.

    The hooks of a model spread over devices also stand on the instance; with them, TRL's stays (nothing calls it).
    """
    if own_forward is not None:
        model.forward = own_forward
    elif not hasattr(model, "_hf_hook"):
        vars(model).pop("forward", None)
