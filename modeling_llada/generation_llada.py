"""Text by diffusion: the block loop and the step loop behind `generate` and `infill`.

The loops know neither the noise nor the model's inside: they call `self(...)` for logits and a `Proposer` for
candidates, and are the only place that writes into the canvas.

Shape legend: B rows of the call, R rows still active, T canvas, L block, K positions scored, V vocabulary.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import ModelOutput

from .canvas_llada import Block, Canvas, make_blocks, make_windows
from .generation_config_llada import LLaDAGenerationConfig
from .packing_llada import packed_weights
from .plan_llada import Plan
from .prompt_llada import check_no_masks, check_prompt
from .unmasking_llada import Generators, draw_uniform, guide, least_confident, schedule_share


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


class LLaDAGenerationMixin(GenerationMixin):
    """Generation for a model that maps ids with masks to logits.

    The class that uses it offers `config` (token ids, `max_sequence_length`, `embedding_size`) and
    `self(input_ids, attention_mask=, position_ids=, past_key_values=, logits_positions=, logits_window=).logits`.
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
            Prompt and answer, padded after an end-of-text token, int64 [batch, prompt + max_new_tokens] (up to the last
            block that was needed, if `max_new_tokens` is None); or a `LLaDAGenerationOutput`.

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
        check_no_masks(input_ids, config.mask_token_id)
        # 2. Build the canvas.
        start = input_ids.shape[1]
        end = start + (config.max_new_tokens or self._longest_answer(config, start))
        ids = F.pad(input_ids, (0, end - start), value=config.mask_token_id)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (0, end - start), value=True)
        canvas = Canvas.build(ids, config.mask_token_id, attention_mask, generator, answer_start=start)
        # 3. Make the parts.
        windows = make_windows(start, end, config.block_length)
        blocks = make_blocks(windows, config.steps, is_scheduled=config.remask_rate > 0)
        num_layers = self.config.num_hidden_layers
        plan = Plan.make(canvas, config, num_layers, logits_processor, stopping_criteria, streamer)
        # 4. to 8.
        return self._denoise(canvas, plan, blocks)

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
        last; without `block_length` among the arguments, everything is one block. Without `steps`, every pass commits
        one token. Rows may hold different numbers of masks.

        Args:
            input_ids: text with masks; int64 [batch, seq].
            attention_mask: nonzero at valid positions; [batch, seq]. None: no padding.
            generation_config, logits_processor, generator, options: as for `generate`. The options `max_new_tokens`,
                `max_length`, `stop_at_eos`, `freeze_prompt` and `suffix_window` have no meaning here and raise.
            streamer: as for `generate`; every draft is the whole text, and only the filled text is final.

        Returns:
            The filled ids, int64 [batch, seq], or a `LLaDAGenerationOutput`.

        Raises:
            ValueError: as `generate`, and if there is no mask token or nothing else.
        """
        for name in ("max_new_tokens", "gen_length", "max_length", "stop_at_eos", "freeze_prompt", "suffix_window"):
            if name in options:
                raise ValueError(f"`{name}` has no meaning for `infill`, which fills the given masks; leave it out.")
        defaults: dict[str, Any] = {"stop_at_eos": False, "steps": None, "freeze_prompt": False, "suffix_window": None}
        # A checkpoint whose answers grow sets no length; the text to be filled in has one.
        defaults |= {"max_new_tokens": 1, "max_length": None}
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
        windows = [w for w in make_windows(start, end, block_length) if is_masked[:, slice(*w)].any()]
        blocks = make_blocks(windows, config.steps, is_scheduled=config.remask_rate > 0)
        plan = Plan.make(canvas, config, self.config.num_hidden_layers, logits_processor, streamer=streamer)
        return self._denoise(canvas, plan, blocks)

    def _longest_answer(self, config: LLaDAGenerationConfig, prompt_length: int) -> int:
        """Room for an answer that grows until it ends."""
        max_length = config.max_length or self.config.max_sequence_length
        if max_length <= prompt_length:
            raise ValueError(
                f"`max_length` must leave room for an answer after the prompt's {prompt_length} tokens, got "
                f"{max_length}; pass a larger one, or `max_new_tokens`."
            )
        return max_length - prompt_length

    def _settle_options(
        self, generation_config: Optional[GenerationConfig], options: dict[str, Any]
    ) -> LLaDAGenerationConfig:
        """Arguments over `generation_config` over the model's own; ids nobody gave come from the model's config."""
        config = self.generation_config
        if generation_config is not None:
            config = LLaDAGenerationConfig.from_generation_config(generation_config)
        return config.updated(**options).completed(self.config)

    def _check_prompt(
        self, input_ids: Optional[Tensor], attention_mask: Optional[Tensor], config: LLaDAGenerationConfig
    ) -> Optional[Tensor]:
        special_ids = (config.mask_token_id, config.pad_token_id)
        return check_prompt(input_ids, attention_mask, self.config.embedding_size, *special_ids)

    def _denoise(self, canvas: Canvas, plan: Plan, blocks: list[Block]) -> Union[Tensor, LLaDAGenerationOutput]:
        """Fill the canvas block by block: steps 4 to 8 of `generate`."""
        end = canvas.ids.shape[1]
        with packed_weights(self, plan.config.packs_weights):
            for start, end, num_steps in blocks:
                self._denoise_block(canvas, plan, start, end, num_steps)
                plan.reporter.block_done(end)
                if plan.stopping_criteria and canvas.is_alive.any():
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

    def _denoise_block(
        self, canvas: Canvas, plan: Plan, start: int, end: int, num_steps: Union[int, list[int], None]
    ) -> None:
        """Denoise columns start..end-1 in at most `num_steps` passes, which may differ between rows.

        None is as many as the tokens need.
        """
        config = plan.config
        canvas.start_block(start, end, num_steps)
        num_columns = plan.windows.visible_end(end, canvas.ids.shape[1])
        plan.windows.start_block(canvas.rows, num_columns)
        step = 0
        while len(canvas.rows):
            # 4. Share the masks over the steps left.
            is_masked = canvas.is_masked(start, end)
            num_masked = is_masked.sum(-1)
            steps_left = None if canvas.num_steps is None else canvas.num_steps[canvas.rows] - step
            at_least = torch.ones_like(num_masked) if steps_left is None else schedule_share(num_masked, steps_left)
            # 5. Run the model.
            logits = self._score(canvas, plan, is_masked, step, start, end, num_columns)
            # 6. Choose candidates and commit the most confident.
            candidates, confidence, entropies = plan.proposer(logits, *self._draws(canvas, plan, is_masked))
            confidence = _on_grid(confidence, is_masked, -torch.inf)
            is_committed = plan.rule(confidence, at_least, _on_grid(entropies, is_masked, 0.0))
            canvas.commit(start, end, is_committed, _on_grid(candidates, is_masked, 0), confidence)
            if config.remask_rate:
                earlier = canvas.confidence[canvas.rows, start:end].masked_fill(is_committed, torch.inf)
                is_doubted = least_confident(earlier, config.remask_rate) & (steps_left > 1)[:, None]
                canvas.mask_again(start, end, is_doubted)
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
        is_scored = F.pad(is_masked, (start - first, last - end))
        if cfg_scale > 0:
            ids = torch.cat((ids, ids.masked_fill(canvas.is_given[rows, first:last], canvas.mask_token_id)))
            is_scored = torch.cat((is_scored, is_scored))
            attention_mask = None if attention_mask is None else attention_mask.repeat(2, 1)
            position_ids = None if position_ids is None else position_ids.repeat(2, 1)
        if position_ids is None and cache is not None:
            position_ids = torch.arange(first, last, device=ids.device)[None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs |= {"past_key_values": cache, "logits_window": (start - first, end - first)}
        if plan.config.compile:
            # Selecting masked positions inside would give every step its own shape.
            model_class: Any = type(self)
            logits = compiled_forward(model_class)(self, **inputs).logits
            logits = logits[is_scored[:, start - first : end - first]]
        else:
            logits = self(**inputs, logits_positions=is_scored).logits
        if cfg_scale > 0:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, cfg_scale)
        if plan.logits_processor:
            logits = plan.logits_processor(canvas.ids[rows][is_masked.nonzero()[:, 0]], logits)
        return logits

    def _draws(self, canvas: Canvas, plan: Plan, is_masked: Tensor) -> tuple[Optional[Tensor], Optional[Tensor]]:
        """Uniforms for the candidates and for a random order, at the masked positions, where they are needed.

        A row draws for a whole block at every step, also in a shorter last one, so that its numbers depend neither on
        what its neighbours commit nor on the lengths of their blocks.
        """
        is_masked = F.pad(is_masked, (0, max(0, plan.config.longest_block - is_masked.shape[1])))
        candidate_draws = self._draw(canvas, is_masked) if plan.config.samples else None
        order_draws = self._draw(canvas, is_masked) if plan.config.remasking == "random" else None
        return candidate_draws, order_draws

    @staticmethod
    def _draw(canvas: Canvas, is_masked: Tensor) -> Tensor:
        """One uniform per masked position, drawn for all positions."""
        return draw_uniform(tuple(is_masked.shape), canvas.active_generator(), is_masked.device)[is_masked]


@functools.lru_cache
def compiled_forward(model_class: Any) -> Callable:
    """The compiled `forward` of a model class, to be called with the model; models of a class share its graphs."""
    return torch.compile(model_class.forward)


def _on_grid(values: Optional[Tensor], is_masked: Tensor, fill: float) -> Optional[Tensor]:
    """Put values of the masked positions into [batch, block], `fill` elsewhere."""
    if values is None:
        return None
    return torch.full(is_masked.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(is_masked, values)
