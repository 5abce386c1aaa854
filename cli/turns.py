"""Reads what a person says: prompts from a pipe; the turns of a chat, typed with pasting, several lines and history."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .screen import notice

BYTE_ORDER_MARK = "\ufeff"
# Around a turn of several lines.
QUOTES = '"""'
PROMPT = "\n> "


def read_turns(completions: dict[str, Any]) -> Iterator[str]:
    """Yield the turns of stdin that are not blank, without spaces around them.

    A turn is a line, or what stands between lines that begin and end with three quotation marks. Where a person types
    on a terminal, pasted text is one turn, Alt-Enter begins a line, and Ctrl-D or Ctrl-C twice ends the chat.

    Args:
        completions: what the tab key offers: words, each with a dict of the words after it or None.

    Raises:
        ValueError: for a pipe that ends before the quotation marks are closed.
    """
    is_prompted = sys.stdin.isatty() and sys.stdout.isatty()
    for text in _typed(completions) if is_prompted else _lines():
        if turn := unquote(text):
            yield turn


def is_open(text: str) -> bool:
    """Whether a turn begins with three quotation marks and lacks those that end it."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


def unquote(text: str) -> str:
    """Return a turn without spaces and quotation marks around it."""
    text = text.strip()
    return text.removeprefix(QUOTES).removesuffix(QUOTES).strip() if text.startswith(QUOTES) else text


def read_prompts() -> list[str]:
    """Return the lines of stdin that are not blank, without a byte-order mark."""
    try:
        lines = [] if sys.stdin is None or sys.stdin.isatty() else [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin is not UTF-8 ({error}); send it as UTF-8.") from None
    prompts = [line for line in [line.removeprefix(BYTE_ORDER_MARK) for line in lines[:1]] + lines[1:] if line.strip()]
    if not prompts:
        raise ValueError('There is no prompt: pass one (llada generate "Once upon a time"), or lines of them on stdin.')
    return prompts


def check_text(text: str, name: str) -> None:
    """Refuse text of the command line that is not UTF-8, whose bytes arrive as half surrogate pairs.

    Raises:
        ValueError: in this case.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be UTF-8, got {text!r}; write it in a terminal that uses UTF-8.") from None


@contextlib.contextmanager
def interrupts_between_passes() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C wait until the function that is given is called; a second Ctrl-C does not wait.

    Raises:
        KeyboardInterrupt: from that function, after Ctrl-C.
    """
    is_asked = False

    def ask(*_: object) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True

    def check() -> None:
        if is_asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def hidden_typing() -> Iterator[None]:
    """Keep what is typed during an answer off the screen; the next prompt reads it."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _typed(completions: dict[str, Any]) -> Iterator[str]:
    """Yield what a person types."""
    session = _make_session(completions)
    is_leaving = False
    while True:
        try:
            text = session.prompt(PROMPT)
        except EOFError:
            return
        except KeyboardInterrupt:
            if is_leaving:
                return
            is_leaving = True
            notice("Ctrl-C again or Ctrl-D ends the chat.")
            continue
        is_leaving = False
        yield text


def _make_session(completions: dict[str, Any]) -> Any:
    """Make a prompt at which Enter sends the turn, unless its quotation marks are open."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import NestedCompleter
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: Any) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        multiline=True,
        key_bindings=keys,
        completer=NestedCompleter.from_nested_dict(completions),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
    )


def _lines() -> Iterator[str]:
    """Yield the lines of stdin, those between quotation marks together."""
    begin, waiting = BYTE_ORDER_MARK, ""
    while True:
        try:
            line = input().removeprefix(begin)
        except EOFError:
            break
        begin, waiting = "", f"{waiting}\n{line}" if waiting else line
        if not is_open(waiting):
            yield waiting
            waiting = ""
    if waiting:
        raise ValueError(f"A turn begins with {QUOTES} and is not closed; end its last line with {QUOTES}.")
