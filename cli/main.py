"""The `llada` command and its sub-commands; each imports what it needs when it runs, so that --help is quick."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llada_core.host import avoid_broken_amx

from .convert import app as convert_app
from .demo import demo
from .evaluate import app as evaluate_app
from .export import app as export_app
from .options import GENERATION_OPTIONS, MODEL_OPTIONS, reports_errors, takes
from .push import push
from .serve import serve
from .train import app as train_app

Animate = Annotated[
    Path | None, typer.Option(help="Write an animation of the answer to this .svg or .gif file.", metavar="FILE")
]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(train_app, name="train")
app.add_typer(convert_app, name="convert")
app.add_typer(export_app, name="export")
app.add_typer(evaluate_app, name="evaluate")
app.command()(push)
app.command()(serve)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    """Print the package's version and exit, before Typer asks for a command."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"llada {version('llada-hf')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """LLaDA: a language model that writes by unmasking."""
    if "--help" not in sys.argv:
        avoid_broken_amx()


@app.command()
@reports_errors
@takes(MODEL_OPTIONS, into="model_options", panel="Model")
@takes(GENERATION_OPTIONS, into="options", panel="Generation")
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; read from stdin, one per line, if none is given.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send each prompt as a user's turn of a chat.")] = False,
    infill: Annotated[
        bool, typer.Option("--infill", help="Fill every <|mdm_mask|> in the prompts, one token for each.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Prompts answered at once. Default: 1, or 8 with --input.")
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", "-i", help='Answer the lines of this file: {"prompt": …}, {"messages": …}, or .txt.'),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write one answer per line here; rerun the same command to resume."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing --output file.")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line: answer, passes, tokens, seconds.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the canvas: print the answers.")] = False,
    animate: Animate = None,
    *,
    model_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Answer prompts.

    On a terminal the canvas is shown while it is denoised; in a pipe only the answers are printed. With --input and
    --output, files of prompts are answered, by one process or by several under torchrun or accelerate launch.
    """
    if input_file is None and output_file is None and not overwrite:
        from .generate import answer_prompts

        shown: dict[str, Any] = {"json_lines": json_lines, "quiet": quiet, "animate": animate}
        answer_prompts(
            prompts or [], model_options, options, chat=chat, infill=infill, batch_size=batch_size or 1, **shown
        )
        return
    from .batch import answer_file

    given_names = {"PROMPTS": prompts, "--infill": infill, "--json": json_lines, "--animate": animate}
    for name, given in given_names.items():
        if given:
            raise ValueError(f"`{name}` cannot be combined with --input and --output; leave it out.")
    if input_file is None or output_file is None:
        raise ValueError("`--input`, `--output` and `--overwrite` belong together; pass --input and --output.")
    how: Any = {"batch_size": batch_size or 8, "overwrite": overwrite, "quiet": quiet}
    answer_file(input_file, output_file, model_options, options, chat=chat, **how)


@app.command()
@reports_errors
@takes(MODEL_OPTIONS, into="model_options", panel="Model")
@takes(GENERATION_OPTIONS, into="options", panel="Generation")
def chat(
    system: Annotated[str | None, typer.Option("--system", "-s", help="Instruction that opens the chat.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the canvas: print the answers.")] = False,
    animate: Animate = None,
    *,
    model_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Hold a conversation on a terminal, or answer stdin, one user's turn per line."""
    from .chat import hold_conversation

    hold_conversation(model_options, options, system=system, quiet=quiet, animate=animate)


@app.command()
@reports_errors
@takes(MODEL_OPTIONS, into="model_options", panel="Model")
@takes(GENERATION_OPTIONS, into="options", panel="Generation")
def sudoku(
    puzzle: Annotated[
        str | None, typer.Argument(help="Digits row by row, 0 or . for an empty cell; a new puzzle if none is given.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the new puzzle: 4, 6 or 9. Default: 6.")] = None,
    num_empty: Annotated[int | None, typer.Option(min=1, help="Empty cells of the new puzzle.")] = None,
    delay: Annotated[float, typer.Option(min=0.0, max=60.0, help="Seconds to wait after each pass.")] = 0.1,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print a JSON object: puzzle, answer, solved, passes, seconds.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the finished grid alone.")] = False,
    animate: Animate = None,
    *,
    model_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Solve a Sudoku, the surest cell first.

    Filled cells have the colour of their confidence, from red to green; --seed chooses the new puzzle. With
    --remasking random, cells are filled in any order, and it goes wrong. Exits with 1 if the grid is not right.
    """
    from llada_training.puzzles import puzzle_to_solve

    cells = puzzle_to_solve(puzzle, size, num_empty, options.get("seed", 0))
    from .sudoku import solve_puzzle

    shown: dict[str, Any] = {"delay": delay, "json_lines": json_lines, "quiet": quiet, "animate": animate}
    if not solve_puzzle(cells, model_options, options, **shown):
        raise typer.Exit(1)
