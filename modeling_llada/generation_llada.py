"""Text by diffusion: the block loop and the step loop behind `generate` and `infill`.

The loops know neither the noise nor the model's inside: they call `self(...)` for logits and a `Proposer` for
candidates, and are the only place that writes into the canvas.

Shape legend: B rows of the call, R rows still active, T canvas, L block, K positions scored, V vocabulary.
"""

import functools
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import ModelOutput, logging

from .cache_llada import WindowPolicy
from .canvas_llada import Block, Canvas, Reporter, make_blocks
from .diffusion_llada import Generators, draw_uniform
from .generation_config_llada import LLaDAGenerationConfig
from .unmasking_llada import CommitRule, Proposer, least_confident, schedule_share

logger = logging.get_logger(__name__)


@dataclass
class LLaDAGenerationOutput(ModelOutput):
    """What `generate` and `infill` return with `return_dict_in_generate=True`.

    Args:
        sequences: prompt and answer; int64 [batch, seq].
        num_forward_passes: passes of the model that each row took part in (guidance does not count twice);
            int64 [batch].
        tokens_per_forward: tokens committed per pass; float32 [batch].
        history: with `output_history`, the canvas before the first step and after each one; int64 [batch, seq] each.
    """

    sequences: Optional[Tensor] = None
    num_forward_passes: Optional[Tensor] = None
    tokens_per_forward: Optional[Tensor] = None
    history: Optional[tuple[Tensor, ...]] = None


@dataclass
class Plan:
    """The parts of one call, made once.

    Attributes:
        config: the settled options.
        blocks: (first column, end column, denoising steps or None), from left to right.
        proposer: logits to candidates and confidences.
        rule: confidences to the tokens to commit.
        windows: which columns each pass computes, and the cache that serves the others.
        logits_processor: further processors, called as (canvas of each scored position, logits).
        stopping_criteria: called after every block as (ids up to the block's end, None).
        reporter: told of every step and every finished block.
        num_passes: passes that each row took part in so far; int64 [batch].
        num_committed: tokens committed in each row so far; int64 [batch].
    """

    config: LLaDAGenerationConfig
    blocks: list[Block]
    proposer: Proposer
    rule: CommitRule
    windows: WindowPolicy
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    reporter: Reporter
    num_passes: Tensor
    num_committed: Tensor


class LLaDAGenerationMixin(GenerationMixin):
    """Generation for a model that maps ids with masks to logits.

    The class that uses it offers `config` (token ids, `max_sequence_length`, `embedding_size`) and
    `self(input_ids, attention_mask=, position_ids=, logits_positions=, logits_window=).logits`.
    """

    # transformers reads a plain `GenerationConfig` from any folder and assigns it; the model then holds ours.
    @property
    def generation_config(self) -> LLaDAGenerationConfig:
        """The model's default options; a plain `GenerationConfig` is converted when it is assigned."""
        return self.__dict__["_generation_config"]

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.__dict__["_generation_config"] = LLaDAGenerationConfig.from_generation_config(config)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        generation_config: Optional[GenerationConfig] = None,
        logits_processor: Optional[LogitsProcessorList] = None,
        stopping_criteria: Optional[StoppingCriteriaList] = None,
        streamer: Optional[Any] = None,
        generator: Generators = None,
        **options: Any,
    ) -> Union[Tensor, LLaDAGenerationOutput]:
        """Answer prompts: append a canvas of masks and fill it block by block, the most confident tokens first.

        1. Settle the options: arguments over `generation_config` over the model's own; check them and the prompt.
        2. Build the canvas: prompts and `max_new_tokens` masks.
        3. Make the parts once: blocks, proposer, processors, stopping criteria.
        4. For each block, share its masks over its steps.
        5. In each step, run the model and compute logits for the block's masked positions, with guidance and
           processors.
        6. The proposer returns candidates with confidences; the most confident ones are written into the canvas.
        7. Report to the streamer; rows that are finished leave.
        8. Fill up finished rows with padding and return.

        Args:
            input_ids: prompts, padded on either side; int64 [batch, prompt].
            attention_mask: nonzero at prompt tokens; [batch, prompt]. None: no padding.
            generation_config: options in place of the model's.
            logits_processor: called as (ids [num_scored, seq], logits [num_scored, vocab]); one row per scored
                position with the canvas it stands in. The logits it returns are used.
            stopping_criteria: called after every block as (ids up to the block's end [active rows, length], None);
                a row for which one is true ends there.
            streamer: `put(prompt)` first, `put_draft(unfinished part of the canvas)` after every step if it has that
                method (transformers' `TextDiffusionStreamer`), `put(block)` for every finished block, `end()`.
            generator: source of all draws. A list with one generator per row makes a row's draws independent of its
                neighbours, so that a batch equals its rows run alone.
            options: any option of `LLaDAGenerationConfig`.

        Returns:
            Prompt and answer, padded after an end-of-text token, int64 [batch, prompt + max_new_tokens]; or a
            `LLaDAGenerationOutput`.

        Raises:
            ValueError: for unknown or contradictory options, a prompt that is empty, holds masks (use `infill`) or
                ids outside the vocabulary, a row of padding only, an id that an option needs and nobody gave.

        Not handled: `num_return_sequences` (repeat the prompt) and beams.

        Source: LLaDA (arXiv:2502.09992), Algorithms 4 and 5 and Eq. 16.

        Example:

        ```python
        >>> import torch
        >>> from modeling_llada import LLaDAConfig, LLaDAModelLM
        >>> config = LLaDAConfig(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=64, vocab_size=100,
        ...                      mask_token_id=99, eos_token_id=0, pad_token_id=0)
        >>> model = LLaDAModelLM(config).eval()
        >>> model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, steps=4, block_length=8).shape
        torch.Size([1, 11])

        ```
        """
        # 1. Settle the options.
        config = self._settle_options(generation_config, options)
        attention_mask = self._check_prompt(input_ids, attention_mask, config)
        if (input_ids == config.mask_token_id).any():
            raise ValueError(
                f"`input_ids` holds the mask token ({config.mask_token_id}); `generate` appends its own masks. "
                "To fill masks where they stand, call `infill`."
            )
        # 2. Build the canvas.
        start = input_ids.shape[1]
        end = start + (config.max_new_tokens or self._longest_answer(config, start))
        ids = F.pad(input_ids, (0, end - start), value=config.mask_token_id)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (0, end - start), value=True)
        canvas = Canvas.build(ids, config.mask_token_id, attention_mask, generator, answer_start=start)
        # 3. Make the parts.
        windows = [(first, min(first + config.block_length, end)) for first in range(start, end, config.block_length)]
        blocks = make_blocks(windows, config.steps)
        plan = self._make_plan(canvas, config, blocks, logits_processor, stopping_criteria, streamer)
        # 4. to 8.
        return self._denoise(canvas, plan)

    @torch.no_grad()
    def infill(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        generation_config: Optional[GenerationConfig] = None,
        logits_processor: Optional[LogitsProcessorList] = None,
        streamer: Optional[Any] = None,
        generator: Generators = None,
        **options: Any,
    ) -> Union[Tensor, LLaDAGenerationOutput]:
        """Fill every mask token where it stands; all other tokens stay as they are.

        The steps are those of `generate`. The blocks are windows of `block_length` columns from the first mask to the
        last; without `block_length` among the arguments, everything is one block. `steps` defaults to the largest
        number of masks in a row. Rows may hold different numbers of masks.

        Args:
            input_ids: text with masks; int64 [batch, seq].
            attention_mask: nonzero at valid positions; [batch, seq]. None: no padding.
            generation_config, logits_processor, generator, options: as for `generate`. The options `max_new_tokens`
                and `stop_at_eos` have no meaning here and raise.
            streamer: as for `generate`; every draft is the whole text, and only the filled text is final.

        Returns:
            The filled ids, int64 [batch, seq], or a `LLaDAGenerationOutput`.

        Raises:
            ValueError: as `generate`, and if there is no mask token or nothing else.
        """
        for name in ("max_new_tokens", "gen_length", "max_length", "stop_at_eos", "freeze_prompt", "suffix_window"):
            if name in options:
                raise ValueError(f"`{name}` has no meaning for `infill`, which fills the given masks; leave it out.")
        defaults = {"stop_at_eos": False, "steps": None, "freeze_prompt": False, "suffix_window": None}
        config = self._settle_options(generation_config, {**defaults, **options})
        attention_mask = self._check_prompt(input_ids, attention_mask, config)
        canvas = Canvas.build(input_ids, config.mask_token_id, attention_mask, generator)
        is_masked = canvas.is_masked(0, input_ids.shape[1])
        if not is_masked.any():
            raise ValueError(
                f"`input_ids` holds no mask token ({config.mask_token_id}); put it where text is to be filled in."
            )
        columns = is_masked.any(0).nonzero()[:, 0].tolist()
        start, end = columns[0], columns[-1] + 1
        block_length = config.block_length if "block_length" in options else end - start
        windows = [(first, min(first + block_length, end)) for first in range(start, end, block_length)]
        windows = [window for window in windows if is_masked[:, slice(*window)].any()]
        blocks = make_blocks(windows, config.steps)
        plan = self._make_plan(canvas, config, blocks, logits_processor, None, streamer)
        return self._denoise(canvas, plan)

    def _longest_answer(self, config: LLaDAGenerationConfig, prompt_length: int) -> int:
        """Room for an answer that grows until it ends."""
        max_length = config.max_length or self.config.max_sequence_length
        if max_length <= prompt_length:
            raise ValueError(
                f"`max_length` must leave room for an answer after the prompt's {prompt_length} tokens, got {max_length}; "
                "pass a larger one, or `max_new_tokens`."
            )
        return max_length - prompt_length

    def _settle_options(
        self, generation_config: Optional[GenerationConfig], options: dict[str, Any]
    ) -> LLaDAGenerationConfig:
        """Arguments over `generation_config` over the model's own; ids nobody gave come from the model's config."""
        config = self.generation_config
        if generation_config is not None:
            config = LLaDAGenerationConfig.from_generation_config(generation_config)
        config = config.updated(**options)
        for name in ("mask_token_id", "eos_token_id", "pad_token_id", "eot_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(self.config, name, None))
        needs = {
            "mask_token_id": "generation",
            "eos_token_id": "stop_at_eos" if config.stop_at_eos else "logits_eos_inf" if config.logits_eos_inf else None,
            "pad_token_id": "stop_at_eos" if config.stop_at_eos else None,
        }
        if config.confidence_eos_eot_inf:
            needs["eos_token_id"] = needs["eot_token_id"] = "confidence_eos_eot_inf"
        for name, reason in needs.items():
            if reason is not None and getattr(config, name) is None:
                raise ValueError(
                    f"`{name}` is needed for `{reason}`, but neither the call, nor the generation config, nor the "
                    f"model's config gives it; pass `{name}`."
                )
        return config

    def _check_prompt(
        self, input_ids: Optional[Tensor], attention_mask: Optional[Tensor], config: LLaDAGenerationConfig
    ) -> Optional[Tensor]:
        """Refuse ids that cannot be a prompt; return the padding mask as bool, or None if nothing is padded."""
        if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
            shape = None if input_ids is None else tuple(input_ids.shape)
            raise ValueError(f"`input_ids` must hold at least one token per row, int64 [batch, seq], got {shape}.")
        lowest, highest = int(input_ids.min()), int(input_ids.max())
        if lowest < 0 or highest >= self.config.embedding_size:
            raise ValueError(
                f"`input_ids` must lie in the vocabulary, 0..{self.config.embedding_size - 1}, got {lowest}..{highest}; "
                "was the text encoded with another model's tokenizer?"
            )
        if (input_ids == config.mask_token_id).all(-1).any():
            raise ValueError(
                "`input_ids` has a row that is nothing but mask tokens; give every row at least one real token, "
                "for instance the beginning-of-text token."
            )
        if attention_mask is None:
            self._warn_of_padding(input_ids, config)
            return None
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)}, got "
                f"{tuple(attention_mask.shape)}."
            )
        attention_mask = attention_mask.bool()
        is_empty = ~attention_mask.any(-1)
        if is_empty.any():
            raise ValueError(
                f"Row {int(is_empty.nonzero()[0])} of `attention_mask` is all padding; leave empty prompts out, or start "
                "them with the beginning-of-text token."
            )
        return None if attention_mask.all() else attention_mask

    def _warn_of_padding(self, input_ids: Tensor, config: LLaDAGenerationConfig) -> None:
        edges = input_ids[:, [0, -1]]
        if input_ids.shape[0] > 1 and config.pad_token_id is not None and (edges == config.pad_token_id).any():
            logger.warning_once(
                f"`input_ids` begins or ends with the padding token ({config.pad_token_id}) in some rows, and no "
                "`attention_mask` was given: padding is read as text. Pass the tokenizer's `attention_mask`."
            )

    def _make_plan(
        self,
        canvas: Canvas,
        config: LLaDAGenerationConfig,
        blocks: list[Block],
        logits_processor: Optional[LogitsProcessorList],
        stopping_criteria: Optional[StoppingCriteriaList],
        streamer: Optional[Any],
    ) -> Plan:
        last_ids = config.eos_token_ids + (config.eot_token_id,) if config.confidence_eos_eot_inf else ()
        proposer = Proposer(
            mask_token_id=config.mask_token_id,
            measure=config.remasking,
            needs_entropy=config.commit_rule.needs_entropy,
            warp=make_warpers(config) if config.samples else None,
            suppressed_ids=config.eos_token_ids if config.logits_eos_inf else (),
            last_ids=last_ids,
        )
        if stopping_criteria and config.pad_token_id is None:
            raise ValueError("`pad_token_id` is needed for `stopping_criteria`, to fill stopped rows; pass it.")
        return Plan(
            config=config,
            blocks=blocks,
            proposer=proposer,
            rule=config.commit_rule,
            windows=WindowPolicy(
                cache=config.cache,
                num_layers=self.config.num_hidden_layers,
                refresh_interval=config.refresh_interval,
                prompt_length=canvas.answer_start if config.freeze_prompt else 0,
                suffix_window=0 if config.max_new_tokens is None else config.suffix_window,
                num_copies=2 if config.cfg_scale > 0 else 1,
            ),
            logits_processor=LogitsProcessorList(logits_processor or ()),
            stopping_criteria=StoppingCriteriaList(stopping_criteria or ()),
            reporter=Reporter(canvas, streamer, config.output_history),
            num_passes=torch.zeros_like(canvas.rows),
            num_committed=torch.zeros_like(canvas.rows),
        )

    def _denoise(self, canvas: Canvas, plan: Plan) -> Union[Tensor, LLaDAGenerationOutput]:
        """Fill the canvas block by block: steps 4 to 8 of `generate`."""
        end = canvas.ids.shape[1]
        for start, end, num_steps in plan.blocks:
            self._denoise_block(canvas, plan, start, end, num_steps)
            plan.reporter.block_done(end)
            if plan.stopping_criteria:
                canvas.rows = canvas.is_alive.nonzero()[:, 0]
                is_stopped = plan.stopping_criteria(canvas.ids[canvas.rows, :end], None)
                canvas.finish(is_stopped.long() * end, plan.config.pad_token_id)
            if not canvas.is_alive.any():
                break
        # 8. Padding was filled in when rows ended; a canvas that grows ends with the last block.
        sequences = canvas.ids[:, :end] if plan.config.max_new_tokens is None else canvas.ids
        plan.reporter.all_done()
        if not plan.config.return_dict_in_generate:
            return sequences
        history = plan.reporter.history
        return LLaDAGenerationOutput(
            sequences=sequences,
            num_forward_passes=plan.num_passes,
            tokens_per_forward=plan.num_committed / plan.num_passes,
            history=None if history is None else tuple(history),
        )

    def _denoise_block(self, canvas: Canvas, plan: Plan, start: int, end: int, num_steps: Optional[int]) -> None:
        """Denoise columns start..end-1 in at most `num_steps` passes (None: as many as the tokens need)."""
        config = plan.config
        if config.remask_rate and num_steps is None:
            num_steps = end - start
        canvas.start_block(start, end)
        num_columns = plan.windows.visible_end(end, canvas.ids.shape[1])
        plan.windows.start_block(canvas.rows, num_columns)
        step = 0
        while len(canvas.rows):
            # 4. Share the masks over the steps left.
            is_masked = canvas.is_masked(start, end)
            num_masked = is_masked.sum(-1)
            at_least = torch.ones_like(num_masked) if num_steps is None else schedule_share(num_masked, num_steps - step)
            # 5. Run the model.
            logits = self._score(canvas, plan, is_masked, step, start, end, num_columns)
            # 6. Choose candidates and commit the most confident.
            candidates, confidence, entropies = plan.proposer(logits, *self._draws(canvas, plan, is_masked))
            confidence = _on_grid(confidence, is_masked, -torch.inf)
            is_committed = plan.rule(confidence, at_least, _on_grid(entropies, is_masked, 0.0))
            canvas.commit(start, end, is_committed, _on_grid(candidates, is_masked, 0), confidence)
            if config.remask_rate and step + 1 < num_steps:
                earlier = canvas.confidence[canvas.rows, start:end].masked_fill(is_committed, torch.inf)
                canvas.mask_again(start, end, least_confident(earlier, config.remask_rate))
            plan.num_passes[canvas.rows] += 1
            plan.num_committed[canvas.rows] += num_masked - canvas.is_masked(start, end).sum(-1)
            plan.windows.pass_done()
            # 7. Report, and let rows sit out that have nothing left to do.
            if config.stop_at_eos:
                canvas.finish(canvas.ends(config.eos_token_ids, end), config.pad_token_id)
            plan.reporter.step_done()
            is_kept = canvas.leave_block(start, end)
            if is_kept is not None:
                plan.windows.keep(is_kept)
            step += 1

    def _score(
        self, canvas: Canvas, plan: Plan, is_masked: Tensor, step: int, start: int, end: int, num_columns: int
    ) -> Tensor:
        """Logits of the block's masked positions, guided and processed; [num_scored, vocab]."""
        rows, cfg_scale = canvas.rows, plan.config.cfg_scale
        first, last, cache = plan.windows.next_window(step, start, end, num_columns)
        ids = canvas.ids[rows, first:last]
        attention_mask = None if canvas.attention_mask is None else canvas.attention_mask[rows, :num_columns]
        position_ids = None if canvas.position_ids is None else canvas.position_ids[rows, first:last]
        if position_ids is None and cache is not None:
            position_ids = torch.arange(first, last, device=ids.device)[None]
        is_scored = F.pad(is_masked, (start - first, last - end))
        if cfg_scale > 0:
            ids = torch.cat((ids, ids.masked_fill(canvas.is_given[rows, first:last], canvas.mask_token_id)))
            is_scored = torch.cat((is_scored, is_scored))
            if canvas.attention_mask is not None:
                attention_mask, position_ids = attention_mask.repeat(2, 1), position_ids.repeat(2, 1)
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs |= {"past_key_values": cache, "logits_window": (start - first, end - first)}
        if plan.config.compile:
            # Selecting masked positions inside would give every step its own shape.
            logits = compiled_forward(type(self))(self, **inputs).logits
            logits = logits[is_scored[:, start - first : end - first]]
        else:
            logits = self(**inputs, logits_positions=is_scored).logits
        if cfg_scale > 0:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + (1 + cfg_scale) * (conditional - unconditional)
        if plan.logits_processor:
            logits = plan.logits_processor(canvas.ids[rows][is_masked.nonzero()[:, 0]], logits)
        return logits

    def _draws(self, canvas: Canvas, plan: Plan, is_masked: Tensor) -> tuple[Optional[Tensor], Optional[Tensor]]:
        """Uniforms for the candidates and for a random order, at the masked positions, where they are needed."""
        candidate_draws = self._draw(canvas, is_masked) if plan.config.samples else None
        order_draws = self._draw(canvas, is_masked) if plan.config.remasking == "random" else None
        return candidate_draws, order_draws

    @staticmethod
    def _draw(canvas: Canvas, is_masked: Tensor) -> Tensor:
        """One uniform per masked position. Every row draws for its whole block, so that rows stay independent."""
        return draw_uniform(tuple(is_masked.shape), canvas.active_generator(), is_masked.device)[is_masked]


@functools.lru_cache
def compiled_forward(model_class: type) -> Callable:
    """The compiled `forward` of a model class, to be called with the model; models of a class share its graphs."""
    return torch.compile(model_class.forward)


def make_warpers(config: LLaDAGenerationConfig) -> LogitsProcessorList:
    """The distribution to draw from: temperature, then top-k, then top-p, as transformers defines them."""
    warpers = LogitsProcessorList()
    if config.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.top_k is not None:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    return warpers


def _on_grid(values: Optional[Tensor], is_masked: Tensor, fill: float) -> Optional[Tensor]:
    """Put values of the masked positions into [batch, block], `fill` elsewhere."""
    if values is None:
        return None
    return torch.full(is_masked.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(is_masked, values)
