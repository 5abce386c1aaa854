"""Flags that several commands share, and the way a command reports an error: one line, no traceback."""

import ast
import contextlib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., Any])

_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "texts": list[str]}
# Options of generation that make no sense at a prompt.
_WITHOUT_FLAG = ("do_sample", "return_dict_in_generate", "output_history", "num_return_sequences")


def _generation_options() -> list[tuple[str, Any, str]]:
    """Read the table of generation's options as text: importing it would import torch and transformers."""
    [folder] = importlib.util.find_spec("modeling_llada").submodule_search_locations  # type: ignore[union-attr,misc]
    tree = ast.parse((Path(folder) / "generation_config_llada.py").read_text(encoding="utf-8"))
    [table] = [node for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "OPTIONS"]
    return [
        (name, _TYPES[kind], f"{meaning[0].upper()}{meaning[1:]}.".partition(". ")[0].rstrip(".") + ".")
        for name, (_, kind, _, meaning) in ast.literal_eval(table.value).items()  # type: ignore[arg-type]
        if kind in _TYPES and name not in _WITHOUT_FLAG
    ]


# Name of the argument, its type, help; the flag is the name with dashes. Unset flags are not passed on, so that the
# checkpoint's generation_config.json and the defaults of `generate` hold.
GENERATION_OPTIONS = [*_generation_options(), ("seed", int, "Seed of the draws.")]
MODEL_OPTIONS: list[tuple[str, Any, str]] = [
    ("model", str, "Folder or Hub id of a LLaDA checkpoint; the bundled model unless given."),
    ("device", str, "cpu, cuda, cuda:1, mps …; the best one found unless given."),
    ("dtype", str, "float32, bfloat16, float16, or auto: as the checkpoint was saved."),
    ("revision", str, "Branch, tag or commit on the Hub."),
    ("trust_remote_code", bool, "Run the checkpoint's own model code in place of the installed one."),
]
_SHORT_FLAGS = {"model": ["--model", "-m"], "max_new_tokens": ["--max-new-tokens", "--gen-length", "-n"]}


def takes(table: list[tuple[str, Any, str]], into: str, panel: str) -> Callable[[Command], Command]:
    """Give a command one flag per row of `table`; it receives the flags that were set as one dict.

    Args:
        table: rows of name, type and help text.
        into: the argument of the command that receives the dict.
        panel: the heading of these flags in the help.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            given = {name: values.pop(name) for name, _, _ in table}
            return command(
                **values, **{into: {name: value for name, value in given.items() if value not in (None, [])}}
            )

        own = [p for p in inspect.signature(command).parameters.values() if p.name != into]
        _set_parameters(wrapper, own + [_parameter(*row, panel=panel) for row in table])
        return wrapper  # type: ignore[return-value]

    return decorate


def reports_errors(command: Command) -> Command:
    """Let a command print what its user did wrong as one red line and exit with 2; Ctrl-C exits with 130.

    Adds the flag `--debug`, which shows the traceback.
    """

    @functools.wraps(command)
    def wrapper(debug: bool = False, **values: Any) -> Any:
        with errors_on_one_line(debug):
            return command(**values)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "debug"]
    _set_parameters(wrapper, [*own, _parameter("debug", bool, "Show the traceback of an error.", False, "Other")])
    return wrapper  # type: ignore[return-value]


@contextlib.contextmanager
def errors_on_one_line(debug: bool = False) -> Iterator[None]:
    """Print an error of the user's as `print_error` does and exit with 2, unless `debug`; Ctrl-C exits with 130."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output has gone; Typer ends quietly
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print_error(str(error))
        raise typer.Exit(2) from None


def print_error(message: str) -> None:
    """Print `message` to stderr on one line, in red where colours are shown."""
    from rich.console import Console
    from rich.text import Text

    text = Text("Error: " + " ".join(message.split()), style="red")
    Console(file=sys.stderr).print(text, soft_wrap=True)


def quiet_transformers() -> None:
    """Keep the notes and progress bars of transformers off the terminal; its errors stay."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _parameter(name: str, kind: Any, text: str, default: Any = None, panel: str | None = None) -> inspect.Parameter:
    """Make the parameter from which Typer makes the flag."""
    flags = _SHORT_FLAGS.get(name, [])
    if name in ("trust_remote_code", "debug"):
        flags = [f"--{name.replace('_', '-')}"]  # no --no- form: off is the default
    option = typer.Option(*flags, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind | None, option]
    )


def _set_parameters(wrapper: Any, parameters: list[inspect.Parameter]) -> None:
    """Show `parameters` to Typer, which reads a command's signature and annotations."""
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    wrapper.__signature__ = inspect.Signature(keyword_only)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
