"""`llada generate`: answers prompts, each on its own or in batches."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from llada_conversion import load_exported
from llada_core.animation import check_path, write_animation
from llada_core.conversation import cut_at_stop, printable
from llada_core.loading import Checkpoint, load_checkpoint, use_exported_loader
from llada_core.recorder import Recorder
from llada_core.tokenization import encode_chat, special_tokens

from .display import CanvasStreamer
from .screen import busy, choose_console, model_title
from .turns import check_text

# What torch takes as a seed.
SEEDS = (-(2**63), 2**64 - 1)


@dataclass(frozen=True)
class Answer:
    """One answer, and what it cost; the seconds are those of its whole batch."""

    text: str
    num_tokens: int
    num_forward_passes: int
    seconds: float


class Animations:
    """Writes an animation of each answer: the first to `path`, the second to `NAME-2.svg` beside it, and so on.

    Args:
        path: a file that ends in .svg or .gif.

    Raises:
        ValueError, OSError, ImportError: as `check_path`.
    """

    def __init__(self, path: Path):
        self.path = check_path(path)
        self.num_written = 0

    def write(self, recorder: Recorder, prompt: str) -> None:
        """Write the animation of an answer; `prompt` stands above it."""
        self.num_written += 1
        number = f"-{self.num_written}" if self.num_written > 1 else ""
        path = self.path.with_name(f"{self.path.stem}{number}{self.path.suffix}")
        write_animation(path, recorder.frames, recorder.tokenizer, prompt)


def make_recorder(
    checkpoint: Checkpoint,
    options: dict[str, Any],
    stop_ids: Iterable[int],
    streamer: Any = None,
    on_frame: Callable[[], None] | None = None,
) -> Recorder:
    """Return a streamer that keeps the passes of one answer and hands everything on to `streamer`."""
    settled = checkpoint.options.updated(**options)
    grows = settled.max_new_tokens is None
    return Recorder(checkpoint.tokenizer, stop_ids, settled.block_length if grows else None, streamer, on_frame)


def answer_prompts(
    prompts: list[str],
    model_options: dict[str, Any],
    options: dict[str, Any],
    *,
    chat: bool = False,
    system: str | None = None,
    infill: bool = False,
    batch_size: int = 1,
    force_length: bool = False,
    json_lines: bool = False,
    quiet: bool = False,
    animate: Path | None = None,
) -> None:
    """Print an answer to every prompt, in order.

    Args:
        prompts: at least one.
        model_options: arguments of `load_checkpoint`.
        options: options of `generate`, and `seed`: the n-th prompt (from 0) draws with seed + n, in any batch.
        chat: send each prompt as a user's turn.
        system: with `chat`, an instruction before it.
        infill: fill the mask tokens in the prompts instead of continuing them.
        batch_size: prompts answered at once.
        force_length: answer what is longer than the model reads too.
        json_lines: print JSON objects with the keys `prompt`, `answer`, `forward_passes`, `tokens`, `seconds`
            (those of the whole batch).
        quiet: do not show the canvas.
        animate: write an animation of each answer here; see `Animations`.

    Raises:
        ValueError: for options that contradict each other, and prompts that cannot be answered.
        OSError, ImportError: for a file of animations that cannot be written.
    """
    animations = None if animate is None else Animations(animate)
    console, stays = choose_console(answers_on_stdout=json_lines, quiet=quiet)
    checkpoint = load_with_notice(model_options, quiet)
    rows = [encode_prompt(checkpoint, prompt, chat, infill, system) for prompt in prompts]
    options, generators = split_seed(options, checkpoint, len(prompts))
    if not force_length:
        for row in rows:
            check_length(checkpoint, options, len(row), infill)
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        shown = [] if infill else [prompt + "\n" * chat for prompt in prompts[batch]]
        stop_ids = () if infill else active_stop_ids(checkpoint, options)
        with show_canvas(checkpoint, console, shown, stop_ids, stays) as streamer:
            draws = generators and generators[batch]
            recorder = None if animations is None else make_recorder(checkpoint, options, stop_ids, streamer)
            answers = answer_batch(checkpoint, rows[batch], options, draws, infill, recorder or streamer)
        if animations is not None and recorder is not None:
            animations.write(recorder, "" if infill else prompts[start])
        for prompt, answer in zip(prompts[batch], answers):
            if json_lines:
                record = {
                    "prompt": prompt,
                    "answer": answer.text,
                    "forward_passes": answer.num_forward_passes,
                    "tokens": answer.num_tokens,
                    "seconds": round(answer.seconds, 4),
                }
                print(json.dumps(record, ensure_ascii=False), flush=True)
            elif not stays:
                print_answer(answer.text)
        if console is not None and stays:
            console.print(_summary(answers), style="dim", highlight=False)


def show_canvas(
    checkpoint: Checkpoint, console: Console | None, prompts: list[str], stop_ids: Iterable[int], stays: bool
) -> AbstractContextManager[CanvasStreamer | None]:
    """Return the streamer for one batch, or None where nothing is shown; see `CanvasStreamer`."""
    if console is None:
        return nullcontext()
    return CanvasStreamer(checkpoint.tokenizer, console, prompts, stop_ids, stays)


def load_with_notice(model_options: dict[str, Any], quiet: bool) -> Checkpoint:
    """Load a checkpoint, an exported one too; meanwhile a terminal shows what is happening."""
    logging.disable_progress_bar()
    use_exported_loader(load_exported)
    model = model_options.get("model")
    is_download = model is not None and not Path(model).expanduser().is_dir()  # which has bars of its own
    with busy(f"Loading {model_title(model)}", quiet or is_download):
        return load_checkpoint(**model_options)


def encode_prompt(
    checkpoint: Checkpoint, prompt: str, chat: bool, infill: bool, system: str | None = None
) -> list[int]:
    """Encode a prompt as it stands, or as a user's turn, after the instruction `system`.

    Raises:
        ValueError: for a prompt that is not UTF-8 or has no token, one to fill without a mask, and one to continue
            with masks.
    """
    tokenizer = checkpoint.tokenizer
    check_text(prompt, "A prompt")
    if not prompt.strip():
        raise ValueError("A prompt is empty; pass at least one word.")
    turns = user_turn(prompt, system)
    ids = encode_chat(tokenizer, turns) if chat else tokenizer(prompt)["input_ids"]
    num_masks = ids.count(tokenizer.mask_token_id)
    if infill and not num_masks:
        raise ValueError(f"`--infill` found no {tokenizer.mask_token} in {prompt!r}; write one for each token to fill.")
    if not infill and num_masks:
        raise ValueError(f"{prompt!r} contains {tokenizer.mask_token}; pass `--infill` to fill it.")
    return ids


def user_turn(prompt: str, system: str | None = None) -> list[dict[str, str]]:
    """A prompt as a conversation, after the instruction `system` if there is one."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": prompt}]


def check_length(
    checkpoint: Checkpoint, options: dict[str, Any], num_tokens: int, infill: bool = False, name: str = "The prompt"
) -> None:
    """Refuse what is longer than the model reads, for which it was not trained.

    Args:
        checkpoint: model, tokenizer and the options its files set.
        options: options of `generate` that override the checkpoint's.
        num_tokens: of the prompt.
        infill: whether there is no answer beside it.
        name: the prompt in messages.

    Raises:
        ValueError: in this case.
    """
    longest, settled = checkpoint.model.config.max_sequence_length, checkpoint.options.updated(**options)
    added = 0 if infill else settled.max_new_tokens or 1
    length = num_tokens + added if infill or settled.max_length is None else max(settled.max_length, num_tokens)
    if length > longest:
        way_out = "shorten it" if infill or num_tokens >= longest else "pass a smaller `--max-new-tokens`"
        raise ValueError(
            f"{name} and its answer would have {length} tokens, but the model reads {longest} "
            f"(`max_sequence_length`), got a prompt of {num_tokens}; {way_out}, or pass `--force-length` to try it."
        )


def check_seed(seed: int, num_rows: int) -> None:
    """Refuse a seed that torch cannot take for every row, of which the n-th draws with seed + n.

    Raises:
        ValueError: in this case.
    """
    if not isinstance(seed, int):
        raise ValueError(f"`--seed` must be an integer, got {seed!r}; pass e.g. 0.")
    if not SEEDS[0] <= seed <= SEEDS[1] - num_rows:
        raise ValueError(
            f"`--seed` must be from {SEEDS[0]} to {SEEDS[1] - num_rows}, as each prompt adds its number, got {seed}; "
            "pass a smaller one."
        )


def split_seed(
    options: dict[str, Any], checkpoint: Checkpoint, num_rows: int
) -> tuple[dict[str, Any], list[torch.Generator] | None]:
    """Take `seed` out of the options; return the rest, and one generator per row if there was a seed."""
    rest = {name: value for name, value in options.items() if name != "seed"}
    if "seed" not in options:
        return rest, None
    check_seed(options["seed"], num_rows)
    device = checkpoint.model.device
    return rest, [torch.Generator(device).manual_seed(options["seed"] + row) for row in range(num_rows)]


def active_stop_ids(checkpoint: Checkpoint, options: dict[str, Any]) -> frozenset[int]:
    """Return the tokens at which an answer is cut: none if answers go on after end of text."""
    return checkpoint.stop_ids if options.get("stop_at_eos", checkpoint.options.stop_at_eos) else frozenset()


def answer_batch(
    checkpoint: Checkpoint,
    rows: list[list[int]],
    options: dict[str, Any],
    generators: list[torch.Generator] | None = None,
    infill: bool = False,
    streamer: Any = None,
) -> list[Answer]:
    """Continue encoded prompts together, or fill their masks.

    Args:
        checkpoint: model, tokenizer and the options its files set.
        rows: token ids of the prompts, of any lengths.
        options: options of `generate` that override the checkpoint's.
        generators: of the draws, one for each row.
        infill: fill the masks in the rows instead of continuing them.
        streamer: receives the canvas after each step.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    input_ids, attention_mask = left_pad(rows, tokenizer.pad_token_id, model.device)
    began = time.perf_counter()
    run = model.infill if infill else model.generate
    output = run(
        input_ids,
        attention_mask=attention_mask,
        generation_config=checkpoint.options,
        streamer=streamer,
        generator=generators,
        tokenizer=tokenizer,
        return_dict_in_generate=True,
        **options,
    )
    seconds = time.perf_counter() - began
    if infill:
        num_filled = [row.count(tokenizer.mask_token_id) for row in rows]
        answers = [ids[-len(row) :] for ids, row in zip(output.sequences.tolist(), rows)]
    else:
        stops = active_stop_ids(checkpoint, options)
        answers = output.sequences[:, input_ids.shape[1] :].tolist()
        answers = [cut_at_stop(ids, stops, tokenizer.mask_token_id) for ids in answers]
        num_filled = [len(ids) for ids in answers]
    texts = [decode_answer(checkpoint, ids) for ids in answers]
    passes = output.num_forward_passes.tolist()
    return [Answer(*each, seconds) for each in zip(texts, num_filled, passes)]


def left_pad(rows: list[list[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Pad rows at the left to one length.

    Returns:
        Ids int64 [batch, length], and the attention mask int64 [batch, length], or None if nothing was padded.
    """
    tensors = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tensors, True, pad_token_id, "left")
    mask = pad_sequence([torch.ones_like(row) for row in tensors], True, 0, "left")
    return ids.to(device), None if mask.all() else mask.to(device)


def print_answer(text: str) -> None:
    """Print an answer to stdout; on a terminal without control characters."""
    print(printable(text) if sys.stdout.isatty() else text, flush=True)


def decode_answer(checkpoint: Checkpoint, ids: list[int]) -> str:
    """Decode without special tokens, up to an end of turn that a tokenizer without this token has spelled out."""
    text = str(checkpoint.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    end = special_tokens(checkpoint.tokenizer).end_of_turn
    return text if end is None else text.partition(end)[0]


def _summary(answers: list[Answer]) -> str:
    """Return one line on what a batch cost."""
    num_tokens = sum(answer.num_tokens for answer in answers)
    num_passes = max(answer.num_forward_passes for answer in answers)
    return f"\n{num_tokens} tokens · {num_passes} passes · {answers[0].seconds:.1f} s\n"
