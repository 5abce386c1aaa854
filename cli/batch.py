"""`llada generate --input --output`: answers a file of prompts, with one process or several."""

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llada_core.conversation import cut_at_stop
from llada_core.digests import model_digest
from llada_core.loading import Checkpoint
from llada_core.processes import Processes
from llada_core.resume import RecordFile
from llada_core.tokenization import encode_chat
from modeling_llada import LLaDAAnswer, generate_many
from modeling_llada.generation_config_llada import DEFAULTS

from .generate import active_stop_ids, check_length, check_seed, decode_answer, load_with_notice, user_turn
from .prompt_file import PromptFile, PromptLine, read_prompt_file


def answer_file(
    input_file: Path,
    output_file: Path,
    model_options: dict[str, Any],
    options: dict[str, Any],
    *,
    chat: bool = False,
    system: str | None = None,
    batch_size: int = 8,
    force: bool = False,
    force_length: bool = False,
    quiet: bool = False,
) -> None:
    """Answer every prompt of a file; after a kill, the same call goes on where it ended.

    Args:
        input_file: see `read_prompt_file`.
        output_file: gets a JSON line for every prompt: `index`, the prompt's line from 0; what the line held; `answer`,
            `forward_passes`, `tokens`. See `llada_core.resume` for the order and the other files.
        model_options: arguments of `load_checkpoint`.
        options: options of `generate`, and `seed`: the prompt in line n (from 0) draws with seed + n.
        chat: put each `prompt` as a user's turn.
        system: with `chat`, an instruction before it.
        batch_size: prompts worked on at once, by each process.
        force_length: answer what is longer than the model reads too.
        force: begin anew, whatever `output_file` holds.
        quiet: show no progress.

    Raises:
        ValueError: for prompts and options that cannot be answered, and answers of another run.
        OSError: for files that cannot be read or written.
    """
    process = Processes()
    if force and process.num_processes > 1:
        raise ValueError(
            "`--force` works with one process only, since another may have begun already; delete "
            f"`{output_file}` and the files beside it that begin with its name instead."
        )
    prompts = read_prompt_file(input_file)
    answers = RecordFile(output_file, str(process.rank or ""), fields=("index", "answer"))
    _check_output(output_file, input_file, answers)
    model_options = {**model_options, "device": process.own_device(model_options.get("device"))}
    checkpoint = load_with_notice(model_options, quiet or process.rank > 0)
    settings = describe_run(prompts, input_file, checkpoint, options, chat, system)
    done = {} if force else answers.find(settings)
    share = prompts.lines[process.rank :: process.num_processes]
    waiting = [line for line in share if line.index not in done]
    began = time.perf_counter()
    # Every mistake of the caller shows here, before anything is written or thrown away.
    records = answer_lines(checkpoint, waiting, options, batch_size, chat, system, force_length)
    answers.start(settings, force)
    with _progress(process, quiet) as progress:
        task = progress.add_task("Answering", total=len(share), completed=len(share) - len(waiting))
        for record in records:
            answers.write(record)
            progress.advance(task)
    answers.close()
    num_missing = answers.put_in_order([line.index for line in prompts.lines])
    if not quiet:
        _report(output_file, len(waiting), len(share), num_missing, time.perf_counter() - began)


def _check_output(output_file: Path, input_file: Path, answers: RecordFile) -> None:
    if not output_file.resolve().parent.is_dir():
        raise FileNotFoundError(f"There is no folder `{output_file.parent}`; make it, or name another `--output`.")
    if output_file.is_dir():
        raise ValueError(f"`--output` must be a file, but `{output_file}` is a folder; name another.")
    if output_file.exists() and output_file.samefile(input_file):
        raise ValueError("`--output` is the file of `--input`; name another.")
    if answers.covers(input_file):
        raise ValueError(
            f"`--input` must not have the name of a file that `--output` writes beside `{output_file}`, got "
            f"`{input_file}`; name another `--output`."
        )


def describe_run(
    prompts: PromptFile,
    input_file: Path,
    checkpoint: Checkpoint,
    options: dict[str, Any],
    chat: bool,
    system: str | None = None,
) -> dict[str, Any]:
    """Return all that decides the answers; batch size, processes and device do not.

    Raises:
        ValueError: for options that `generate` would refuse.
    """
    settled = checkpoint.options.updated(**{name: value for name, value in options.items() if name != "seed"})
    chosen = {name: getattr(settled, name) for name in DEFAULTS}
    return {
        "input": {"name": str(input_file), "digest": prompts.digest},
        "checkpoint": {
            "name": checkpoint.model.name_or_path,
            "digest": model_digest(checkpoint.model, checkpoint.tokenizer),
        },
        "options": {**chosen, "seed": options.get("seed"), "chat": chat, **({"system": system} if system else {})},
    }


def answer_lines(
    checkpoint: Checkpoint,
    lines: list[PromptLine],
    options: dict[str, Any],
    batch_size: int,
    chat: bool,
    system: str | None = None,
    force_length: bool = False,
) -> Iterator[dict[str, Any]]:
    """Answer lines; the records come as they finish. The arguments are those of `answer_file`.

    Raises:
        ValueError: at once, for options and lines that cannot be answered.
    """
    rows = [_encode(checkpoint, line, chat, system) for line in lines]
    seed = options.get("seed")
    chosen = {name: value for name, value in options.items() if name != "seed"}
    if not force_length:
        for row, line in zip(rows, lines):
            check_length(checkpoint, chosen, len(row), name=line.place)
    if seed is not None and lines:
        check_seed(seed, 1 + max(line.index for line in lines))
    try:
        answers = generate_many(
            checkpoint.model,
            rows,
            batch_size,
            generation_config=checkpoint.options,
            seeds=None if seed is None else [seed + line.index for line in lines],
            tokenizer=checkpoint.tokenizer,
            **chosen,
        )
    except ValueError as error:
        raise ValueError(re.sub(r"^Prompt (\d+)", lambda found: lines[int(found[1])].place, str(error))) from None
    stop_ids = active_stop_ids(checkpoint, options)
    return (_to_record(checkpoint, lines[answer.index], answer, stop_ids) for answer in answers)


def _encode(checkpoint: Checkpoint, line: PromptLine, chat: bool, system: str | None) -> list[int]:
    """Encode a line's conversation, or its prompt as it stands or as a user's turn."""
    tokenizer, messages = checkpoint.tokenizer, line.record.get("messages")
    if chat and messages is None:
        messages = user_turn(line.record["prompt"], system)
    ids = tokenizer(line.record["prompt"])["input_ids"] if messages is None else encode_chat(tokenizer, messages)
    if tokenizer.mask_token_id in ids:
        raise ValueError(f"{line.place} holds {tokenizer.mask_token}, which a prompt may not; take it out.")
    return ids


def _to_record(
    checkpoint: Checkpoint, line: PromptLine, answer: LLaDAAnswer, stop_ids: Iterable[int]
) -> dict[str, Any]:
    """Return what is written for a line: what it held, and its answer."""
    ids = cut_at_stop(answer.ids, stop_ids, checkpoint.tokenizer.mask_token_id)
    return {
        "index": line.index,
        **line.record,
        "answer": decode_answer(checkpoint, ids),
        "forward_passes": answer.num_forward_passes,
        "tokens": len(ids),
    }


def _progress(process: Processes, quiet: bool) -> Progress:
    """Return the bar, which the first process shows for its own share."""
    share = "" if process.num_processes == 1 else f" (process 1 of {process.num_processes})"
    title = TextColumn("{task.description}" + share)
    columns = (title, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet or process.rank > 0)


def _report(output_file: Path, num_new: int, num_share: int, num_missing: int, seconds: float) -> None:
    """Say on stderr what this process did."""
    before = f" ({num_share - num_new} were there)" if num_new < num_share else ""
    ending = f", {num_missing} to come from other processes" if num_missing else ""
    message = f"{num_new} prompts answered in {seconds:.1f} s{before}: {output_file}{ending}"
    Console(stderr=True).print(message, style="dim", highlight=False, markup=False, soft_wrap=True)
