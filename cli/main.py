"""The `llada` command and its sub-commands; each imports what it needs when it runs, so that --help is quick."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llada_core.host import avoid_broken_amx

from .convert import app as convert_app
from .demo import demo
from .evaluate import app as evaluate_app
from .export import app as export_app
from .options import GENERATION_OPTIONS, MODEL_OPTIONS, check_animation, reports_errors, takes
from .prompt_file import read_prompt_file
from .push import push
from .screen import busy
from .serve import serve
from .train import app as train_app
from .turns import check_text, read_prompts

Animate = Annotated[
    Path | None, typer.Option(help="Write an animation of the answer to this .svg or .gif file.", metavar="FILE")
]

# Other spellings of flags, of TRL and of earlier versions; underscores and hyphens are the same everywhere.
SPELLINGS = {"overwrite": "force", "traceback": "debug", "model-name-or-path": "model", "gen-length": "max-new-tokens"}
COMMANDS = ("generate", "chat", "demo", "serve", "train", "evaluate", "convert", "export", "push")
WRITE, TRAIN, PUBLISH = "Write", "Train and measure", "Convert and publish"
EXAMPLES = """
Examples:

llada generate "What is the capital of France?" --chat

llada chat --model runs/my-sft

llada train sft --model GSAI-ML/LLaDA-8B-Base --train-data chats.jsonl

llada push runs/my-sft user/name --dry-run
"""


def spelling(name: str) -> str:
    """The spelling of a flag under which it is looked up."""
    name = name.replace("_", "-")
    return SPELLINGS.get(name, name)


class InOrderOfTask(TyperGroup):
    """The commands as one needs them; Typer would put those with sub-commands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the help."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: COMMANDS.index(name) if name in COMMANDS else len(COMMANDS))


app = typer.Typer(
    cls=InOrderOfTask,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": spelling},
)


def _print_version(wanted: bool) -> None:
    """Print the package's version and exit, before Typer asks for a command."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"llada {version('llada-hf')}")
        raise typer.Exit


@app.callback(epilog=EXAMPLES)
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """LLaDA: a language model that writes by unmasking."""
    if "--help" not in sys.argv:
        with busy("Checking the processor"):  # takes two seconds once after a boot, where it takes any
            avoid_broken_amx()


@app.command(rich_help_panel=WRITE)
@reports_errors
@takes(MODEL_OPTIONS, into="model_options", panel="Model")
@takes(GENERATION_OPTIONS, into="options", panel="Generation")
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts; read from stdin, one per line, if none is given.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send each prompt as a user's turn of a chat.")] = False,
    system: Annotated[str | None, typer.Option("--system", "-s", help="With --chat: an instruction before it.")] = None,
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
    force: Annotated[bool, typer.Option("--force", help="Replace an existing --output file.")] = False,
    force_length: Annotated[
        bool, typer.Option("--force-length", help="Answer also what is longer than the model was trained on.")
    ] = False,
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
    turns: dict[str, Any] = {"chat": chat, "system": system, "force_length": force_length, "quiet": quiet}
    _check_turns(chat, system, infill, options)
    if input_file is None and output_file is None and not force:
        if animate is not None:
            check_animation(animate, batch_size or 1)
        prompts = prompts or read_prompts()
        with busy("Starting", quiet):
            from .generate import answer_prompts

        how: dict[str, Any] = {"batch_size": batch_size or 1, "json_lines": json_lines, "animate": animate}
        answer_prompts(prompts, model_options, options, infill=infill, **how, **turns)
        return
    given_names = {"PROMPTS": prompts, "--infill": infill, "--json": json_lines, "--animate": animate}
    for name, given in given_names.items():
        if given:
            raise ValueError(f"`{name}` cannot be combined with --input and --output; leave it out.")
    if input_file is None or output_file is None:
        raise ValueError("`--input`, `--output` and `--force` belong together; pass --input and --output.")
    read_prompt_file(input_file)
    with busy("Starting", quiet):
        from .batch import answer_file

    answer_file(input_file, output_file, model_options, options, batch_size=batch_size or 8, force=force, **turns)


def _check_turns(chat: bool, system: str | None, infill: bool, options: dict[str, Any]) -> None:
    """Refuse flags of `generate` that contradict each other."""
    if chat and infill:
        raise ValueError("`--chat` and `--infill` exclude each other; pass one of them.")
    if system is not None and not chat:
        raise ValueError("`--system` opens a chat; pass `--chat` too.")
    check_text(system or "", "`--system`")
    if infill and "max_new_tokens" in options:
        raise ValueError("`--infill` fills the masks in the prompt, so `--max-new-tokens` has no effect; leave it out.")


@app.command(rich_help_panel=WRITE)
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
    if animate is not None:
        check_animation(animate)
    with busy("Starting", quiet):
        from .chat import hold_conversation

    hold_conversation(model_options, options, system=system, quiet=quiet, animate=animate)


app.command(rich_help_panel=WRITE)(demo)
app.command(rich_help_panel=WRITE)(serve)
app.add_typer(train_app, name="train", rich_help_panel=TRAIN)
app.add_typer(evaluate_app, name="evaluate", rich_help_panel=TRAIN)
app.add_typer(convert_app, name="convert", rich_help_panel=PUBLISH)
app.add_typer(export_app, name="export", rich_help_panel=PUBLISH)
app.command(rich_help_panel=PUBLISH)(push)


# Hidden until the bundled model solves puzzles.
@app.command(hidden=True)
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
