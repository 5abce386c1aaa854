"""Text by diffusion: the loop, and `generate` and `infill` on top of it.

The loop knows neither the noise nor the model's inside: it calls `self(...)` for logits, a `Proposer` for candidates
and a `CommitRule` for the tokens to commit, and is the only place that writes into the canvas.

Shape legend: B rows of the call, R rows that take part in the next pass, T canvas, L block, K positions scored,
V vocabulary.
"""

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import ModelOutput, logging

from .cache_llada import FixedShapes, WindowPolicy
from .canvas_llada import Block, Canvas, Reporter, answer_blocks, check_prompt, make_blocks, read_ids, repeat_rows
from .constraints_llada import CONSTRAINTS, Constraints, cut_at_texts, sampling_warpers
from .generation_config_llada import OF_ANSWERS, LLaDAGenerationConfig
from .speculation_llada import Speculation
from .unmasking_llada import (
    Generators,
    Proposer,
    broken_logits,
    guide,
    schedule_share,
)

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

        What every caller of transformers may pass is taken: `tokenizer` (needed for `stop_strings` only), `use_cache`
        (`True` is ignored with a warning), and arguments that are not supported with a value that changes nothing, such
        as `num_beams=1`.

        Raises:
            ValueError: as `LLaDAGenerationConfig.completed`, for stop strings without a tokenizer, and for a model
                whose soft prompt would be ignored.
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
        tokenizer = options.get("tokenizer")
        options = {name: value for name, value in options.items() if name not in ("tokenizer", "use_cache")}
        config = self.generation_config
        if generation_config is not None:
            config = LLaDAGenerationConfig.from_generation_config(generation_config)
        config = config.completed(self.config, **options)
        if getattr(self.config, "is_untrained", False):
            logger.warning_once(
                "This checkpoint was converted from an autoregressive one and has not been trained since, so its text "
                "makes no sense. Train it first: `llada train pretrain`. `config.is_untrained = False` silences this."
            )
        if config.stop_strings and tokenizer is None:
            raise ValueError("`stop_strings` needs the model's tokenizer, got None; pass `tokenizer=tokenizer`.")
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
        tokenizer: Optional[Any] = None,
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
                method (transformers' `TextDiffusionStreamer`), `put(block)` for every finished block, `end()`. One row
                is put without padding and up to its end, int64 [length]; several rows int64 [batch, length]. Drafts are
                int64 [batch, length], or `logits=` float32 [batch, length, vocab] for a streamer with `_takes_logits`:
                those of the scored positions, and certainty of what stands elsewhere.
            generator: source of all draws. A list with one generator per row of the result makes a row's draws
                independent of its neighbours, so that a batch equals its rows run alone.
            inputs: transformers' name of `input_ids`.
            tokenizer: the model's; needed for `stop_strings`.
            options: any option of `LLaDAGenerationConfig`; see `prepare_options` for what else is taken.

        Returns:
            Prompt and answer, padded after a row's end; or a `LLaDAGenerationOutput`. int64 [batch *
            num_return_sequences, seq], as long as the longest row, at most prompt + max_new_tokens.

        Raises:
            ValueError: for unknown or contradictory options, a prompt that is empty, holds masks (use `infill`) or
                ids outside the vocabulary, a row of padding only, a required token id that is not set anywhere, and
                logits that are not finite or leave nothing to choose.

        Not handled: beams.

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
        config = self.prepare_options(generation_config, {**options, "tokenizer": tokenizer})
        if stopping_criteria and config.pad_token_id is None:
            raise ValueError("`pad_token_id` is needed for `stopping_criteria`, to fill stopped rows; pass it.")
        if inputs is not None and input_ids is not None:
            raise ValueError("`inputs` and `input_ids` are the same argument; pass one of them.")
        input_ids = read_ids(input_ids if inputs is None else inputs, self.device)
        attention_mask = check_prompt(input_ids, attention_mask, config, self.config.embedding_size)
        if config.num_return_sequences not in (None, 1):
            input_ids, attention_mask = repeat_rows(input_ids, attention_mask, config.num_return_sequences)
        # 2. Build the canvas: the prompts and the answer's blocks of masks.
        start = input_ids.shape[1]
        blocks = answer_blocks(config, start, self.config.max_sequence_length)
        num_masks = blocks[-1][1] - start
        ids = F.pad(input_ids, (0, num_masks), value=config.mask_token_id)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (0, num_masks), value=True)
        canvas = Canvas(ids, config.mask_token_id, attention_mask, generator, answer_start=start)
        with self.prepacked_weights(config.pack_weights):
            return self.denoise(canvas, blocks, config, logits_processor, stopping_criteria, streamer, tokenizer)

    def denoise(
        self,
        canvas: "Canvas",
        blocks: list[Block],
        config: LLaDAGenerationConfig,
        logits_processor: Optional[LogitsProcessorList] = None,
        stopping_criteria: Optional[StoppingCriteriaList] = None,
        streamer: Optional[Any] = None,
        tokenizer: Optional[Any] = None,
    ) -> Union[Tensor, LLaDAGenerationOutput]:
        """Fill the blocks of a canvas from left to right: steps 3 to 8 of `generate`, which explains the arguments."""
        # 3. Make the parts once.
        proposer, rule = make_proposer(self.proposer_class, config), config.commit_rule
        windows = None if config.cache == "none" else self._windows(canvas, config)
        score = functools.partial(self._score, canvas, config, windows)
        speculation = Speculation(score, canvas, rule, config.speculate, windows) if config.speculate else None
        is_constrained = logits_processor or any(getattr(config, name) for name in CONSTRAINTS)
        constraints = Constraints(config, canvas.ids.device, logits_processor or ()) if is_constrained else None
        is_watched = streamer is not None or config.output_history
        reporter = Reporter(canvas, streamer, config.output_history) if is_watched else None
        eos_ids = torch.tensor(config.eos_token_ids, device=canvas.ids.device) if config.stop_at_eos else None
        deadline = None if config.max_time is None else time.monotonic() + config.max_time
        for start, end, num_steps in blocks:
            step, is_masked = 0, canvas.start_block(start, end)
            while len(is_masked):
                # 4. Share the masks over the steps that are left; without `steps`, every pass commits at least one.
                steps_left = None if num_steps is None else canvas.steps_left(num_steps, step)
                at_least = 1 if steps_left is None else schedule_share(is_masked.sum(-1), steps_left)
                # 5. Run the model.
                logits = (speculation.score if speculation else score)(is_masked, step, start, end)
                if constraints is not None:
                    logits = constraints(canvas, is_masked, start, logits)
                if reporter is not None and reporter.takes_logits:
                    reporter.keep_logits(logits, is_masked, start)
                # 6. Choose candidates, commit the most confident ones, mask again what is doubted.
                candidates, confidence, entropies = choose(proposer, logits, canvas, is_masked, config)
                if speculation is not None:
                    speculation.note(candidates, is_masked, confidence, entropies, steps_left)
                is_committed = rule(confidence, at_least, entropies)
                block = canvas.commit(start, end, is_masked, candidates, is_committed)
                is_masked, is_broken = is_masked ^ is_committed, confidence.isnan()
                if config.remask_rate:
                    is_masked |= canvas.mask_again(start, end, is_committed, confidence, config.remask_rate, steps_left)
                # 7. Let rows leave that have nothing left to do; report.
                step += 1
                before = canvas.rows
                is_masked, is_kept = canvas.end_pass(block, is_masked, is_broken, start, step, eos_ids, config)
                if is_kept is not None and is_broken.any():
                    rows = torch.arange(len(canvas.ids), device=canvas.ids.device)[before]
                    canvas.fail(rows[is_broken.any(-1)], broken_logits(logits.dtype))
                if windows is not None:
                    windows.end_pass(is_kept)
                if speculation is not None:
                    speculation.end_pass(is_kept)
                if reporter is not None:
                    reporter.step_done()
                if deadline is not None and time.monotonic() >= deadline:
                    canvas.stop_at_masks(is_masked, step, config.pad_token_id)
                    break
            if stopping_criteria or config.stop_strings:
                stop_rows(canvas, start, end, config, stopping_criteria, tokenizer)
            if reporter is not None:
                reporter.block_done(end)
            if not canvas.is_alive.any():
                break
        # 8. Return the canvas up to the end of its longest row.
        sequences = canvas.ids[:, : int(canvas.ends.max())]
        history = None if reporter is None else reporter.all_done(sequences.shape[1])
        if not config.return_dict_in_generate:
            return sequences
        return LLaDAGenerationOutput(sequences, canvas.num_passes, canvas.num_committed / canvas.num_passes, history)

    def _windows(self, canvas: Canvas, config: LLaDAGenerationConfig) -> WindowPolicy:
        """What decides which columns a pass computes."""
        num_copies = 2 if config.cfg_scale > 0 else 1
        num_frozen = canvas.answer_start if config.freeze_prompt else 0
        return WindowPolicy(
            config.cache,
            self.config.num_hidden_layers,
            config.refresh_interval,
            num_frozen,
            num_copies,
            self._fixed_shapes(config) if config.compile else None,
        )

    def _fixed_shapes(self, config: LLaDAGenerationConfig) -> FixedShapes:
        """What fills passes up so that a compiled model meets few shapes."""
        return FixedShapes(config.block_length, fills_columns="flash" not in str(self.config._attn_implementation))

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
            generation_config, logits_processor, generator, options: as for `generate`. Options about an answer as a
                whole (`OF_ANSWERS`) have no meaning here and raise.
            streamer: as for `generate`; every draft is the whole text, and only the filled text is final.

        Returns:
            The filled ids, int64 [batch, seq], or a `LLaDAGenerationOutput`.

        Raises:
            ValueError: as `generate`, and if there is no mask token or nothing else.
        """
        for name in OF_ANSWERS:
            if name in options:
                raise ValueError(f"`{name}` has no meaning for `infill`, which fills the given masks; leave it out.")
        defaults: dict[str, Any] = {**dict.fromkeys(OF_ANSWERS), "stop_at_eos": False, "freeze_prompt": False}
        del defaults["gen_length"]
        # A checkpoint whose answers grow sets no length; the text to be filled in has one.
        defaults |= {"steps": None, "max_new_tokens": 1}
        config = self.prepare_options(generation_config, {**defaults, **options})
        input_ids = read_ids(input_ids, self.device)
        attention_mask = check_prompt(input_ids, attention_mask, config, self.config.embedding_size, holds_masks=True)
        if config.num_return_sequences not in (None, 1):
            input_ids, attention_mask = repeat_rows(input_ids, attention_mask, config.num_return_sequences)
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

    def _score(
        self,
        canvas: "Canvas",
        config: LLaDAGenerationConfig,
        windows: Optional[WindowPolicy],
        is_masked: Tensor,
        step: int,
        start: int,
        end: int,
        blocks: Optional[Tensor] = None,
    ) -> Tensor:
        """One pass: the logits of masked positions of a block, with guidance; [num_scored, vocab].

        Args:
            canvas, config, windows: those of the call.
            is_masked: bool [active, block]; with `blocks` bool [canvases * active, block].
            step: number of the step in its block.
            start, end: columns of the block.
            blocks: what stands in the block of each canvas to run; int64 [canvases, active, block]. None: one canvas
                for each row, as it is.
        """
        rows, num_columns = canvas.rows, canvas.ids.shape[1]
        if config.suffix_window is not None:
            num_columns = min(num_columns, end + config.suffix_window)
        first, last, cache = 0, num_columns, None
        if windows is not None:
            first, last, cache = windows.next_window(step, start, end, num_columns, rows, canvas.ids.device)
        if blocks is not None:
            rows = torch.arange(len(canvas.ids), device=canvas.ids.device)[rows].repeat(len(blocks))
            cache = None if windows is None else windows.copies(blocks.shape[1], len(blocks))
            blocks = blocks.flatten(0, 1)
        shapes = self._fixed_shapes(config) if config.compile else None
        if shapes is not None:
            rows = shapes.rows(torch.arange(len(canvas.ids), device=canvas.ids.device)[rows])
            missing = (0, 0, 0, len(rows) - len(is_masked))  # rows in which nothing is scored
            is_masked, blocks = F.pad(is_masked, missing), None if blocks is None else F.pad(blocks, missing)
        ids = canvas.ids[rows, first:last]
        if blocks is not None:
            ids[:, start - first : end - first] = blocks
        attention_mask = None if canvas.attention_mask is None else canvas.attention_mask[rows, :num_columns]
        position_ids = None if canvas.position_ids is None else canvas.position_ids[rows, first:last]
        is_scored = F.pad(is_masked, (start - first, last - end))
        if config.cfg_scale > 0:
            ids = torch.cat((ids, ids.masked_fill(canvas.is_given[rows, first:last], canvas.mask_token_id)))
            is_scored = torch.cat((is_scored, is_scored))
            attention_mask = None if attention_mask is None else attention_mask.repeat(2, 1)
            position_ids = None if position_ids is None else position_ids.repeat(2, 1)
        if position_ids is None and (cache is not None or shapes is not None):
            position_ids = torch.arange(first, last, device=ids.device)[None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs |= {"past_key_values": cache, "logits_window": (start - first, end - first)}
        if shapes is not None:
            # Selecting masked positions inside would give every step its own shape.
            compiled = self.__dict__.setdefault("_compiled_generation", CompiledCall())
            logits = compiled.of(self, config.compile_config)(**fill_up(inputs, num_columns, shapes)).logits
            logits = logits[:, : end - start][is_scored[:, start - first : end - first]]
        else:
            logits = self(**inputs, logits_positions=is_scored).logits
        if config.cfg_scale > 0:
            conditional, unconditional = logits.chunk(2)
            logits = guide(conditional, unconditional, config.cfg_scale)
        return logits


def fill_up(inputs: dict[str, Any], num_columns: int, shapes: FixedShapes) -> dict[str, Any]:
    """A pass's inputs with columns added that the attention mask hides, in shapes that come again.

    Args:
        inputs: of the model's `forward`; `logits_window` is (start, end).
        num_columns: columns that the pass looks at.
        shapes: the shapes.
    """
    ids, cache, (start, end) = inputs["input_ids"], inputs["past_key_values"], inputs["logits_window"]
    width, device = shapes.width(ids.shape[1]), ids.device
    missing, capacity = (0, width - ids.shape[1]), width if cache is None else cache.num_columns
    attention_mask = inputs["attention_mask"]
    if attention_mask is None and shapes.fills_columns:
        attention_mask = torch.ones(len(ids), num_columns, dtype=torch.bool, device=device)
    if attention_mask is not None:
        attention_mask = F.pad(attention_mask, (0, capacity - num_columns)).contiguous()
    window = torch.arange(start, start + shapes.width(end - start), device=device)
    return inputs | {
        "input_ids": F.pad(ids, missing).contiguous(),
        "attention_mask": attention_mask,
        "position_ids": F.pad(inputs["position_ids"], missing).expand(len(ids), -1).contiguous(),
        "logits_window": window.clamp(max=width - 1),
    }


class CompiledCall:
    """The compiled call of one model, kept among its attributes; copies and pickles of the model begin without it."""

    def __init__(self) -> None:
        self._key: Any = None
        self._call: Any = None

    def of(self, model: Any, compile_config: Optional[CompileConfig]) -> Callable[..., Any]:
        """What to call in place of the model; compiled again if its `forward` was replaced, as accelerate does."""
        key = (model.__call__, model.forward, compile_config)
        if self._key != key:
            arguments = {} if compile_config is None else compile_config.to_dict()
            self._key, self._call = key, torch.compile(model.__call__, **arguments)
        return self._call

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return CompiledCall, ()


def make_proposer(proposer_class: type[Proposer], config: LLaDAGenerationConfig) -> Proposer:
    """What turns logits into candidates and confidences under these options."""
    return proposer_class(
        mask_token_id=config.mask_token_id,
        measure=config.remasking,
        needs_entropy=config.commit_rule.needs_entropy,
        warp=sampling_warpers(config) if config.samples else None,
        suppressed_ids=config.eos_token_ids if config.logits_eos_inf else (),
        last_ids=(*config.eos_token_ids, config.eot_token_id) if config.confidence_eos_eot_inf else (),
    )


def stop_rows(
    canvas: Canvas,
    start: int,
    end: int,
    config: LLaDAGenerationConfig,
    criteria: Optional[StoppingCriteriaList],
    tokenizer: Optional[Any],
) -> None:
    """Finish the rows whose answer, up to the end of a block, holds a stop string, or for which a criterion is true.

    Args:
        canvas: its rows may have ended in the block, after the string.
        start, end: columns of the block.
        config: gives the strings, and the padding.
        criteria: called as (ids up to the block's end [active rows, length], None).
        tokenizer: the model's; None looks for no strings.
    """
    first = canvas.answer_start
    for row, row_end in enumerate(canvas.ends.tolist() if tokenizer is not None else ()):
        if config.stop_strings and row_end > start:
            answer = canvas.ids[row, first : min(end, row_end)].tolist()
            num_tokens = cut_at_texts(answer, start - first, config.stop_strings, tokenizer)
            if num_tokens is not None:
                ends = torch.tensor([first + num_tokens], device=canvas.ids.device)
                canvas.finish(torch.tensor([row], device=canvas.ids.device), ends, config.pad_token_id)
    if criteria:
        canvas.stop_rows(StoppingCriteriaList(criteria), end, config.pad_token_id)


def choose(
    proposer: Proposer, logits: Tensor, canvas: Canvas, is_masked: Tensor, config: LLaDAGenerationConfig
) -> tuple[Tensor, Tensor, Optional[Tensor]]:
    """Candidates of a block's masked positions, and how sure they are.

    Args:
        proposer: see `make_proposer`.
        logits: [num_scored, vocab]; may be overwritten.
        canvas: gives the draws.
        is_masked: bool [active, block].
        config: says what is drawn.

    Returns:
        Candidates, int64 [num_scored]; confidences, -inf where nothing is masked, float32 [active, block]; entropies
        in nats, 0 where nothing is masked, float32 [active, block], or None.
    """
    width = min(config.block_length, config.max_new_tokens or config.block_length)
    candidate_draws = canvas.draw(is_masked, width) if config.samples else None
    order_draws = canvas.draw(is_masked, width) if config.remasking == "random" else None
    candidates, confidence, entropies = proposer(logits, candidate_draws, order_draws)
    grid = torch.full(is_masked.shape, -torch.inf, dtype=confidence.dtype, device=confidence.device)
    if entropies is not None:
        entropies = torch.zeros_like(grid).masked_scatter(is_masked, entropies)
    return candidates, grid.masked_scatter(is_masked, confidence), entropies
