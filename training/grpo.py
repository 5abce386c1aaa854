"""Reinforcement learning: the options, and TRL's `GRPOTrainer` with the log-probabilities of masked diffusion."""

import copy
import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Optional, Union

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp, unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from llada_core.diffusion import row_seed
from modeling_llada.generation_config_llada import LLaDAGenerationConfig

from .adapters import complete_adapter
from .diffusion_trainer import (
    SHARED_FIXED_OPTIONS,
    LLaDATrainer,
    TrainingOptions,
    check_model,
    check_num_noise_samples,
    complete_args,
    load_for_training,
    option,
    without_adapter,
)
from .log_probability import LEVEL_CHOICES
from .rollouts import (
    NEVER,
    UNSCORABLE_OPTIONS,
    Rollout,
    TokenScores,
    elbo_scores,
    fallback_scores,
    generate_rollouts,
    one_pass_scores,
)
from .sft import drop_fused_forward

logger = logging.get_logger(__name__)

OBJECTIVES = ("fork", "espo", "diffu")
_DRAWN = "tokens must be drawn from the distribution that is scored"
# Options of GRPOConfig that cannot apply, with the only value that fits.
GRPO_FIXED_OPTIONS = {
    "use_vllm": (False, "vLLM decodes from left to right"),
    "use_transformers_continuous_batching": (False, "rollouts are batched here, with the record of every commit"),
    "disable_dropout": (True, "dropout would differ between the models that are compared"),
    "cast_lm_head_to_fp32": (False, "log-probabilities are computed in float32 anyway"),
    "pad_to_multiple_of": (None, "the canvas must be the one of the rollout"),
    "top_p": (1.0, _DRAWN),
    "top_k": (0, _DRAWN),
    "min_p": (None, _DRAWN),
    "repetition_penalty": (1.0, _DRAWN),
    "cache_implementation": (None, "`cache` keeps keys and values"),
    "entropy_coef": (0.0, "entropies are measured without a gradient"),
    "use_adaptive_entropy": (False, "entropies are measured without a gradient"),
    "sync_ref_model": (False, "a resumed run would not know the reference"),
    "router_aux_loss_coef": (None, "the loss is the policy's alone"),
    "remove_unused_columns": (False, "rewards read the other columns"),
}
# The same for one objective.
OBJECTIVE_FIXED_OPTIONS: dict[str, dict[str, tuple[Any, str]]] = {
    "fork": {"denoising_steps": (None, "a pass must commit at most one token that its rule does not allow")},
    "espo": {
        "importance_sampling_level": ("sequence", "the bound is of a whole answer"),
        "loss_type": ("grpo", "the bound is of a whole answer"),
        "top_entropy_quantile": (1.0, "the bound is of a whole answer"),
    },
    "diffu": {},
}
# Arguments of `GRPOTrainer` that need an engine which decodes from left to right, or several turns.
REFUSED_GRPO_ARGUMENTS = ("tools", "rollout_func", "environment_factory")
# Options of `generate` that are fields of the configuration, under their names there.
ROLLOUT_FIELDS = {
    "max_new_tokens": "max_completion_length",
    "temperature": "temperature",
    "block_length": "block_length",
    "threshold": "threshold",
    "fallback": "fallback",
    "steps": "denoising_steps",
    "cache": "cache",
}
# What a checkpoint holds beside transformers' files; one file for each process.
ROLLOUT_FILE = "rollouts_{}.pt"
# Prompts that are tokenised at once to be checked.
CHECK_BATCH = 1000


@dataclass
class LLaDAGRPOConfig(TrainingOptions, GRPOConfig):
    """Options of `LLaDAGRPOTrainer` and of `llada train grpo`.

    Batches are counted as in TRL: `per_device_train_batch_size` times `gradient_accumulation_steps` times the number
    of processes is the number of answers of an optimizer step, `num_generations` of them to each prompt.

    Raises:
        ValueError: if an option is out of range, contradicts another one, or cannot apply to the objective.

    Source: ForkGRPO (Fork-dLLM) and JustGRPO (arXiv:2601.15165); ESPO (arXiv:2512.03759), GDPO (arXiv:2510.08554);
    diffu-GRPO of d1 (arXiv:2504.12216).
    Not handled: streaming data sets are not checked before the first step; images.
    """

    fixed_options: ClassVar[dict] = SHARED_FIXED_OPTIONS | GRPO_FIXED_OPTIONS

    objective: str = option(
        "fork",
        "What stands for an answer's log-probability. fork: the tokens that the commit rule did not allow, each where "
        "it was committed; exact. espo: the bound, of the whole answer. diffu: one pass over a masked answer.",
    )
    block_length: int = option(32, "Rollouts: tokens per block.")
    threshold: Optional[float] = option(
        None, "Rollouts: commit every token of at least this confidence. Unset: one token per pass."
    )
    fallback: Optional[str] = option(
        None, "Rollouts: what a pass commits where nothing passes. Unset: leftmost with fork, otherwise confident."
    )
    denoising_steps: Optional[int] = option(None, "Rollouts: passes for an answer. Unset: as many as it takes.")
    cache: str = option("none", "Rollouts: none, prefix or dual. With a cache, answers are scored again without it.")
    rollout_batch_size: Optional[int] = option(None, "Answers generated together by a process. Unset: all of a step.")
    num_noise_samples: int = option(4, "espo: masks of an estimate, each a pass of the model.")
    complementary_masks: bool = option(
        True, "espo: half of the masks hide just what the other half left, so that every token is scored."
    )
    levels: str = option("stratified", "espo: noise levels are drawn (stratified) or fixed nodes (quadrature).")
    prompt_mask_rate: float = option(0.15, "diffu: share of the prompt that is masked.")

    # Fields of GRPOConfig and TrainingArguments with another default here.
    importance_sampling_level: Optional[str] = option(
        None, "Ratio of each token, or of the sequence. Unset: sequence with espo, otherwise token."
    )
    loss_type: str = option("grpo", "As in TRL; espo needs grpo.")
    disable_dropout: bool = option(True, "Not supported otherwise: dropout would differ between models.")
    bf16: Optional[bool] = option(
        None, "Compute in bfloat16. Unset: where there is an accelerator, unless fp16 is set."
    )
    lr_scheduler_type: Union[SchedulerType, str] = option("constant_with_warmup", "Schedule of the learning rate.")

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}.")
        if self.fallback is None:
            self.fallback = "leftmost" if self.objective == "fork" else "confident"
        if self.importance_sampling_level is None:
            self.importance_sampling_level = "sequence" if self.objective == "espo" else "token"
        super().__post_init__()
        self._check_objective()
        self._check_rollouts()

    @property
    def num_levels(self) -> int:
        """Noise levels of an estimate; with `complementary_masks` each is used twice."""
        return self.num_noise_samples // 2 if self.complementary_masks else self.num_noise_samples

    @property
    def rollout_options(self) -> dict[str, Any]:
        """Options of `generate` for the rollouts."""
        return {name: getattr(self, field) for name, field in ROLLOUT_FIELDS.items()} | (self.generation_kwargs or {})

    def _check_objective(self) -> None:
        for name, (value, reason) in OBJECTIVE_FIXED_OPTIONS[self.objective].items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` must be {value} with objective={self.objective} ({reason}), got "
                    f"{getattr(self, name)!r}; leave it out."
                )
        check_num_noise_samples(self)
        if self.levels not in LEVEL_CHOICES:
            raise ValueError(f"`levels` must be one of {', '.join(LEVEL_CHOICES)}, got {self.levels!r}.")
        if not 0.0 <= self.prompt_mask_rate < 1.0:
            raise ValueError(f"`prompt_mask_rate` must be in [0, 1), got {self.prompt_mask_rate}; leave it out.")

    def _check_rollouts(self) -> None:
        if self.max_completion_length is None:
            raise ValueError("`max_completion_length` must be set, it is the length of the canvas, got None.")
        if not self.temperature > 0:
            raise ValueError(f"`temperature` must be above 0, or all answers are the same, got {self.temperature}.")
        if self.rollout_batch_size is not None and self.rollout_batch_size < 1:
            raise ValueError(f"`rollout_batch_size` must be at least 1, got {self.rollout_batch_size}; leave it out.")
        for name in self.generation_kwargs or {}:
            if name in ROLLOUT_FIELDS:
                raise ValueError(
                    f"`generation_kwargs` must not hold `{name}`; use the option `{ROLLOUT_FIELDS[name]}`."
                )
            if name in UNSCORABLE_OPTIONS:
                raise ValueError(f"`generation_kwargs` must not hold `{name}`: {_DRAWN}; leave it out.")
        LLaDAGenerationConfig(**self.rollout_options)


class LLaDAGRPOTrainer(LLaDATrainer, GRPOTrainer):
    """Reinforcement learning with a LLaDA model: TRL's groups, rewards, advantages, clipping and metrics.

    A round: 1 answer the prompts of `steps_per_generation` batches, each answer with random numbers of its own · 2 let
    the rewards judge · 3 score the answers under the present policy (and the reference), for each of the
    `num_iterations` passes over them · 4 for each batch: score it again, with the same noise, and step.
    Answers are scored on the canvas that they were generated on, with the masks after their ends. Random numbers depend
    on (seed, round, place of the answer) alone, so one process, several and a resumed run draw the same.

    Args:
        model: a `LLaDAModelLM`, installed or loaded as remote code, plain or with an adapter of PEFT; or the folder or
            Hub id of one.
        reward_funcs: functions of the completions and of the data set's columns, as in TRL; see `rewards.py`.
        args: options. Default: `fork`, in a folder named after the model.
        train_dataset, eval_dataset: data sets with the column `prompt`, texts or conversations, and what rewards read.
        processing_class: the tokenizer. Default: the one beside the model.
        options: further arguments of `GRPOTrainer` (`peft_config`, `callbacks` …); `tools`, `rollout_func` and
            `environment_factory` do not apply.

    Raises:
        ValueError: for a model that is not a LLaDA model or has no mask token; data without a column that is needed; a
            prompt that is empty, holds masks or leaves no room for an answer; a reward that is not a finite number; and
            options that cannot apply.

    Not handled: processes that share out the weights while they generate (FSDP); several turns, images.
    """

    _name = "LLaDA GRPO"
    learns_responses = True
    loss_description = "those of the policy, whose mean is 0 at the start of a round"
    args: LLaDAGRPOConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: Optional[LLaDAGRPOConfig] = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **options: Any,
    ):
        args = complete_args(model, args, LLaDAGRPOConfig, "GRPOConfig's")
        for name in REFUSED_GRPO_ARGUMENTS:
            if options.get(name) is not None:
                raise ValueError(f"`{name}` must be unset, an answer is one canvas in one turn, got one; leave it out.")
        if isinstance(model, str):
            check_model(AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code))
        else:
            check_model(getattr(model, "config", None))
        reward_funcs = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        for name, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            _check_columns(data, name, reward_funcs)
        if (adapter := options.get("peft_config")) is not None:
            complete_adapter(adapter)
        model = load_for_training(model, args, options)
        if getattr(without_adapter(model).config, "output_router_logits", False):
            raise ValueError(
                "`model.config.output_router_logits` must be False, the loss is the policy's alone, got True; unset it."
            )
        # TRL would load the reference anew, from wherever the model's config says it came from. Under ZeRO-3 it may:
        # there the weights lie elsewhere.
        beta, reference = args.beta, None
        if beta and adapter is None and without_adapter(model) is model and not is_deepspeed_zero3_enabled():
            reference, args.beta = copy.deepcopy(model).eval().requires_grad_(False), 0.0
        own_forward = vars(without_adapter(model)).get("forward")
        try:
            super().__init__(
                model=model,
                reward_funcs=[_checked(function) for function in reward_funcs],
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **options,
            )
        finally:
            args.beta = beta
        drop_fused_forward(without_adapter(self.model), own_forward)
        # TRL would turn it on for a mixture of experts.
        self.beta, self.aux_loss_enabled = beta, False
        if reference is not None:
            self.ref_model = self._prepare_reference(reference)
        # Answers that are scored now, with the numbers of the passes over them, and their last scores.
        self._rollout: Any = None
        self._iterations: Sequence[int] = (0,)
        self._scores: Any = None
        self._num_evaluated, self._said_equal = 0, False
        for name, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            self._check_prompts(data, name)

    def _prepare_reference(self, reference: Any) -> Any:
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(reference, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    def _check_prompts(self, data: Any, name: str) -> None:
        """Refuse prompts that cannot be answered; of data sets that can be read without using them up."""
        if isinstance(data, dict):
            for part, rows in data.items():
                self._check_prompts(rows, f"{name}[{part!r}]")
        if not isinstance(data, Dataset):
            return
        config, length = without_adapter(self.model).config, self.max_completion_length
        limit = config.max_sequence_length - length
        if limit < 1:
            raise ValueError(
                "`max_completion_length` must leave room for a prompt in the model's `max_sequence_length` "
                f"({config.max_sequence_length}), got {length}; lower it."
            )
        for start in range(0, len(data), CHECK_BATCH):
            prompts = data[start : start + CHECK_BATCH]["prompt"]
            for number, ids in enumerate(self._tokenize_prompts(prompts)[0], start=start):
                if not 0 < len(ids) <= limit:
                    raise ValueError(
                        f"`prompt` must have from 1 to {limit} tokens, so that `max_completion_length` ({length}) more "
                        f"fit into the model's `max_sequence_length` ({config.max_sequence_length}), got {len(ids)} in "
                        f"row {number} of `{name}`; leave it out, or shorten the answers."
                    )
                if config.mask_token_id in ids:
                    raise ValueError(
                        f"`prompt` must not hold the mask token, got one in row {number} of `{name}`; take it out."
                    )

    # 1 and 2: answers and rewards

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's sampler, whose order depends on the seed and the epoch alone, also in a resumed run."""
        sampler = super()._get_train_sampler(dataset)
        return _EpochSampler(sampler, self.args.seed, lambda: int((self.state.epoch or 0.0) + 1e-6))

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The rows of a batch; TRL shuffles those of a round, here by the seed and the round alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(row_seed(self.args.seed, self._step // self._round_length, 0))
            return super()._prepare_inputs(generation_batch)

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple[list[list[int]], None]:
        """Answer prompts, and keep the rollout for the scores."""
        device, args = self.accelerator.device, self.args
        prompts = [torch.tensor(ids) for ids in prompt_ids]
        mask = pad_sequence([torch.ones_like(ids) for ids in prompts], batch_first=True, padding_side="left").to(device)
        pad_id = self._tokenizer.pad_token_id
        ids = pad_sequence(prompts, batch_first=True, padding_value=pad_id, padding_side="left").to(device)
        keys, size = self._next_keys(len(prompts)).to(device), args.rollout_batch_size or len(prompts)
        options = args.rollout_options | {"eos_token_id": self.eos_token_ids, "pad_token_id": pad_id}
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            parts = [
                generate_rollouts(model, *rows, args.seed, **options)
                for rows in zip(ids.split(size), mask.split(size), keys.split(size))
            ]
        self._rollout = Rollout(*(torch.cat(values) for values in zip(*parts)))
        return [row[chosen].tolist() for row, chosen in zip(self._rollout.ids, self._rollout.is_answer)], None

    def _next_keys(self, count: int) -> Tensor:
        """Number the answers of this process: by round and place in training, negative in evaluation."""
        places, process = torch.arange(count), self.accelerator.process_index
        if self.model.training:
            num_before = self._step // self._round_length * self.args.generation_batch_size
            return num_before + process * count + places
        first, self._num_evaluated = self._num_evaluated, self._num_evaluated + count
        return -1 - ((first + places) * self.accelerator.num_processes + process)

    @property
    def _round_length(self) -> int:
        """Batches from one generation to the next."""
        return self.args.steps_per_generation * self.num_iterations

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Evaluate, as `GRPOTrainer`; every time with the same random numbers."""
        self._num_evaluated = 0
        return super().evaluate(*args, **options)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Add the rollout to what TRL makes of the answers; with `fork`, only the fallback tokens count."""
        self._iterations = range(self.num_iterations if self.model.training else 1)
        output = super()._generate_and_score_completions(inputs)
        rollout = self._rollout
        output |= {f"rollout_{name}": values for name, values in rollout._asdict().items()}
        if self.args.objective == "fork":
            output["tool_mask"] = self._completion_part(rollout.is_fallback, output).long()
            num_scored = (output["completion_mask"] * output["tool_mask"]).sum()
            output["num_items_in_batch"] = self.accelerator.gather(num_scored).sum()
        self._log_rollouts(rollout)
        if not self._said_equal and not self.accelerator.gather(output["advantages"]).any():
            self._said_equal = True
            logger.warning(
                "All answers to each prompt got the same reward, so there is nothing to learn from them. If this "
                "goes on (`frac_reward_zero_std` is 1), prompts are too easy or too hard, or the reward reads none of "
                "the answers."
            )
        return output

    def _completion_part(self, values: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The columns of the canvas that TRL's completions have."""
        start = values.shape[1] - self.max_completion_length
        return values[:, start : start + inputs["completion_ids"].shape[1]]

    def _log_rollouts(self, rollout: Rollout) -> None:
        """Log how the answers were generated: passes of a row, and the share of fallback tokens."""
        committed = rollout.passes.masked_fill(rollout.passes == NEVER, -1)
        ordered = committed.sort(-1).values
        num_passes = (ordered.diff(dim=-1) > 0).sum(-1).float()
        share = (rollout.is_fallback & rollout.is_answer).sum(-1) / rollout.is_answer.sum(-1)
        mode = "train" if self.model.training else "eval"
        for name, values in (("passes", num_passes), ("fallback_share", share)):
            self._metrics[mode][f"rollout/{name}"].append(self.accelerator.gather(values).mean().item())

    # 3 and 4: scores and loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: Optional[int] = None,
        compute_entropy: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Optional[Tensor], None]:
        """Score the rollout of TRL's rows.

        Returns:
            While a loss is computed: log-probabilities and entropies; float32 [batch, completion]. Before: the
            log-probabilities for each pass over the answers; float32 [batch, num_iterations, completion].
        """
        size, found = batch_size or len(input_ids), []
        for start in range(0, len(input_ids), size):
            part = self._rollout.rows(slice(start, start + size))
            with self.accelerator.autocast():
                # The scores of fork have no noise, so they are the same for every pass.
                numbers = self._iterations[:1] if self.args.objective == "fork" else self._iterations
                found.append([self._score(model, part, number) for number in numbers])
        start = self._rollout.ids.shape[1] - self.max_completion_length
        columns = slice(start, start + logits_to_keep)
        values, entropies = (
            torch.cat([torch.stack([scores[field] for scores in part], 1) for part in found])[..., columns]
            for field in range(2)
        )
        if compute_entropy:
            self._scores = values[:, 0]
            return values[:, 0], entropies[:, 0], None
        return values.expand(-1, len(self._iterations), -1), None, None

    def _score(self, model: Any, rollout: Rollout, iteration: int) -> TokenScores:
        """Log-probabilities of answers by the objective, with the noise of one pass over them."""
        args, mask_id = self.args, without_adapter(self.model).config.mask_token_id
        width = rollout.ids.shape[1] - self.max_completion_length
        if args.objective == "fork":
            return fallback_scores(model, rollout, mask_id, self.temperature)
        place = (width, mask_id, args.seed, iteration)
        if args.objective == "diffu":
            return one_pass_scores(model, rollout, *place, args.prompt_mask_rate)
        noise: dict[str, Any] = {
            "num_levels": args.num_levels,
            "levels": args.levels,
            "complementary": args.complementary_masks,
        }
        return elbo_scores(model, rollout, *place, **noise)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss on the scores of this pass over the answers; with `espo`, its divergence from the reference."""
        iteration = self._step // self.args.steps_per_generation % self.num_iterations if self.model.training else 0
        self._iterations = (iteration,)
        self._rollout = Rollout(*(inputs[f"rollout_{name}"] for name in Rollout._fields))
        inputs = dict(inputs)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            if name in inputs:
                inputs[name] = inputs[name][:, iteration]
        beta = self.beta
        try:
            self.beta = 0.0 if self.args.objective == "espo" else beta
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        if self.args.objective == "espo" and beta:
            loss = loss + beta * self._divergence(inputs)
        if self.args.objective == "fork":
            self._log_gap(inputs)
        self._scores = self._rollout = None
        return loss

    def _divergence(self, inputs: dict[str, Any]) -> Tensor:
        """Half the squared log-ratio of the bounds per token, a mean over the answers; a share of the optimizer step.

        Source: ESPO (arXiv:2512.03759), the k2 estimator; per token of the answer, not of the canvas.
        """
        mask = inputs["completion_mask"]
        difference = ((self._scores - inputs["ref_per_token_logps"]) * mask).sum(-1)
        divergence = (0.5 * difference**2 / mask.sum(-1).clamp(min=1)).mean()
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["kl"].append(self.accelerator.gather(divergence.detach()).mean().item())
        return divergence / (self.current_gradient_accumulation_steps if mode == "train" else 1)

    def _log_gap(self, inputs: dict[str, Any]) -> None:
        """Log how far the scores are from what generation recorded, while the policy is still the one of the rollout.

        Without a cache the gap is rounding.
        """
        if not self.model.training or self._step % self._round_length:
            return
        recorded = self._completion_part(self._rollout.log_probabilities, inputs)
        mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        gap = torch.where(mask, (self._scores.detach() - recorded).abs(), 0.0)
        mean = self.accelerator.gather(gap.sum() / mask.sum().clamp(min=1)).mean()
        largest = self.accelerator.gather(gap.max()).max()
        self._metrics["train"]["rollout/logp_gap_mean"].append(mean.item())
        self._metrics["train"]["rollout/logp_gap_max"].append(largest.item())

    # Checkpoints

    def _save_rng_state(self, output_dir: str) -> None:
        """Keep the answers of an unfinished round too, so that a resumed run goes on with them."""
        is_open = self._step % self._round_length != 0
        os.makedirs(output_dir, exist_ok=True)
        path = os.path.join(output_dir, ROLLOUT_FILE.format(self.accelerator.process_index))
        torch.save({"step": self._step, "inputs": self._buffered_inputs if is_open else None}, path)
        super()._save_rng_state(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: Optional[str]) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = os.path.join(checkpoint, ROLLOUT_FILE.format(self.accelerator.process_index))
        if not os.path.isfile(path):
            raise ValueError(
                f"`resume_from_checkpoint` must hold the answers of every process, but {path} is missing; resume with "
                "as many processes as the run had."
            )
        saved = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self._step, self._buffered_inputs = saved["step"], saved["inputs"]


class _EpochSampler(RepeatSampler):
    """TRL's sampler with a new order in every epoch, by the seed and the number of the epoch."""

    def __init__(self, sampler: RepeatSampler, seed: int, epoch: Callable[[], int]):
        self.__dict__.update(vars(sampler))
        self.run_seed, self.epoch = seed, epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(row_seed(self.run_seed, self.epoch(), 0))
        return super().__iter__()


def _check_columns(data: Any, name: str, reward_funcs: list[Any]) -> None:
    """Refuse a data set without the prompts, or without a column that a reward function cannot do without."""
    if isinstance(data, dict):
        for part, rows in data.items():
            _check_columns(rows, f"{name}[{part!r}]", reward_funcs)
        return
    if data is None and name == "train_dataset":
        raise ValueError("`train_dataset` must be given, got None; pass a data set with the column `prompt`.")
    columns = getattr(data, "column_names", None)
    if columns is None:
        return
    needed = {"prompt": "the trainer"}
    for function in reward_funcs:
        if inspect.isfunction(function):
            given = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
            for parameter in inspect.signature(function).parameters.values():
                is_required = parameter.default is parameter.empty and parameter.kind not in (
                    parameter.VAR_KEYWORD,
                    parameter.VAR_POSITIONAL,
                )
                if is_required and parameter.name not in given:
                    needed[parameter.name] = f"the reward `{function.__name__}`"
    for column, user in needed.items():
        if column not in columns:
            raise ValueError(
                f"`{name}` must have the column `{column}`, which {user} reads, got {', '.join(columns)}; add it."
            )


def _checked(function: Any) -> Any:
    """A reward function that refuses what is no finite number; None stays, it leaves an answer out."""
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        return function

    @wraps(function)
    def checked(*positional: Any, **columns: Any) -> Any:
        rewards = function(*positional, **columns)
        for reward in rewards:
            if reward is not None and not math.isfinite(reward):
                raise ValueError(
                    f"The reward `{function.__name__}` must return finite numbers, got {reward}; return None for an "
                    "answer that it cannot judge."
                )
        return rewards

    return checked
