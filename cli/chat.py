"""`llada chat`: a conversation on a terminal, or answers to stdin, one user's turn per line."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from llada_core.tokenization import encode_chat, missing_tokens, special_tokens

from .display import choose_console
from .generate import (
    BYTE_ORDER_MARK,
    answer_batch,
    check_text,
    load_with_notice,
    print_answer,
    show_canvas,
    split_seed,
)
from .options import print_error

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, /help shows this; anything else is your turn."


class Conversation:
    """The turns so far, kept short enough for the model.

    Args:
        tokenizer: one that went through `prepare_tokenizer`.
        max_prompt_length: tokens that the encoded conversation may have.
        system: an instruction that opens the conversation and is never dropped.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int, system: str | None = None):
        self.tokenizer = tokenizer
        self.max_prompt_length = max_prompt_length
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict[str, str]] = []

    def ask(self, text: str) -> tuple[list[int], int]:
        """Add the user's turn, and drop the oldest exchanges until everything fits.

        Returns:
            The encoded conversation, which ends where the assistant begins; and the number of exchanges dropped.

        Raises:
            ValueError: if the turn is too long on its own, contains the mask token or is not UTF-8; the conversation
                stays as it was.
        """
        check_text(text, "A turn")
        if self.tokenizer.mask_token in text:
            raise ValueError(
                f"A turn must not contain {self.tokenizer.mask_token}; `llada generate --infill` fills masks."
            )
        turn = {"role": "user", "content": text}
        for num_dropped in range(len(self.turns) // 2 + 1):
            turns = [*self.turns[2 * num_dropped :], turn]
            ids = encode_chat(self.tokenizer, self.system + turns)
            if len(ids) <= self.max_prompt_length:
                self.turns = turns
                return ids, num_dropped
        raise ValueError(
            f"This turn has {len(ids)} tokens with its headers, but only {self.max_prompt_length} fit beside the "
            "answer; shorten it, or pass a smaller --max-new-tokens."
        )

    def reply(self, text: str) -> None:
        """Add the assistant's turn."""
        self.turns.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        """Forget every turn but the system's."""
        self.turns = []


def hold_conversation(
    model_options: dict[str, Any], options: dict[str, Any], *, system: str | None = None, quiet: bool = False
) -> None:
    """Answer turn after turn until the input ends or says /exit.

    Args:
        model_options: arguments of `load_checkpoint`.
        options: options of `generate`, and `seed`.
        system: an instruction that opens the conversation.
        quiet: do not show the canvas.

    Raises:
        ValueError: for options that contradict each other, or a piped turn that is too long; a person at the
            keyboard is told, and may try again.
        OSError: if stdin or stdout is closed.
    """
    if sys.stdin is None:
        raise OSError("stdin is closed, but the turns are read there; leave `<&-` out.")
    is_typed = sys.stdin.isatty()
    check_text(system or "", "`--system`")
    console, stays = choose_console(answers_on_stdout=False, quiet=quiet)
    checkpoint = load_with_notice(model_options, quiet)
    options, generators = split_seed(options, checkpoint, num_rows=1)
    settled = checkpoint.options.updated(**options)
    longest = settled.max_length or checkpoint.model.config.max_sequence_length
    room = longest - (settled.max_new_tokens or settled.block_length)
    if room < 1:
        raise ValueError(
            f"`--max-new-tokens` must leave room for the conversation: the model reads {longest} tokens "
            f"(`max_sequence_length`), got {settled.max_new_tokens}."
        )
    conversation = Conversation(checkpoint.tokenizer, room, system)
    absent = missing_tokens(checkpoint.tokenizer, special_tokens(checkpoint.tokenizer).chat)
    if absent:
        _notice(f"The tokenizer lacks {', '.join(absent)}: turns are marked in plain text, and the model may ramble.")
    if is_typed:
        _notice(HELP)
    for text in _turns(is_typed):
        if text.startswith("/"):
            if _obey(text, conversation):
                return
            continue
        try:
            ids, num_dropped = conversation.ask(text)
        except ValueError as error:
            if not is_typed:
                raise
            print_error(str(error))
            continue
        if num_dropped:
            _notice(f"The conversation grew too long: the oldest {num_dropped} exchange(s) are forgotten.")
        with show_canvas(checkpoint, console, [""], checkpoint.stop_ids, stays) as streamer:
            (answer,) = answer_batch(checkpoint, [ids], options, generators, streamer=streamer)
        conversation.reply(answer.text)
        if not stays:
            print_answer(answer.text)


def _turns(is_typed: bool) -> Iterator[str]:
    """Yield the lines of stdin that are not blank; a person is prompted for them."""
    if is_typed:
        with suppress(ImportError):  # absent on Windows; its import gives `input` line editing and history
            import readline  # noqa: F401
    prompt = "\n> " if is_typed and sys.stdout.isatty() else ""
    begin = BYTE_ORDER_MARK
    while True:
        try:
            line = input(prompt).removeprefix(begin)
        except EOFError:
            if prompt:
                print()
            return
        begin = ""
        if line.strip():
            yield line.strip()


def _obey(command: str, conversation: Conversation) -> bool:
    """Carry out a command that begins with a slash; return whether the conversation is over."""
    if command in ("/exit", "/quit"):
        return True
    if command == "/reset":
        conversation.reset()
        _notice("The conversation is forgotten.")
    elif command == "/help":
        _notice(HELP)
    else:
        _notice(f"There is no command {command.split()[0]}. {HELP}")
    return False


def _notice(message: str) -> None:
    """Print a remark to stderr, so that stdout holds answers only."""
    Console(stderr=True).print(escape(message), style="dim", highlight=False, soft_wrap=True)
