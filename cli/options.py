"""Flags that several commands share, and the way a command reports an error: one line, no traceback."""

import ast
import contextlib
import functools
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

from .screen import print_error

Command = TypeVar("Command", bound=Callable[..., Any])

# Options of generation that make no sense at a prompt.
_WITHOUT_FLAG = ("do_sample", "return_dict_in_generate", "output_history", "num_return_sequences")
ANIMATIONS = (".svg", ".gif")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "texts": list[str]}
# Of these at most one may be given.
_EXCLUSIVE = (
    ("threshold", "factor", "frechet", "entropy_bound"),
    ("max_new_tokens", "max_length"),
    ("steps", "max_length"),
    ("compile", "pack_weights"),
)


class Row(NamedTuple):
    """A flag: the argument's name, of which the flag is the spelling with dashes; its type; its help.

    `rule` says which values it takes: a tuple of them, or a key of `BOUNDS` beside the table of generation's options,
    behind "None or" there; "" is any.
    """

    name: str
    kind: Any
    text: str
    rule: Any = ""


def _read_tables() -> tuple[list[Row], dict[str, Callable[[Any], bool]], int]:
    """Read the rows of generation's options, what their rules mean, and the largest number.

    The file is read as text: importing it would import torch and transformers.
    """
    [folder] = importlib.util.find_spec("modeling_llada").submodule_search_locations  # type: ignore[union-attr,misc]
    tree = ast.parse((Path(folder) / "generation_config_llada.py").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for node in tree.body:
        name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", node))
        if name in ("OPTIONS", "BOUNDS", "MAX_INT"):
            code = compile(ast.Expression(node.value), name, "eval")  # type: ignore[attr-defined]
            found[name] = eval(code, {"math": math})
    rows = [
        Row(name, _TYPES[kind], _help(meaning, rule), rule)
        for name, (_, kind, rule, meaning) in found["OPTIONS"].items()
        if kind in _TYPES and name not in _WITHOUT_FLAG
    ]
    return rows, found["BOUNDS"], found["MAX_INT"]


def _help(meaning: str, rule: Any) -> str:
    """The first sentence of an option's meaning, and the range of its values unless it is named there."""
    first = f"{meaning[0].upper()}{meaning[1:]}.".partition(". ")[0].rstrip(".") + "."
    span = rule.removeprefix("None or ") if isinstance(rule, str) else ""
    is_told = span in first or span.startswith(("0, or", "None", "True", "a finite"))
    if not span or is_told:
        return first
    return f"{first} {span[0].upper()}{span[1:]}."


# Unset flags are not passed on, so that the checkpoint's generation_config.json and the defaults of `generate` hold.
_ROWS, BOUNDS, _MAX_INT = _read_tables()
GENERATION_OPTIONS = [*_ROWS, Row("seed", int, "Seed of the draws.")]
MODEL_OPTIONS = [
    Row("model", str, "Folder or Hub id of a LLaDA checkpoint or LoRA adapter; the bundled model unless given."),
    Row("device", str, "cpu, cuda, cuda:1, mps …; the best one found unless given."),
    Row(
        "dtype",
        str,
        "float32, bfloat16, float16, or auto: as the checkpoint was saved.",
        DTYPES,
    ),
    Row("revision", str, "Branch, tag or commit on the Hub."),
    Row("trust_remote_code", bool, "Run the checkpoint's own model code in place of the installed one."),
]
_SHORT_FLAGS = {"model": ["--model", "-m"], "max_new_tokens": ["--max-new-tokens", "-n"]}


def takes(table: list[Row], into: str, panel: str) -> Callable[[Command], Command]:
    """Give a command one flag per row of `table`; it receives the flags that were set, and are valid, as one dict.

    Args:
        table: the flags.
        into: the argument of the command that receives the dict.
        panel: the heading of these flags in the help.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            found = {row.name: values.pop(row.name) for row in table}
            given = {name: value for name, value in found.items() if value not in (None, [])}
            check_options(given, table)
            return command(**values, **{into: given})

        own = [p for p in inspect.signature(command).parameters.values() if p.name != into]
        _set_parameters(wrapper, own + [_parameter(row, panel) for row in table])
        return wrapper  # type: ignore[return-value]

    return decorate


def check_options(given: dict[str, Any], table: list[Row]) -> None:
    """Refuse at once what needs no model to be seen: values outside their range, options that exclude each other.

    Raises:
        ValueError: as `LLaDAGenerationConfig` would, which checks everything later, with the checkpoint's own options.
        OSError: for a `model` that is no folder and no id of the Hub.
    """
    for name, kind, _, rule in table:
        if name in given:
            _check_value(name, given[name], kind, rule)
    for names in _EXCLUSIVE:
        first, *others = [name for name in names if given.get(name)] or [""]
        if others:
            raise ValueError(f"`{first}` and `{others[0]}` exclude each other; pass one of them.")
    least, most = given.get("min_new_tokens"), given.get("max_new_tokens")
    if least is not None and most is not None and least > most:
        raise ValueError(f"`min_new_tokens` must be at most `max_new_tokens` ({most}), got {least}.")
    if "model" in given:
        from llada_core.hub import check_model_name

        check_model_name(given["model"])


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: in this case.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def check_animation(path: Path, batch_size: int = 1) -> None:
    """Refuse an animation that cannot be drawn.

    Raises:
        ValueError: for another suffix than those of `llada_core.animation`, and several answers at once.
    """
    if path.suffix.lower() not in ANIMATIONS:
        raise ValueError(f"`--animate` must name a file that ends in .svg or .gif, got `{path}`.")
    if batch_size > 1:
        raise ValueError(f"`--animate` draws one answer at a time, got `--batch-size {batch_size}`; leave one out.")


def _check_value(name: str, value: Any, kind: Any, rule: Any) -> None:
    """Refuse a value that its rule does not allow."""
    if isinstance(rule, tuple):
        is_valid, rule = value in rule, f"one of {', '.join(rule)}"
    elif kind in (int, float):
        rule = rule.removeprefix("None or ")
        test = BOUNDS.get(rule)
        is_valid = test is None or test(value)
    else:
        return
    if not is_valid:
        raise ValueError(f"`{name}` must be {rule}, got {value!r}.")
    if kind is int and name != "seed" and value > _MAX_INT:
        raise ValueError(f"`{name}` must be at most {_MAX_INT}, got {value}.")


def reports_errors(command: Command) -> Command:
    """Let a command print what its user did wrong as one red line and exit with 2; Ctrl-C exits with 130.

    Adds the flag `--debug`, which shows the traceback.
    """

    @functools.wraps(command)
    def wrapper(debug: bool = False, **values: Any) -> Any:
        with errors_on_one_line(debug):
            return command(**values)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "debug"]
    _set_parameters(wrapper, [*own, _parameter(Row("debug", bool, "Show the traceback of an error."), "Other")])
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


def quiet_transformers() -> None:
    """Keep the notes and progress bars of transformers off the terminal; its errors stay."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _parameter(row: Row, panel: str) -> inspect.Parameter:
    """Make the parameter from which Typer makes the flag."""
    flags = _SHORT_FLAGS.get(row.name, [])
    if row.name in ("trust_remote_code", "debug"):
        flags = [f"--{row.name.replace('_', '-')}"]  # no --no- form: off is the default
    values = row.rule if isinstance(row.rule, tuple) else None
    option = typer.Option(
        *flags,
        help=row.text,
        rich_help_panel=panel,
        show_default=False,
        autocompletion=None if values is None else lambda incomplete: [v for v in values if v.startswith(incomplete)],
    )
    default = False if row.name == "debug" else None
    return inspect.Parameter(
        row.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[row.kind | None, option]
    )


def _set_parameters(wrapper: Any, parameters: list[inspect.Parameter]) -> None:
    """Show `parameters` to Typer, which reads a command's signature and annotations."""
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    wrapper.__signature__ = inspect.Signature(keyword_only)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
