"""`llada train`: hands its arguments on to the trainers, which define their own flags."""

import importlib

import typer

from .options import errors_on_one_line

app = typer.Typer(no_args_is_help=True, help="Train a model; each sub-command has its own --help.")

# Everything after the sub-command belongs to the trainer, --help included.
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}
# Ours. It is not called --debug, which is an option of the trainers.
_TRACEBACK = "--traceback"


@app.command("pretrain", context_settings=_FORWARD, add_help_option=False)
def pretrain(context: typer.Context) -> None:
    """Pre-train on text files, JSON lines or a dataset."""
    _forward("pretrain_main", context.args)


@app.command("sft", context_settings=_FORWARD, add_help_option=False)
def sft(context: typer.Context) -> None:
    """Fine-tune on conversations or prompts with completions, whole or with LoRA."""
    _forward("sft_main", context.args)


def _forward(function: str, args: list[str]) -> None:
    """Call `llada_training.<function>(args)`; errors are one line, or with --traceback all of it."""
    with errors_on_one_line(debug=_TRACEBACK in args):
        args = [arg for arg in args if arg != _TRACEBACK]
        try:
            getattr(importlib.import_module("llada_training"), function)(args)
        except ModuleNotFoundError as error:
            message = f"Training needs `{error.name}`; install it with: pip install 'llada-hf[train]'"
            raise ImportError(message) from error
