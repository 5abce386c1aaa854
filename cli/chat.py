"""`llada chat`: a conversation on a terminal, or answers to stdin, one user's turn per line."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llada_core.animation import SUFFIXES, write_animation
from llada_core.conversation import Conversation, cut_at_stop
from llada_core.loading import Checkpoint
from llada_core.recorder import Frame, Recorder
from llada_core.tokenization import missing_tokens, special_tokens
from modeling_llada.generation_config_llada import ALIASES, OPTIONS, known_options

from .display import CanvasStreamer
from .generate import (
    Animations,
    Answer,
    active_stop_ids,
    answer_batch,
    decode_answer,
    load_with_notice,
    make_recorder,
    print_answer,
    show_canvas,
    split_seed,
)
from .options import GENERATION_OPTIONS
from .screen import choose_console, notice, print_error
from .turns import check_text, hidden_typing, interrupts_between_passes, read_turns

# Seconds between two passes of a replay: at most as long as they took, and in slow motion all the same.
LONGEST_PAUSE, SLOW_PAUSE = 1.0, 0.6
SETTABLE = [row.name for row in GENERATION_OPTIONS]
# Command -> its arguments, what it does.
COMMANDS = {
    "/set": ("[OPTION [VALUE]]", "show or change options of generation, such as /set steps 8; VALUE default undoes it"),
    "/stats": ("", "passes, tokens and seconds of the last answer and of the chat"),
    "/replay": ("[slow]", "show again how the last answer came about"),
    "/system": ("[TEXT]", "show or change the instruction that opens the chat; none takes it away"),
    "/save": (
        "FILE",
        "write the chat as JSON Lines, which llada train sft reads; a .svg or .gif draws the last answer",
    ),
    "/reset": ("", "forget the conversation"),
    "/help": ("", "show this"),
    "/exit": ("", "end the chat, as Ctrl-D does"),
}
INTRODUCTION = "Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists the commands."
HOW_TO_TYPE = 'Everything else is your turn. Alt-Enter, or """ before and after, allows several lines.'
WORDS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass(frozen=True)
class Exchange:
    """The last turn, the passes of its answer, and what the answer cost."""

    text: str
    frames: list[Frame]
    answer: Answer


def hold_conversation(
    model_options: dict[str, Any],
    options: dict[str, Any],
    *,
    system: str | None = None,
    quiet: bool = False,
    animate: Path | None = None,
) -> None:
    """Answer turn after turn until the input ends or says /exit.

    Args:
        model_options: arguments of `load_checkpoint`.
        options: options of `generate`, and `seed`.
        system: an instruction that opens the conversation.
        quiet: do not show the canvas.
        animate: write an animation of each answer here; see `Animations`.

    Raises:
        ValueError: for options that contradict each other, or a piped turn that cannot be answered; a person at the
            keyboard is told, and may try again.
        OSError: if stdin or stdout is closed, or an animation cannot be written.
        ImportError: for a GIF without pillow.
    """
    if sys.stdin is None:
        raise OSError("stdin is closed, but the turns are read there; leave `<&-` out.")
    animations = None if animate is None else Animations(animate)
    check_text(system or "", "`--system`")
    console, stays = choose_console(answers_on_stdout=False, quiet=quiet)
    checkpoint = load_with_notice(model_options, quiet)
    chat = Chat(checkpoint, options, system, console, stays, animations)
    absent = missing_tokens(checkpoint.tokenizer, special_tokens(checkpoint.tokenizer).chat)
    if absent:
        notice(f"The tokenizer lacks {', '.join(absent)}: turns are marked in plain text, and the model may ramble.")
    is_typed = sys.stdin.isatty()
    if is_typed:
        notice(INTRODUCTION)
    completions = dict.fromkeys(COMMANDS) | {"/set": dict.fromkeys(SETTABLE), "/replay": {"slow": None}}
    for text in read_turns(completions):
        if text in ("/exit", "/quit"):
            return
        try:
            if text.startswith("/"):
                chat.obey(text)
            else:
                chat.answer(text, is_typed)
        except (ValueError, OSError, ImportError) as error:
            if not is_typed:
                raise
            print_error(str(error))
        except KeyboardInterrupt:  # of something else than an answer
            if not is_typed:
                raise
            notice("Stopped.")


class Chat:
    """The conversation, its options, and what the last answer was.

    Args:
        checkpoint: model, tokenizer and the options its files set.
        options: options of `generate`, and `seed`.
        system: an instruction that opens the conversation.
        console: where the canvas is shown, or None.
        stays: whether the canvas stays there as the answer.
        animations: get every answer; or None.

    Raises:
        ValueError: for options that contradict each other or leave no room for a turn.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: dict[str, Any],
        system: str | None = None,
        console: Console | None = None,
        stays: bool = False,
        animations: Animations | None = None,
    ):
        self.checkpoint = checkpoint
        self.console = console
        self.stays = stays
        self.animations = animations
        self.options: dict[str, Any] = {}
        self.generators: list[torch.Generator] | None = None
        self.conversation = Conversation(checkpoint.tokenizer, self._settle(options), system)
        # Every turn since the last /reset, those that the model has forgotten too.
        self.said: list[dict[str, str]] = []
        self.last: Exchange | None = None
        self.costs: list[Answer] = []
        self.saved: set[Path] = set()

    def answer(self, text: str, can_be_stopped: bool = False) -> None:
        """Answer a turn. Of an answer that Ctrl-C stops, what stands before its first mask is kept.

        Raises:
            ValueError: for a turn or options that cannot be answered; the conversation stays as it was.
        """
        check_text(text, "A turn")
        before = list(self.conversation.turns)
        ids, num_dropped = self.conversation.ask(text)
        if num_dropped:
            notice(f"The conversation grew too long: the oldest {num_dropped} exchange(s) are forgotten.")
        try:
            recorder, answer, is_whole = self._run(ids, can_be_stopped)
        except ValueError:
            self.conversation.turns = before
            raise
        self.costs.append(answer)
        if recorder.frames:  # a run that is stopped in its first pass has none
            self.last = Exchange(text, recorder.frames, answer)
        if self.animations is not None and recorder.frames:
            self.animations.write(recorder, text)
        if not self.stays:
            print_answer(answer.text)
        if is_whole or answer.text.strip():
            self.conversation.reply(answer.text)
            self.said += self.conversation.turns[-2:]
        else:
            self.conversation.turns = before
        if not is_whole:
            kept = "What stands before its first gap is kept" if answer.text.strip() else "Your turn is taken back"
            notice(f"Stopped. {kept}; ask on.")

    def obey(self, line: str) -> None:
        """Carry out a command, which begins with a slash.

        Raises:
            ValueError: for an unknown option or a value outside its range.
            OSError, ImportError: for a file that cannot be written.
        """
        command, _, argument = line.partition(" ")
        actions: dict[str, Callable[[str], None]] = {
            "/set": self._set,
            "/stats": lambda _: self._show_stats(),
            "/replay": self._replay,
            "/system": self._change_system,
            "/save": self._save,
            "/reset": lambda _: self._reset(),
            "/help": lambda _: show_help(),
        }
        if command in actions:
            actions[command](argument.strip())
        else:
            notice(f"There is no command {command}. /help lists them.")

    def _settle(self, options: dict[str, Any]) -> int:
        """Take over options of generation; return how many tokens a conversation may have with them."""
        chosen, generators = split_seed(options, self.checkpoint, num_rows=1)
        settled = self.checkpoint.options.updated(**chosen)
        longest = settled.max_length or self.checkpoint.model.config.max_sequence_length
        room = longest - (settled.max_new_tokens or settled.block_length)
        if room < 1:
            raise ValueError(
                f"`--max-new-tokens` must leave room for the conversation: the model reads {longest} tokens "
                f"(`max_sequence_length`), got {settled.max_new_tokens}."
            )
        if options.get("seed") != self.options.get("seed"):
            self.generators = generators
        self.options = options
        return room

    def _run(self, ids: list[int], can_be_stopped: bool) -> tuple[Recorder, Answer, bool]:
        """Answer an encoded conversation; return the passes, the answer, and whether it came to its end."""
        checkpoint, options = self.checkpoint, {name: value for name, value in self.options.items() if name != "seed"}
        stop_ids = active_stop_ids(checkpoint, options)
        typing: AbstractContextManager = hidden_typing() if can_be_stopped else nullcontext()
        interrupts: AbstractContextManager = interrupts_between_passes() if can_be_stopped else nullcontext()
        canvas = show_canvas(checkpoint, self.console, [""], stop_ids, self.stays)
        began = time.perf_counter()
        with typing, interrupts as check, canvas as streamer:
            recorder = make_recorder(checkpoint, options, stop_ids, streamer, on_frame=check)
            try:
                (answer,) = answer_batch(checkpoint, [ids], options, self.generators, streamer=recorder)
                return recorder, answer, True
            except KeyboardInterrupt:
                if not can_be_stopped:
                    raise
                if streamer is not None:
                    streamer.end_at_gap()
        return recorder, self._committed_start(recorder.frames, time.perf_counter() - began), False

    def _committed_start(self, frames: list[Frame], seconds: float) -> Answer:
        """The answer of a run that was stopped: the tokens before the first mask."""
        mask = self.checkpoint.tokenizer.mask_token_id
        ids = list(frames[-1].ids) if frames else []
        ids = cut_at_stop(
            ids[: ids.index(mask)] if mask in ids else ids, active_stop_ids(self.checkpoint, self.options), mask
        )
        return Answer(decode_answer(self.checkpoint, ids), len(ids), max(0, len(frames) - 1), seconds)

    def _set(self, argument: str) -> None:
        """Show all options that are set here, or one, or change one."""
        name, _, text = argument.replace("=", " ", 1).partition(" ")
        name = name.lstrip("-").replace("-", "_")
        name, text = ALIASES.get(name, name), text.strip()
        if not name:
            changed = ", ".join(f"{each} = {value!r}" for each, value in self.options.items())
            notice(f"Set here: {changed or 'nothing'}. The rest is the checkpoint's; /set OPTION shows one.")
            return
        if name not in SETTABLE:
            known_options({name: text})  # an unknown one raises, with the nearest name
            raise ValueError(f"`{name}` cannot be set in a chat; it can be set in Python, for `generate`.")
        if not text:
            self._show_option(name)
            return
        options = {**self.options, name: read_value(name, text)}
        other = {"max_length": "max_new_tokens", "max_new_tokens": "max_length"}.get(name)
        if text == "default" or (name == "seed" and options[name] is None):
            del options[name]
        elif other is not None and options[name] is not None:
            options.pop(other, None)
        self.conversation.max_prompt_length = self._settle(options)
        self._show_option(name)

    def _show_option(self, name: str) -> None:
        """Print an option's value, and what may stand there."""
        if name == "seed":
            notice(f"`seed` is {self.options.get('seed')}.")
            return
        options = {each: value for each, value in self.options.items() if each != "seed"}
        value, (_, _, rule, meaning) = getattr(self.checkpoint.options.updated(**options), name), OPTIONS[name]
        rule = rule if isinstance(rule, str) else f"one of {', '.join(rule)}"
        notice(f"`{name}` is {value!r} ({rule}): {meaning}.")

    def _show_stats(self) -> None:
        """Print what the last answer and the whole chat cost."""
        if self.last is None:
            notice("There is no answer yet.")
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("", "answers", "passes", "tokens", "tokens/pass", "seconds"):
            table.add_column(title, justify="right" if title else "left")
        for title, answers in (("last", [self.last.answer]), ("chat", self.costs)):
            passes, tokens = (sum(getattr(a, name) for a in answers) for name in ("num_forward_passes", "num_tokens"))
            seconds = sum(answer.seconds for answer in answers)
            rate = f"{tokens / passes:.2f}" if passes else "–"
            table.add_row(title, str(len(answers)), str(passes), str(tokens), rate, f"{seconds:.1f}")
        Console(stderr=True).print(table)

    def _replay(self, argument: str) -> None:
        """Show the passes of the last answer again; Ctrl-C ends it."""
        if argument not in ("", "slow"):
            raise ValueError(f"`/replay` takes the word slow or nothing, got {argument!r}.")
        console = self.console or Console(stderr=True)
        if self.last is None or not console.is_terminal:
            notice("There is no terminal to replay on." if self.last else "There is no answer yet.")
            return
        frames, checkpoint = self.last.frames, self.checkpoint
        canvas = CanvasStreamer(checkpoint.tokenizer, console, [""], (), True, 0)
        try:
            with hidden_typing(), canvas:
                canvas.put(torch.tensor([checkpoint.tokenizer.pad_token_id or 0]))
                for before, frame in zip([None, *frames], frames):
                    if before is not None:
                        took = min(frame.seconds - before.seconds, LONGEST_PAUSE)
                        time.sleep(max(took, SLOW_PAUSE) if argument else took)
                    canvas.put_draft(torch.tensor([frame.ids], dtype=torch.long))
                canvas.end()
        except KeyboardInterrupt:
            notice("Stopped.")

    def _change_system(self, text: str) -> None:
        """Show or change the instruction that opens the conversation."""
        check_text(text, "`/system`")
        if text:
            self.conversation.system = [] if text == "none" else [{"role": "system", "content": text}]
        system = self.conversation.system
        notice(f"The instruction is: {system[0]['content']}" if system else "There is no instruction.")

    def _save(self, name: str) -> None:
        """Write the conversation, or the animation of the last answer."""
        check_text(name, "`/save`")
        path = Path(name).expanduser()
        if not name or path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"`/save` needs the name of a file in a folder that exists, got {name!r}; name another.")
        if path.exists() and path.resolve() not in self.saved:
            raise FileExistsError(f"There is a file `{path}` already; name another.")
        if self.last is None or not self.said:
            raise ValueError("There is no answer to save yet; ask something first.")
        if path.suffix.lower() in SUFFIXES:
            write_animation(path, self.last.frames, self.checkpoint.tokenizer, self.last.text)
        else:
            line = json.dumps({"messages": self.conversation.system + self.said}, ensure_ascii=False)
            path.write_text(line + "\n", encoding="utf-8")
        self.saved.add(path.resolve())
        notice(f"Written: {path}")

    def _reset(self) -> None:
        """Forget the turns; options, instruction and costs stay."""
        self.conversation.reset()
        self.said = []
        notice("The conversation is forgotten.")


def read_value(name: str, text: str) -> Any:
    """Read the value of an option as a person types it; what is no value of its kind is returned as it is."""
    kind = "int" if name == "seed" else OPTIONS[name][1]
    if text.lower() == "none":
        return None
    if kind == "bool":
        return WORDS.get(text.lower(), text)
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            return text
    return text


def show_help() -> None:
    """Print the commands to stderr; lines break between words, however narrow the terminal."""
    console = Console(stderr=True)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, (arguments, meaning) in COMMANDS.items():
        table.add_row(Text(f"{name} {arguments}".strip()), Text(meaning))
    console.print(table, style="dim")
    notice(f"{HOW_TO_TYPE} {INTRODUCTION}")
