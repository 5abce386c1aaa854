"""What a command shows around its answers: errors, remarks, and a sign of life before torch is imported."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def print_error(message: str) -> None:
    """Print `message` to stderr on one line, in red where colours are shown."""
    from rich.console import Console
    from rich.text import Text

    text = Text("Error: " + " ".join(message.split()), style="red")
    Console(file=sys.stderr).print(text, soft_wrap=True)


def notice(message: str) -> None:
    """Print a remark to stderr, so that stdout holds answers only. Lines break between words."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    console.print(Text(message, style="dim"), soft_wrap=not console.is_terminal)


@contextlib.contextmanager
def busy(text: str, quiet: bool = False) -> Iterator[None]:
    """Show `text` beside a spinner on stderr, from now to the end of the block; a pipe shows nothing.

    Heavy imports belong into such a block: they take seconds.
    """
    status: contextlib.AbstractContextManager = contextlib.nullcontext()
    if sys.stderr is not None and sys.stderr.isatty() and not quiet:
        from rich.console import Console

        status = Console(stderr=True).status(text)
    with status:
        yield


def choose_console(answers_on_stdout: bool, quiet: bool) -> tuple[Any, bool]:
    """Decide where the canvas is shown.

    Args:
        answers_on_stdout: whether stdout is read by a program, as JSON is.
        quiet: show no canvas at all.

    Returns:
        The console, None for no canvas; and whether the canvas stays there as the answer. It stays on a terminal's
        stdout. If only stderr is a terminal, the canvas is shown there and wiped, and stdout is left to the answers.

    Raises:
        OSError: if stdout is closed.
    """
    from rich.console import Console

    if sys.stdout is None:
        raise OSError(
            "stdout is closed, but the answers are printed there; leave `>&-` out, or pass `--input` and `--output`."
        )
    if quiet:
        return None, False
    if sys.stdout.isatty() and not answers_on_stdout:
        return Console(), True
    if sys.stderr is not None and sys.stderr.isatty() and not sys.stdout.isatty():
        return Console(stderr=True), False
    return None, False


def model_title(model: str | None) -> str:
    """How a model is named beside the spinner: the bundled one, the name of a folder, or the id on the Hub."""
    if model is None:
        return "the bundled model"
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model
