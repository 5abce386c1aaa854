"""Text by diffusion: the canvas, the loop, and `generate` and `infill` on top of it.

The loop knows neither the noise nor the model's inside: it calls `self(...)` for logits, a `Proposer` for candidates
and a `CommitRule` for the tokens to commit, and is the only place that writes into the canvas.

Shape legend: B rows of the call, R rows that take part in the next pass, T canvas, L block, K positions scored,
V vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NoReturn, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import ModelOutput, logging

from .cache_llada import Rows, WindowPolicy
from .generation_config_llada import LLaDAGenerationConfig
from .unmasking_llada import (
    Generators,
    Proposer,
    broken_logits,
    draw_uniform,
    guide,
    least_confident,
    process,
    schedule_share,
)

logger = logging.get_logger(__name__)

# First column, end column, and denoising steps: for all rows, for each (int64 [batch]), or None for as many as needed.
Block = tuple[int, int, Union[int, Tensor, None]]


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

    The class that uses it offers `config` (token ids, `max_sequence_length`, `embedding_size`, `num_hidden_layers`),
    `self(input_ids, attention_mask=, position_ids=, past_key_values=, logits_positions=, logits_window=).logits`, and
    the two attributes below.
    """

    # Made by keyword from the options of a call, see `make_proposer`.
    proposer_class: type[Proposer]
    # The context of a call, with the option `pack_weights` as its argument.
    prepacked_weights: Callable[..., AbstractContextManager[None]]

    # transformers reads a plain `GenerationConfig` from any folder and assigns it; the model then holds ours.
    @property
    def generation_config(self) -> LLaDAGenerationConfig:
        """The model's default options; a plain `GenerationConfig` is converted when it is assigned."""
        return self.__dict__["_generation_config"]

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.__dict__["_generation_config"] = LLaDAGenerationConfig.from_generation_config(config)

    def prepare_options(
        self, generation_config: Optional[GenerationConfig], options: dict[str, Any]
    ) -> LLaDAGenerationConfig:
        """The options of one call: `options` over `generation_config` over the model's own, checked and completed.

        What every caller of transformers may pass is taken: `tokenizer` (not needed), `use_cache` (`True` is ignored
        with a warning), and arguments that are not supported with a value that changes nothing, such as `num_beams=1`.

        Raises:
            ValueError: as `LLaDAGenerationConfig.completed`, and for a model whose soft prompt would be ignored.
        """
        owner = getattr(self.prepare_inputs_for_generation, "__self__", self)
        if owner is not self:
            raise ValueError(
                f"`prepare_inputs_for_generation` was replaced (by `{type(owner).__name__}`), as PEFT does for soft "
                "prompts: prompt tuning, prefix tuning and p-tuning. Generation by diffusion does not call it, so the "
                "soft prompt would be ignored; use another adapter, such as LoRA."
            )
        if options.get("use_cache"):
            logger.warning_once(
                "`use_cache=True` has no meaning for masked diffusion and is not used; the option `cache` keeps keys "
                "and values."
            )
        options = {name: value for name, value in options.items() if name not in ("tokenizer", "use_cache")}
        config = self.generation_config
        if generation_config is not None:
            config = LLaDAGenerationConfig.from_generation_config(generation_config)
        config = config.completed(self.config, **options)
        if config.max_new_tokens is None:
            config.suffix_window = 0  # the canvas grows block by block
        if config.compile:
            config.pack_weights = False  # a compiled model brings its own kernels
        return config

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
        inputs: Optional[Tensor] = None,
        **options: Any,
    ) -> Union[Tensor, LLaDAGenerationOutput]:
        """Answer prompts: append a canvas of masks and fill it block by block, the most confident tokens first.

        1. Settle the options: arguments over `generation_config` over the model's own; check them and the prompt.
        2. Build the canvas: prompts and masks, the answer cut into blocks, the steps shared over them.
        3. Make the parts once: proposer, commit rule, cache, processors, stopping criteria, reporter.
        4. For each block, share its masks over its steps.
        5. In each step, run the model and compute logits for the block's masked positions, with guidance and
           processors.
        6. Choose candidates with confidences; write the most confident ones into the canvas.
        7. Let rows without anything left to do leave, filled up with padding if they have ended; report.
        8. Return the canvas.

        Args:
            input_ids: prompts, padded on either side; integers [batch, prompt], a tensor or lists of one length.
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
            inputs: transformers' name of `input_ids`.
            options: any option of `LLaDAGenerationConfig`; see `prepare_options` for what else is taken.

        Returns:
            Prompt and answer, padded after an end-of-text token, int64 [batch, prompt + max_new_tokens] (up to the last
            block that was needed, if `max_new_tokens` is None); or a `LLaDAGenerationOutput`.

        Raises:
            ValueError: for unknown or contradictory options, a prompt that is empty, holds masks (use `infill`) or
                ids outside the vocabulary, a row of padding only, a required token id that is not set anywhere, and
                logits that are not finite or leave nothing to choose.

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
        # 1. Settle the options; check the prompt.
        config = self.prepare_options(generation_config, options)
        if stopping_criteria and config.pad_token_id is None:
            raise ValueError("`pad_token_id` is needed for `stopping_criteria`, to fill stopped rows; pass it.")
        if inputs is not None and input_ids is not None:
            raise ValueError("`inputs` and `input_ids` are the same argument; pass one of them.")
        input_ids = read_ids(input_ids if inputs is None else inputs, self.device)
        attention_mask = check_prompt(input_ids, attention_mask, config, self.config.embedding_size)
        # 2. Build the canvas: the prompts and the answer's blocks of masks.
        start = input_ids.shape[1]
        blocks = answer_blocks(config, start, self.config.max_sequence_length)
        num_masks = blocks[-1][1] - start
        ids = F.pad(input_ids, (0, num_masks), value=config.mask_token_id)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (0, num_masks), value=True)
        canvas = Canvas(ids, config.mask_token_id, attention_mask, generator, answer_start=start)
        with self.prepacked_weights(config.pack_weights):
            return self.denoise(canvas, blocks, config, logits_processor, stopping_criteria, streamer)

    def denoise(
        self,
        canvas: "Canvas",
        blocks: list[Block],
        config: LLaDAGenerationConfig,
        logits_processor: Optional[LogitsProcessorList] = None,
        stopping_criteria: Optional[StoppingCriteriaList] = None,
        streamer: Optional[Any] = None,
    ) -> Union[Tensor, LLaDAGenerationOutput]:
        """Fill the blocks of a canvas from left to right: steps 3 to 8 of `generate`, which explains the arguments."""
        # 3. Make the parts once.
        proposer, rule = make_proposer(self.proposer_class, config), config.commit_rule
        windows = None
        if config.cache != "none":
            copies, frozen = 1 + (config.cfg_scale > 0), canvas.answer_start if config.freeze_prompt else 0
            windows = WindowPolicy(config.cache, self.config.num_hidden_layers, config.refresh_interval, frozen, copies)
        processors = LogitsProcessorList(logits_processor or ())
        criteria = StoppingCriteriaList(stopping_criteria or ())
        reporter = None
        if streamer is not None or config.output_history:
            reporter = Reporter(canvas, streamer, config.output_history)
        eos_ids = torch.tensor(config.eos_token_ids, device=canvas.ids.device) if config.stop_at_eos else None
        draw_width = min(config.block_length, config.max_new_tokens or config.block_length)
        for start, end, num_steps in blocks:
            step, is_masked = 0, canvas.start_block(start, end)
            while len(is_masked):
                # 4. Share the masks over the steps that are left; without `steps`, every pass commits at least one.
                at_least: Union[int, Tensor] = 1
                steps_left = None
                if num_steps is not None:
                    steps_left = (num_steps if isinstance(num_steps, int) else num_steps[canvas.rows]) - step
                    at_least = schedule_share(is_masked.sum(-1), steps_left)
                # 5. Run the model.
                logits = self._score(canvas, config, windows, processors, is_masked, step, start, end)
                # 6. Choose candidates, commit the most confident ones, mask again what is doubted.
                candidate_draws = canvas.draw(is_masked, draw_width) if config.samples else None
                order_draws = canvas.draw(is_masked, draw_width) if config.remasking == "random" else None
                candidates, confidence, entropies = proposer(logits, candidate_draws, order_draws)
                confidence = _on_grid(confidence, is_masked, -torch.inf)
                is_committed = rule(confidence, at_least, _on_grid(entropies, is_masked, 0.0))
                block = canvas.commit(start, end, is_masked, candidates, is_committed)
                is_masked, is_broken = is_masked ^ is_committed, confidence.isnan()
                if config.remask_rate:
                    is_masked |= canvas.mask_again(start, end, is_committed, confidence, config.remask_rate, steps_left)
                if config.freeze_prompt:
                    windows.keep_prompt()
                # 7. Let rows leave that have nothing left to do; report.
                step += 1
                is_masked, is_kept = canvas.end_pass(block, is_masked, is_broken, start, step, eos_ids, config)
                if is_kept is not None and is_broken.any():
                    raise broken_logits(logits.dtype)
                if windows is not None and is_kept is not None:
                    windows.keep(is_kept)
                if reporter is not None:
                    reporter.step_done()
            if reporter is not None:
                reporter.block_done(end)
            if criteria:
                canvas.stop_rows(criteria, end, config.pad_token_id)
            if not canvas.is_alive.any():
                break
        # 8. Return the canvas; one that grows ends with the last block.
        sequences = canvas.ids[:, :end] if config.max_new_tokens is None else canvas.ids
        history = None if reporter is None else reporter.all_done()
        if not config.return_dict_in_generate:
            return sequences
        return LLaDAGenerationOutput(
            sequences=sequences,
            num_forward_passes=canvas.num_passes,
            tokens_per_forward=canvas.num_committed / canvas.num_passes,
            history=history,
        )

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
            input_ids: text with masks; integers [batch, seq], a tensor or lists of one length.
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
        config = self.prepare_options(generation_config, {**defaults, **options})
        input_ids = read_ids(input_ids, self.device)
        attention_mask = check_prompt(input_ids, attention_mask, config, self.config.embedding_size, holds_masks=True)
        canvas = Canvas(input_ids, config.mask_token_id, attention_mask, generator)
        is_masked = input_ids == config.mask_token_id
        if attention_mask is not None:
            is_masked &= attention_mask
        if not is_masked.any():
            raise ValueError(
                f"`input_ids` holds no mask token ({config.mask_token_id}); put it where text is to be filled in."
            )
        columns = is_masked.any(0).nonzero()[:, 0].tolist()
        start, end = columns[0], columns[-1] + 1
        length = config.block_length if "block_length" in options else end - start
        spans = [(first, min(first + length, end)) for first in range(start, end, length)]
        blocks = make_blocks([span for span in spans if is_masked[:, slice(*span)].any()], config)
        with self.prepacked_weights(config.pack_weights):
            return self.denoise(canvas, blocks, config, logits_processor, streamer=streamer)

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Transformers' continuous batching decodes from left to right; see `generate_many`."""
        raise NotImplementedError(
            "`generate_batch`, `init_continuous_batching` and `continuous_batching_context_manager` decode from left "
            "to right with a paged cache, which masked diffusion does not have; use `generate_many`, which gives the "
            "place of a finished row to the next prompt."
        )

    init_continuous_batching = continuous_batching_context_manager = generate_batch

    def _score(
        self,
        canvas: "Canvas",
        config: LLaDAGenerationConfig,
        windows: Optional[WindowPolicy],
        processors: LogitsProcessorList,
        is_masked: Tensor,
        step: int,
        start: int,
        end: int,
    ) -> Tensor:
        """Logits of the block's masked positions, guided and processed; [num_scored, vocab]."""
        rows, num_columns = canvas.rows, canvas.ids.shape[1]
        if config.suffix_window is not None:
            num_columns = min(num_columns, end + config.suffix_window)
        first, last, cache = 0, num_columns, None
        if windows is not None:
            first, last, cache = windows.next_window(step, start, end, num_columns, rows, canvas.ids.device)
        ids = canvas.ids[rows, first:last]
        attention_mask = None if canvas.attention_mask is None else canvas.attention_mask[rows, :num_columns]
        position_ids = None if canvas.position_ids is None else canvas.position_ids[rows, first:last]
        is_scored = F.pad(is_masked, (start - first, last - end))
        if config.cfg_scale > 0:
            ids = torch.cat((ids, ids.masked_fill(canvas.is_given[rows, first:last], canvas.mask_token_id)))
            is_scored = torch.cat((is_scored, is_scored))
            attention_mask = None if attention_mask is None else attention_mask.repeat(2, 1)
            position_ids = None if position_ids is None else position_ids.repeat(2, 1)
        if position_ids is None and cache is not None:
            position_ids = torch.arange(first, last, device=ids.device)[None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs |= {"past_key_values": cache, "logits_window": (start - first, end - first)}
        if config.compile:
            # Selecting masked positions inside would give every step its own shape.
            model_class: Any = type(self)
            logits = compiled_forward(model_class)(self, **inputs).logits
            logits = logits[is_scored[:, start - first : end - first]]
        else:
            logits = self(**inputs, logits_positions=is_scored).logits
        if config.cfg_scale > 0:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, config.cfg_scale)
        return process(processors, canvas.ids[rows][is_masked.nonzero()[:, 0]], logits) if processors else logits


@functools.lru_cache
def compiled_forward(model_class: Any) -> Callable:
    """The compiled `forward` of a model class, to be called with the model; models of a class share its graphs."""
    return torch.compile(model_class.forward)


class Canvas:
    """The ids being denoised, with what belongs to each row, and the one owner of which rows take part.

    Args:
        ids: prompts and masks; int64 [batch, seq]. Not written to: the canvas is a copy.
        mask_token_id: id of the mask.
        attention_mask: bool [batch, seq], or None if no row is padded.
        generator: source of the draws: one generator, a list with one per row, or None.
        answer_start: first column of the answer; None if masks may stand anywhere (infilling).
        position_ids: int64 [batch, seq]. None counts valid tokens only, so that padding on either side, or between
            prompt and answer, changes nothing.
        is_given: tokens that were there before the first step, which guidance masks out; bool [batch, seq]. None takes
            all that is not masked.

    Attributes:
        rows: rows that take part in the next pass: all (a slice, so that indexing them is free), or int64 [active].
        is_alive: rows whose end has not been found; bool [batch].
        num_passes: passes of the model that each row took part in; int64 [batch]. Complete once the row leaves.
        num_committed: tokens committed in each row; int64 [batch]. Complete once the row leaves.
        confidence: of the tokens that the block's earlier steps committed, inf elsewhere; float32 [active, block]. Kept
            only where tokens are masked again.

    Raises:
        ValueError: if a list of generators is not one per row.
    """

    def __init__(
        self,
        ids: Tensor,
        mask_token_id: int,
        attention_mask: Optional[Tensor] = None,
        generator: Any = None,
        answer_start: Optional[int] = None,
        position_ids: Optional[Tensor] = None,
        is_given: Optional[Tensor] = None,
    ):
        if isinstance(generator, (list, tuple)) and len(generator) != ids.shape[0]:
            raise ValueError(
                f"`generator` must be one torch.Generator or a list with one per row ({ids.shape[0]}), "
                f"got a list of {len(generator)}."
            )
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.ids, self.mask_token_id, self.answer_start = ids.clone(), mask_token_id, answer_start
        self.attention_mask, self.position_ids, self.generator = attention_mask, position_ids, generator
        self.is_given = ids != mask_token_id if is_given is None else is_given
        self.rows: Rows = slice(None)
        self.is_alive = torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
        self.num_passes, self.num_committed = ids.new_zeros(ids.shape[0]), ids.new_zeros(ids.shape[0])
        self.confidence: Optional[Tensor] = None

    def start_block(self, start: int, end: int) -> Tensor:
        """Let every row that is alive and holds a mask in the block take part.

        Returns:
            The block's masked positions; bool [active, block].
        """
        self.rows, self.confidence = slice(None), None
        is_masked = self.ids[:, start:end] == self.mask_token_id
        if self.attention_mask is not None:
            is_masked &= self.attention_mask[:, start:end]
        is_active = is_masked.any(-1) & self.is_alive
        if not is_active.all():
            self.rows = is_active.nonzero()[:, 0]
            is_masked = is_masked[self.rows]
        # Minus those that are left when a row leaves.
        self.num_committed[self.rows] += is_masked.sum(-1)
        return is_masked

    def draw(self, is_masked: Tensor, width: int) -> Tensor:
        """One uniform per masked position; float32 [num_scored].

        A row draws for a whole block at every step, also in a shorter last one, so that its numbers depend neither on
        what its neighbours commit nor on the lengths of their blocks.

        Args:
            is_masked: bool [active, block].
            width: columns of the answer's longest block.
        """
        is_masked = F.pad(is_masked, (0, max(0, width - is_masked.shape[1])))
        generator = self.generator
        if isinstance(generator, (list, tuple)):
            rows = range(len(generator))[self.rows] if isinstance(self.rows, slice) else self.rows.tolist()
            generator = [generator[row] for row in rows]
        return draw_uniform(tuple(is_masked.shape), generator, is_masked.device)[is_masked]

    def commit(self, start: int, end: int, is_masked: Tensor, candidates: Tensor, is_committed: Tensor) -> Tensor:
        """Write candidates into columns start..end-1 of the active rows.

        Args:
            start, end: columns of the block.
            is_masked: positions that have a candidate; bool [active, block].
            candidates: int64 [num_scored].
            is_committed: masked positions whose candidate is written; bool [active, block].

        Returns:
            The block as it now is; int64 [active, block].
        """
        block = self.ids[self.rows, start:end]
        block = torch.where(is_committed, block.masked_scatter(is_masked, candidates), block)
        self.ids[self.rows, start:end] = block
        return block

    def mask_again(
        self,
        start: int,
        end: int,
        is_committed: Tensor,
        confidence: Tensor,
        remask_rate: float,
        steps_left: Union[int, Tensor],
    ) -> Tensor:
        """Mask the least confident of the tokens that the block's earlier steps committed, unless this is the last one.

        Args:
            start, end: columns of the block.
            is_committed: positions committed in this step; bool [active, block].
            confidence: of this step's candidates; float32 [active, block].
            remask_rate: share of the earlier tokens.
            steps_left: of the block, this one included; a number, or int64 [active].

        Returns:
            The positions that are masked again; bool [active, block].
        """
        if self.confidence is None:
            self.confidence = torch.full_like(confidence, torch.inf)
        is_doubted = least_confident(self.confidence, remask_rate)
        is_doubted &= torch.as_tensor(steps_left, device=is_doubted.device).reshape(-1, 1) > 1
        self.confidence = torch.where(is_committed, confidence, self.confidence).masked_fill(is_doubted, torch.inf)
        self.ids[self.rows, start:end] = self.ids[self.rows, start:end].masked_fill(is_doubted, self.mask_token_id)
        return is_doubted

    def end_pass(
        self,
        block: Tensor,
        is_masked: Tensor,
        is_broken: Tensor,
        start: int,
        num_passes: int,
        eos_ids: Optional[Tensor],
        config: LLaDAGenerationConfig,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Let rows leave that have nothing left to do in a block: no mask, or an end of text with no mask before it.

        Rows that cannot go on leave too; one look at the device serves both.

        Args:
            block: its ids; int64 [active, block]. They do not matter at masked positions.
            is_masked: bool [active, block].
            is_broken: positions whose logits are not finite; bool [active, block].
            start: first column of the block.
            num_passes: passes in the block so far.
            eos_ids: tokens any of which ends a row; int64 [num_eos]. None looks for no end.
            config: gives the id of the padding, which replaces what follows a row's end.

        Returns:
            The block's masked positions of the rows that stay, bool [active, block]; which rows those are,
            bool [active as it was], or None if all stay.
        """
        is_final = is_masked.cumsum(-1) == 0
        is_done = is_final[:, -1:] | is_broken
        if eos_ids is not None:
            is_end = is_final & torch.isin(block, eos_ids)
            is_done = is_end | is_done
        if not is_done.any():
            return is_masked, None
        rows = torch.arange(len(self.ids), device=self.ids.device)[self.rows]
        is_done = is_done.any(-1)
        leaving = rows[is_done]
        self.num_passes[leaving] += num_passes
        self.num_committed[leaving] -= is_masked[is_done].sum(-1)
        if eos_ids is not None:
            has_end = is_end.any(-1)
            if has_end.any():
                ends = start + 1 + is_end[has_end].int().argmax(-1)
                self.finish(rows[has_end], ends, config.pad_token_id)
        self.rows = rows[~is_done]
        if self.confidence is not None:
            self.confidence = self.confidence[~is_done]
        return is_masked[~is_done], ~is_done

    def stop_rows(self, criteria: StoppingCriteriaList, end: int, pad_token_id: int) -> None:
        """Finish the rows for which a criterion is true at column `end`."""
        rows = self.is_alive.nonzero()[:, 0]
        if len(rows):
            rows = rows[criteria(self.ids[rows, :end], None)]
            self.finish(rows, torch.full_like(rows, end), pad_token_id)

    def finish(self, rows: Tensor, ends: Tensor, pad_token_id: int) -> None:
        """Finish rows: what follows their end becomes padding.

        Args:
            rows: int64 [finished].
            ends: column after each one's last token; int64 [finished].
            pad_token_id: id of the padding.
        """
        is_after = torch.arange(self.ids.shape[1], device=self.ids.device) >= ends[:, None]
        self.ids[rows] = self.ids[rows].masked_fill(is_after, pad_token_id)
        self.is_alive[rows] = False


def read_ids(input_ids: Any, device: torch.device) -> Tensor:
    """Token ids as a tensor; int64 [batch, seq].

    Args:
        input_ids: a tensor or array of integers, or lists of one length.
        device: where lists and arrays go.

    Raises:
        ValueError: for text, a whole encoding, rows of different lengths, no ids, and numbers that are not whole.
    """
    if isinstance(input_ids, Mapping):
        raise ValueError("`input_ids` must be token ids, got a whole encoding; pass it as `**encoding`.")
    rows = input_ids if isinstance(input_ids, (list, tuple)) else [input_ids]
    if any(isinstance(row, str) for row in rows):
        raise ValueError("`input_ids` must be token ids, got text; encode it with the model's tokenizer.")
    if input_ids is not None and not isinstance(input_ids, Tensor):
        try:
            input_ids = torch.as_tensor(input_ids, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                "`input_ids` must be rows of token ids of one length; pad them and pass the `attention_mask`, or call "
                "`generate_many`."
            ) from None
    if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
        shape = None if input_ids is None else tuple(input_ids.shape)
        raise ValueError(f"`input_ids` must hold at least one token per row, int64 [batch, seq], got {shape}.")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ValueError(f"`input_ids` must be whole numbers, int64 [batch, seq], got {input_ids.dtype}.")
    return input_ids.long()


def check_prompt(
    input_ids: Tensor,
    attention_mask: Optional[Tensor],
    config: LLaDAGenerationConfig,
    vocab_size: int,
    holds_masks: bool = False,
) -> Optional[Tensor]:
    """Refuse ids that cannot be a prompt.

    Args:
        input_ids: int64 [batch, prompt].
        attention_mask: nonzero at prompt tokens, [batch, prompt], a tensor or lists; or None.
        config: gives the ids of mask and padding.
        vocab_size: ids that the embedding knows.
        holds_masks: whether masks may stand in the prompt.

    Returns:
        The padding mask, bool [batch, prompt]; None if nothing is padded.

    Raises:
        ValueError: for ids outside the vocabulary, a row of nothing but masks or padding, masks where none may
            stand, and a mask of another shape.
    """
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"`input_ids` must lie in the vocabulary, 0..{vocab_size - 1}, got {lowest}..{highest}; "
            "was the text encoded with another model's tokenizer?"
        )
    is_masked = input_ids == config.mask_token_id
    if is_masked.all(-1).any():
        raise ValueError(
            "`input_ids` has a row that is nothing but mask tokens; give every row at least one real token, "
            "for instance the beginning-of-text token."
        )
    if not holds_masks and is_masked.any():
        raise ValueError(
            f"`input_ids` holds the mask token ({config.mask_token_id}); `generate` appends its own masks. "
            "To fill masks where they stand, call `infill`."
        )
    if attention_mask is None:
        if (
            len(input_ids) > 1
            and config.pad_token_id is not None
            and (input_ids[:, [0, -1]] == config.pad_token_id).any()
        ):
            logger.warning_once(
                f"`input_ids` begins or ends with the padding token ({config.pad_token_id}) in some rows, and no "
                "`attention_mask` was given: padding is read as text. Pass the tokenizer's `attention_mask`."
            )
        return None
    attention_mask = torch.as_tensor(attention_mask, device=input_ids.device)
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


def answer_blocks(config: LLaDAGenerationConfig, prompt_length: int, max_sequence_length: int) -> list[Block]:
    """The blocks of an answer; the end of the last one is the length of prompt and canvas.

    Raises:
        ValueError: if there are fewer steps than blocks, or no room for an answer that grows.
    """
    end = prompt_length + (config.max_new_tokens or 0)
    if config.max_new_tokens is None:
        end = config.max_length or max_sequence_length
        if end <= prompt_length:
            raise ValueError(
                f"`max_length` must leave room for an answer after the prompt's {prompt_length} tokens, got {end}; "
                "pass a larger one, or `max_new_tokens`."
            )
    length = config.block_length
    return make_blocks([(start, min(start + length, end)) for start in range(prompt_length, end, length)], config)


def make_blocks(spans: list[tuple[int, int]], config: LLaDAGenerationConfig) -> list[Block]:
    """Share the denoising steps over the blocks, larger shares first: 7 over 3 is 3, 2, 2.

    Args:
        spans: (first column, end column) of each block, from left to right.
        config: gives the steps in all. Without them, a block takes as many as its tokens need; one per column if
            tokens may be masked again.

    Raises:
        ValueError: if there are fewer steps than blocks.
    """
    if config.steps is None:
        return [(start, end, end - start if config.remask_rate > 0 else None) for start, end in spans]
    if config.steps < len(spans):
        raise ValueError(
            f"`steps` must be at least the number of blocks ({len(spans)}), got {config.steps}; "
            f"pass steps={len(spans)} or a larger `block_length`."
        )
    share, num_larger = divmod(config.steps, len(spans))
    return [(start, end, share + (index < num_larger)) for index, (start, end) in enumerate(spans)]


def make_proposer(proposer_class: type[Proposer], config: LLaDAGenerationConfig) -> Proposer:
    """What turns logits into candidates and confidences under these options."""
    warpers = LogitsProcessorList()
    # The distribution to draw from: temperature, then top-k, then top-p, as transformers defines them.
    if config.samples and config.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.samples and config.top_k is not None:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.samples and config.top_p is not None and config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    return proposer_class(
        mask_token_id=config.mask_token_id,
        measure=config.remasking,
        needs_entropy=config.commit_rule.needs_entropy,
        warp=warpers if config.samples else None,
        suppressed_ids=config.eos_token_ids if config.logits_eos_inf else (),
        last_ids=(*config.eos_token_ids, config.eot_token_id) if config.confidence_eos_eot_inf else (),
    )


def _on_grid(values: Optional[Tensor], is_masked: Tensor, fill: float) -> Optional[Tensor]:
    """Put values of the masked positions into [batch, block], `fill` elsewhere."""
    if values is None:
        return None
    return torch.full(is_masked.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(is_masked, values)


class Reporter:
    """Tells a streamer what happens to the canvas, and keeps its history.

    Args:
        canvas: the canvas to report on.
        streamer: has `put` and `end`, and `put_draft` if it shows drafts; or None.
        keeps_history: whether to keep a copy of the canvas after every step.
    """

    def __init__(self, canvas: Canvas, streamer: Optional[Any], keeps_history: bool):
        self.canvas = canvas
        self.streamer = streamer
        self.history: Optional[list[Tensor]] = [canvas.ids.clone()] if keeps_history else None
        # An infilled text is final only as a whole.
        self.num_confirmed = canvas.answer_start or 0
        if streamer is not None:
            streamer.put(canvas.ids[:, : canvas.answer_start].cpu())

    def step_done(self) -> None:
        """Report the canvas after a step: all that is not final yet is a draft."""
        if self.history is not None:
            self.history.append(self.canvas.ids.clone())
        if hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(self.canvas.ids[:, self.num_confirmed :].cpu())

    def block_done(self, end: int) -> None:
        """Report a finished block; nothing of it will change."""
        if self.streamer is not None and self.canvas.answer_start is not None:
            self.streamer.put(self.canvas.ids[:, self.num_confirmed : end].cpu())
            self.num_confirmed = end

    def all_done(self) -> Optional[tuple[Tensor, ...]]:
        """Report the end of the call, and return the history."""
        if self.streamer is not None:
            if self.canvas.answer_start is None:
                self.streamer.put(self.canvas.ids.cpu())
            self.streamer.end()
        return None if self.history is None else tuple(self.history)
