"""Continuous batching: answers to any number of prompts, from a batch in which finished rows are replaced at once.

`generate` denoises its rows in step: a batch of it lasts as long as its longest answer. Here every iteration denoises
one block for each row; a row that has ended leaves, and the next prompt takes its place. Between two blocks a row is
nothing but its ids, so rows may enter, wait and leave at every block's border; rows that are cancelled or fail leave
at the next border of a pass.

The rows then stand at different blocks. Attention reads positions, not columns, so each row is laid out with its
active block in the same columns as its neighbours', and with its true positions:

| columns before the block | block | columns after it |
|---|---|---|
| padding, masks still to come, prompt and finished blocks | masks | nothing |

All rows with a prompt of one length fill the same columns, whatever block they are at. The `prefix` cache computes what
stands after the block in every pass, so with it the masks still to come stand there.

A pass is as wide as its widest row. On a CPU, where every column takes its time, rows of very different widths are
denoised in passes of their own.

Shape legend: B rows of a pass, T columns.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, Union

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from .canvas_llada import Block, Canvas, answer_blocks, check_prompt, read_ids
from .constraints_llada import cut_at_texts
from .generation_config_llada import DEFAULTS, LLaDAGenerationConfig

# Options in which rows of one pass may differ: they decide on blocks and end of a row, which are its own.
OF_ROWS = ("max_new_tokens", "max_length", "steps", "stop_strings", "num_return_sequences", "return_dict_in_generate")
# What a pass on a CPU costs besides its columns, in columns; fewer columns are not worth a pass of their own. A fit to
# passes of 32 to 2,048 columns gives 66 for a model of 8 million parameters and 38 for one of 104 million (2 threads of
# a virtual Xeon, 2026-11-21).
PASS_COLUMNS = 64


@dataclass(frozen=True)
class LLaDAAnswer:
    """One answer of `generate_many`.

    Attributes:
        index: number of its prompt, from 0.
        ids: the answer without the prompt, up to its end-of-text token or stop string if it has one; no padding.
        num_forward_passes: passes of the model that it took part in.
    """

    index: int
    ids: list[int]
    num_forward_passes: int


@dataclass
class Row:
    """A prompt and what has been answered so far.

    Attributes:
        index: number of the prompt.
        ids: prompt and finished blocks.
        prompt_length: tokens of the prompt.
        blocks: blocks still to be denoised, (first position, end position, steps or None) each.
        end: length of prompt and canvas.
        generator: source of this row's draws; None draws from torch's own.
        config: the row's options, checked.
        tokenizer: the model's, for stop strings.
        on_draft: told the ids of the active block, masks included, after every pass.
        on_left: called when the row has done its part in a block, at the end of a pass; its neighbours may go on.
        num_passes: passes so far.
        finish_reason: "stop" after an end of text or a stop string, "length" at the canvas's end; None before.
        is_cancelled: set by whoever wants the row to leave at the end of the pass, from any thread.
        error: why the row cannot go on.
        has_left: whether the row has done its part in the block that is being denoised.
    """

    index: int
    ids: list[int]
    prompt_length: int
    blocks: deque[Block]
    end: int
    generator: Optional[torch.Generator]
    config: LLaDAGenerationConfig
    tokenizer: Optional[Any] = None
    on_draft: Optional[Callable[[list[int]], None]] = None
    on_left: Optional[Callable[[], None]] = None
    num_passes: int = 0
    finish_reason: Optional[str] = None
    is_cancelled: bool = False
    error: Optional[Exception] = None
    has_left: bool = False
    _pass_options: Optional[tuple] = field(default=None, repr=False)

    @property
    def answer(self) -> list[int]:
        """The finished blocks, up to the row's end."""
        return self.ids[self.prompt_length :]

    @property
    def is_leaving(self) -> bool:
        """Whether the row takes part in no further pass of its block."""
        return self.is_cancelled or self.error is not None

    @property
    def pass_options(self) -> tuple:
        """What rows of one pass must have in common."""
        if self._pass_options is None:
            names = [name for name in DEFAULTS if name not in (*OF_ROWS, "eos_token_id")]
            shared = [repr(getattr(self.config, name)) for name in names]
            length = self.config.block_length
            width = min(length, self.config.max_new_tokens or length)  # draws at every step
            self._pass_options = (
                width,
                self.blocks[0][2] is None,
                self.generator is None,
                self.config.eos_token_ids,
                *shared,
            )
        return self._pass_options

    @property
    def num_columns(self) -> int:
        """Columns that the row fills while its active block is denoised, see `lay_out`."""
        end, visible = self.blocks[0][1], self.config.suffix_window
        return self.end if visible is None else min(self.end, end + visible)

    def take(self, ids: list[int]) -> None:
        """Append a finished block, and drop the blocks after the end of the answer."""
        config, num_read = self.config, len(self.ids) - self.prompt_length
        is_ended = False
        if config.stop_at_eos:
            ends = [place + 1 for place, token in enumerate(ids) if token in config.eos_token_ids]
            is_ended, ids = bool(ends), ids[: ends[0]] if ends else ids
        if config.stop_strings:
            answer = self.answer + ids
            num_tokens = cut_at_texts(answer, num_read, config.stop_strings, self.tokenizer)
            if num_tokens is not None:
                is_ended, ids = True, answer[num_read:num_tokens]
        self.ids += ids
        self.blocks.popleft()
        if is_ended:
            self.blocks.clear()
        if not self.blocks:
            self.finish_reason = "stop" if is_ended else "length"

    def leave(self, ids: Optional[list[int]]) -> None:
        """Do no more in this block.

        Args:
            ids: the finished block; None, or anything if the row is leaving, ends the row.
        """
        if ids is not None and self.on_draft is not None and not self.is_leaving:
            self.on_draft(ids)
        if ids is None or self.is_leaving:
            self.blocks.clear()
        else:
            self.take(ids)
        self.has_left = True
        if self.on_left is not None:
            self.on_left()


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True)
class Budget:
    """How many rows a pass may hold; None is no limit.

    Attributes:
        max_rows: rows at once.
        max_columns: columns of the canvas at once: rows times the widest one.
        max_logits_bytes: of float32 logits at once, drafts of `speculate` included, as if every position of the blocks
            were masked.
    """

    max_rows: Optional[int] = None
    max_columns: Optional[int] = None
    max_logits_bytes: Optional[int] = None

    def choose(self, rows: Iterable[AnyRow], vocab_size: int) -> list[AnyRow]:
        """The first rows that fit together, in their order; the very first one fits always, so none waits for ever."""
        chosen: list[AnyRow] = []
        widest = num_logits = 0
        for row in rows:
            start, end, _ = row.blocks[0]
            widest = max(widest, row.num_columns)
            num_canvases = (1 + row.config.speculate) * (2 if row.config.cfg_scale > 0 else 1)
            num_logits += (end - start) * vocab_size * num_canvases
            costs = (
                (len(chosen) + 1, self.max_rows),
                ((len(chosen) + 1) * widest, self.max_columns),
                (4 * num_logits, self.max_logits_bytes),
            )
            if chosen and any(limit is not None and cost > limit for cost, limit in costs):
                break
            chosen.append(row)
        return chosen


def generate_many(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int = 8,
    generation_config: Optional[GenerationConfig] = None,
    seeds: Union[int, Sequence[int], None] = None,
    tokenizer: Optional[Any] = None,
    **options: Any,
) -> Iterator[LLaDAAnswer]:
    """Answer prompts of any number and lengths; every answer is the one that `generate` gives for its prompt alone.

    The longest prompts come first. A batch is as wide as its longest row, so neighbours should be alike; and the
    batch that needs most memory is the first one, not one hours later.

    Args:
        model: a `LLaDAModelLM`.
        prompts: token ids of each prompt, without padding.
        batch_size: slots: prompts worked on at once, at least 1.
        generation_config: options in place of the model's.
        seeds: prompt n draws from a generator seeded with `seeds + n`, or with `seeds[n]`, whatever the batch. None
            draws from torch's own generator.
        tokenizer: the model's; needed for `stop_strings`.
        options: any option of `LLaDAGenerationConfig`, as for `generate`, but for `freeze_prompt`, `output_history`,
            `max_time` and `num_return_sequences`.

    Returns:
        Iterator of answers, in the order in which they finish.

    Raises:
        ValueError: before the first answer: as `generate`, with the prompt's number; for a batch size below 1, seeds
            that are not one per prompt, the options above, and a PEFT model with a soft prompt.

    Not handled: masks in the prompt (`infill`), streamers, stopping criteria and logits processors. Rounding depends on
    a batch's composition, as everywhere: two candidates within rounding of each other may change places.

    Example:

    ```python
    >>> from modeling_llada import LLaDAConfig, LLaDAModelLM, generate_many
    >>> config = LLaDAConfig(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=64, vocab_size=100,
    ...                      mask_token_id=99, eos_token_id=0, pad_token_id=0)
    >>> model = LLaDAModelLM(config).eval()
    >>> answers = generate_many(model, [[5, 6, 7], [8], [9, 10]], batch_size=2, max_new_tokens=4, stop_at_eos=False)
    >>> sorted((answer.index, len(answer.ids)) for answer in answers)
    [(0, 4), (1, 4), (2, 4)]

    ```
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "`model` has a soft prompt of PEFT, which generation by diffusion would ignore; use another adapter, such "
            "as LoRA, or pass the base model, `model.get_base_model()`."
        )
    config = model.prepare_options(generation_config, {**options, "tokenizer": tokenizer})
    check_options(config, "generate_many")
    if (config.num_return_sequences or 1) > 1:
        raise ValueError("`num_return_sequences` must be 1 for `generate_many`; pass the prompt several times.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if not (seeds is None or isinstance(seeds, int)) and len(seeds) != len(prompts):
        raise ValueError(f"`seeds` must be one number or one per prompt ({len(prompts)}), got {len(seeds)}.")
    for index, prompt in enumerate(prompts):
        try:
            check_row(model, prompt, config)
        except ValueError as error:
            raise ValueError(f"Prompt {index}: {error}") from None
    # Nothing of the above may wait for the first answer, so the loop is a generator of its own.
    return _answers(model, config, prompts, batch_size, seeds, tokenizer)


@torch.no_grad()
def _answers(
    model: Any,
    config: LLaDAGenerationConfig,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    seeds: Union[int, Sequence[int], None],
    tokenizer: Optional[Any],
) -> Iterator[LLaDAAnswer]:
    """Keep the slots full until no prompt is left."""
    waiting = deque(sorted(range(len(prompts)), key=lambda index: -len(prompts[index])))
    rows: list[Row] = []
    with model.prepacked_weights(config.pack_weights):
        while rows or waiting:
            while waiting and len(rows) < batch_size:
                index = waiting.popleft()
                seed = seeds + index if isinstance(seeds, int) else None if seeds is None else seeds[index]
                rows.append(make_row(model, index, prompts[index], config, seed, tokenizer))
            denoise_one_block_each(model, rows)
            for row in rows:
                if row.error is not None:
                    raise row.error
                if not row.blocks:
                    yield LLaDAAnswer(row.index, row.answer, row.num_passes)
            rows = [row for row in rows if row.blocks]


def check_options(config: LLaDAGenerationConfig, caller: str) -> None:
    """Refuse options that need rows to begin together, and steps that do not suffice.

    Raises:
        ValueError: in these cases.
    """
    if config.max_new_tokens is not None:
        answer_blocks(config, 0, config.max_new_tokens)
    if config.freeze_prompt:
        raise ValueError(
            f"`freeze_prompt` has no meaning for `{caller}`, whose rows enter at any time; leave it out, or call "
            "`generate` for each batch."
        )
    for name, is_set in {"output_history": config.output_history, "max_time": config.max_time is not None}.items():
        if is_set:
            raise ValueError(f"`{name}` has no meaning for `{caller}`; leave it out, or call `generate`.")


def check_row(model: Any, prompt: Any, config: LLaDAGenerationConfig) -> tuple[list[int], list[Block]]:
    """Read a prompt, and cut its answer into blocks.

    Args:
        model: the model.
        prompt: token ids, a list or a tensor [length].
        config: the options.

    Raises:
        ValueError: as `generate`.
    """
    if isinstance(prompt, str):
        raise ValueError("`input_ids` must be token ids, got text; encode it with the model's tokenizer.")
    ids = read_ids(prompt[None] if isinstance(prompt, Tensor) else [list(prompt)], model.device)
    check_prompt(ids, None, config, model.config.embedding_size)
    return ids[0].tolist(), answer_blocks(config, ids.shape[1], model.config.max_sequence_length)


def make_row(
    model: Any,
    index: int,
    prompt: Any,
    config: LLaDAGenerationConfig,
    seed: Optional[int] = None,
    tokenizer: Optional[Any] = None,
) -> Row:
    """A row before its first block; arguments and errors are those of `check_row` and `generate_many`."""
    ids, blocks = check_row(model, prompt, config)
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    return Row(index, ids, len(ids), deque(blocks), blocks[-1][1], generator, config, tokenizer)


def denoise_one_block_each(model: Any, rows: list[Row]) -> None:
    """Denoise one block of every row and append it to the row's ids; rows of equal options share passes.

    A row whose logits decide on nothing gets its `error`, and the others go on.
    """
    for group in group_rows(rows, model.device):
        denoise_group(model, group)


def group_rows(rows: Iterable[AnyRow], device: torch.device) -> list[list[AnyRow]]:
    """Rows that share passes: of equal options and, where columns cost most, of similar widths.

    An accelerator takes about as long for a few columns as for many, a cache computes the block alone after the first
    pass, and a compiled model is compiled for every new shape; there all rows of equal options share passes.
    """
    groups: dict[tuple, list[AnyRow]] = {}
    for row in rows:
        groups.setdefault(row.pass_options, []).append(row)
    parts: list[list[AnyRow]] = []
    for group in groups.values():
        config = group[0].config
        is_split = device.type == "cpu" and config.cache == "none" and not config.compile
        parts += split_by_width(group) if is_split else [group]
    return parts


def split_by_width(rows: Sequence[AnyRow]) -> list[list[AnyRow]]:
    """Split rows so that their passes take the least time: columns computed, padding included, and passes.

    Args:
        rows: rows with a block to denoise.

    Returns:
        The groups, the widest first.
    """
    ranked = sorted(rows, key=lambda row: -row.num_columns)
    # For the first n rows of the ranking: cost, and where their last group begins.
    costs, begins = [0], [0]
    for end in range(1, len(ranked) + 1):
        cost, begin = min(
            (costs[begin] + PASS_COLUMNS + (end - begin) * ranked[begin].num_columns, begin) for begin in range(end)
        )
        costs.append(cost)
        begins.append(begin)
    groups, end = [], len(ranked)
    while end:
        groups.append(ranked[begins[end] : end])
        end = begins[end]
    return groups[::-1]


def denoise_group(model: Any, rows: Sequence[Row]) -> None:
    """`denoise_one_block_each` for rows of equal options."""
    config = rows[0].config
    positions, start, end = lay_out(rows, config.suffix_window, masks_stand_after=config.cache == "prefix")
    canvas = _build_canvas(rows, positions, config.mask_token_id, start, model.device)
    num_steps = [row.blocks[0][2] for row in rows]
    steps = None if num_steps[0] is None else torch.tensor(num_steps, device=model.device)
    streamer = DraftStreamer(rows) if any(row.on_draft is not None for row in rows) else None
    for row in rows:
        row.has_left = False
    model.denoise(canvas, [(start, end, steps)], config, streamer=streamer)


class RowsCanvas(Canvas):
    """The canvas of rows that belong to different callers: one that fails or is cancelled leaves alone.

    Args:
        slots: the rows.
        ids, mask_token_id, options: as for `Canvas`.
    """

    def __init__(self, slots: Sequence[Row], ids: Tensor, mask_token_id: int, **options: Any):
        super().__init__(ids, mask_token_id, **options)
        self.slots = slots

    def end_pass(
        self, block: Tensor, is_masked: Tensor, is_broken: Tensor, start: int, *args: Any
    ) -> tuple[Tensor, Optional[Tensor]]:
        """See `Canvas.end_pass`; rows that leave take their block with them."""
        rows, is_failed = self.rows, is_broken
        if any(slot.is_leaving for slot in self.slots):
            is_leaving = torch.tensor([slot.is_leaving for slot in self.slots], device=block.device)
            is_broken = is_broken | is_leaving[rows][:, None]
        is_masked, is_kept = super().end_pass(block, is_masked, is_broken, start, *args)
        if is_kept is not None:
            # A row that has failed leaves with its error, see `fail`.
            has_left = ~(is_kept | is_failed.any(-1))
            left = torch.arange(len(self.ids), device=block.device)[rows][has_left]
            filled = self.ids[left, start : start + block.shape[1]].tolist()
            for row, ids, passes in zip(left.tolist(), filled, self.num_passes[left].tolist()):
                slot = self.slots[row]
                slot.num_passes += passes
                slot.leave(ids[: slot.blocks[0][1] - slot.blocks[0][0]])
        return is_masked, is_kept

    def fail(self, rows: Tensor, error: ValueError) -> None:
        """See `Canvas.fail`."""
        for row in rows.tolist():
            slot = self.slots[row]
            slot.num_passes += int(self.num_passes[row])
            slot.error = slot.error or error
            slot.leave(None)


class DraftStreamer:
    """Hands the active block of each row that wants it to its `on_draft`."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def put(self, ids: Tensor) -> None:
        """Nothing: finished blocks are reported by whoever called."""

    def put_draft(self, draft: Tensor) -> None:
        """Tell the rows; int64 [batch, columns from the block on]."""
        for row, ids in zip(self.rows, draft):
            if row.on_draft is not None and not row.has_left:
                start, end, _ = row.blocks[0]
                row.on_draft(ids[: end - start].tolist())

    def end(self) -> None:
        """Nothing."""


def lay_out(rows: Sequence[Row], visible_suffix: Optional[int], masks_stand_after: bool) -> tuple[Tensor, int, int]:
    """Choose which position stands in which column, so that all active blocks begin in one column.

    Args:
        rows: rows with a block to denoise.
        visible_suffix: masked positions after the block that it sees; None is all of them.
        masks_stand_after: whether these stand after the block or before everything else.

    Returns:
        The position of each column, -1 for none, int64 [batch, columns]; first and end column of the blocks, of which
        a shorter one leaves columns empty.
    """
    before, after = [], []
    longest = max(row.blocks[0][1] - row.blocks[0][0] for row in rows)
    for row in rows:
        start, end, _ = row.blocks[0]
        context, block = torch.arange(start), torch.arange(start, end)
        suffix = torch.arange(end, row.end if visible_suffix is None else min(row.end, end + visible_suffix))
        if masks_stand_after:
            # Only a last block is shorter than others, and nothing follows it.
            before.append(context)
            after.append(torch.cat((block, suffix)))
        else:
            before.append(torch.cat((suffix, context)))
            after.append(block)
    left = pad_sequence(before, batch_first=True, padding_value=-1, padding_side="left")
    right = pad_sequence(after, batch_first=True, padding_value=-1)
    return torch.cat((left, right), dim=1), left.shape[1], left.shape[1] + longest


def _build_canvas(
    rows: Sequence[Row], positions: Tensor, mask_token_id: int, start: int, device: torch.device
) -> Canvas:
    """Put each row's tokens, and masks where it has none yet, at its positions; int64 [batch, columns]."""
    texts = [torch.tensor(row.ids + [mask_token_id] * (row.end - len(row.ids))) for row in rows]
    has_position = positions >= 0
    position_ids = positions.clamp(min=0)
    prompt_lengths = torch.tensor([[row.prompt_length] for row in rows])
    generators = [row.generator for row in rows]
    return RowsCanvas(
        rows,
        pad_sequence(texts, batch_first=True).gather(1, position_ids).to(device),
        mask_token_id,
        attention_mask=None if has_position.all() else has_position.to(device),
        generator=None if generators[0] is None else generators,
        answer_start=start,
        position_ids=position_ids.to(device),
        is_given=(positions < prompt_lengths).to(device),
    )
