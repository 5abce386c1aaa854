"""Continuous batching: answers to any number of prompts, from a batch in which finished rows are replaced at once.

`generate` denoises its rows in step: a batch of it lasts as long as its longest answer. Here every iteration denoises
one block for each slot; a row that has ended leaves, and the next prompt takes its slot.

The rows then stand at different blocks. Attention reads positions, not columns, so each row is laid out with its
active block in the same columns as its neighbours', and with its true positions:

| columns before the block | block | columns after it |
|---|---|---|
| padding, masks still to come, prompt and finished blocks | masks | nothing |

All rows with a prompt of one length fill the same columns, whatever block they are at. The `prefix` cache computes what
stands after the block in every pass, so with it the masks still to come stand there.

Shape legend: B rows in slots, T columns.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from .canvas_llada import Block, Canvas, answer_blocks, check_prompt, read_ids
from .constraints_llada import cut_at_texts
from .generation_config_llada import LLaDAGenerationConfig


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
    """A prompt in its slot.

    Attributes:
        index: number of the prompt.
        ids: prompt and finished blocks.
        prompt_length: tokens of the prompt.
        blocks: blocks still to be denoised, (first position, end position, steps or None) each.
        end: length of prompt and canvas.
        generator: source of this row's draws; None draws from torch's own.
        num_passes: passes so far.
    """

    index: int
    ids: list[int]
    prompt_length: int
    blocks: deque[Block]
    end: int
    generator: Optional[torch.Generator]
    num_passes: int = 0


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
    _check_call(config, len(prompts), batch_size, seeds)
    for index, prompt in enumerate(prompts):
        _check_prompt(model, config, index, prompt)
    # Nothing of the above may wait for the first answer, so the loop is a generator of its own.
    return _answers(model, config, prompts, batch_size, seeds, tokenizer)


def _check_call(config: LLaDAGenerationConfig, num_prompts: int, batch_size: int, seeds: Any) -> None:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if not (seeds is None or isinstance(seeds, int)) and len(seeds) != num_prompts:
        raise ValueError(f"`seeds` must be one number or one per prompt ({num_prompts}), got {len(seeds)}.")
    if config.max_new_tokens is not None:
        answer_blocks(config, 0, config.max_new_tokens)
    if config.freeze_prompt:
        raise ValueError(
            "`freeze_prompt` has no meaning for `generate_many`, whose rows enter at any time; leave it out, or call "
            "`generate` for each batch."
        )
    for name, is_set in {"output_history": config.output_history, "max_time": config.max_time is not None}.items():
        if is_set:
            raise ValueError(f"`{name}` has no meaning for `generate_many`; leave it out, or call `generate`.")
    if (config.num_return_sequences or 1) > 1:
        raise ValueError("`num_return_sequences` must be 1 for `generate_many`; pass the prompt several times.")


def _check_prompt(model: Any, config: LLaDAGenerationConfig, index: int, prompt: Any) -> None:
    if isinstance(prompt, str):
        raise ValueError(f"Prompt {index} must be token ids, got text; encode it with the model's tokenizer.")
    try:
        ids = read_ids(prompt[None] if isinstance(prompt, Tensor) else [list(prompt)], model.device)
        check_prompt(ids, None, config, model.config.embedding_size)
        answer_blocks(config, len(prompt), model.config.max_sequence_length)
    except ValueError as error:
        raise ValueError(f"Prompt {index}: {error}") from None


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
                generator = None
                if seeds is not None:
                    seed = seeds + index if isinstance(seeds, int) else seeds[index]
                    generator = torch.Generator(model.device).manual_seed(seed)
                ids = torch.as_tensor(prompts[index]).tolist()
                blocks = deque(answer_blocks(config, len(ids), model.config.max_sequence_length))
                rows.append(Row(index, ids, len(ids), blocks, blocks[-1][1], generator))
            _denoise_one_block_each(model, config, rows, tokenizer)
            for row in rows:
                if not row.blocks:
                    yield LLaDAAnswer(row.index, row.ids[row.prompt_length :], row.num_passes)
            rows = [row for row in rows if row.blocks]


def _denoise_one_block_each(
    model: Any, config: LLaDAGenerationConfig, rows: list[Row], tokenizer: Optional[Any]
) -> None:
    """Denoise one block of every row, append it to the row's ids, and drop the blocks after an end of text."""
    positions, start, end = lay_out(rows, config.suffix_window, masks_stand_after=config.cache == "prefix")
    canvas = _build_canvas(rows, positions, config.mask_token_id, start, model.device)
    blocks = [row.blocks.popleft() for row in rows]
    num_steps = [steps for _, _, steps in blocks]
    steps = None if num_steps[0] is None else torch.tensor(num_steps, device=model.device)
    model.denoise(canvas, [(start, end, steps)], config)
    filled, num_passes = canvas.ids[:, start:end].tolist(), canvas.num_passes.tolist()
    for row, block, ids, passes in zip(rows, blocks, filled, num_passes):
        ids = ids[: block[1] - block[0]]
        ends = [place + 1 for place, token in enumerate(ids) if token in config.eos_token_ids]
        if config.stop_at_eos and ends:
            ids = ids[: ends[0]]
            row.blocks.clear()
        num_read = len(row.ids) - row.prompt_length
        row.ids += ids
        row.num_passes += passes
        if config.stop_strings:
            num_tokens = cut_at_texts(row.ids[row.prompt_length :], num_read, config.stop_strings, tokenizer)
            if num_tokens is not None:
                del row.ids[row.prompt_length + num_tokens :]
                row.blocks.clear()


def lay_out(rows: list[Row], visible_suffix: Optional[int], masks_stand_after: bool) -> tuple[Tensor, int, int]:
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


def _build_canvas(rows: list[Row], positions: Tensor, mask_token_id: int, start: int, device: torch.device) -> Canvas:
    """Put each row's tokens, and masks where it has none yet, at its positions; int64 [batch, columns]."""
    texts = [torch.tensor(row.ids + [mask_token_id] * (row.end - len(row.ids))) for row in rows]
    has_position = positions >= 0
    position_ids = positions.clamp(min=0)
    prompt_lengths = torch.tensor([[row.prompt_length] for row in rows])
    generators = [row.generator for row in rows]
    return Canvas(
        pad_sequence(texts, batch_first=True).gather(1, position_ids).to(device),
        mask_token_id,
        attention_mask=None if has_position.all() else has_position.to(device),
        generator=None if generators[0] is None else generators,
        answer_start=start,
        position_ids=position_ids.to(device),
        is_given=(positions < prompt_lengths).to(device),
    )
