"""`llada train`: hands its arguments on to the trainers, which define their own flags."""

import importlib

import typer

from .options import print_error

app = typer.Typer(no_args_is_help=True, help="Train a model; each sub-command has its own --help.")

# Everything after the sub-command belongs to the trainer, --help included.
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("pretrain", context_settings=_FORWARD, add_help_option=False)
def pretrain(context: typer.Context) -> None:
    """Pre-train on text files, JSON lines or a dataset."""
    _forward("pretrain_main", context.args)


def _forward(function: str, args: list[str]) -> None:
    """Call `llada_training.<function>(args)`; say what to install where the `train` extra is missing."""
    try:
        getattr(importlib.import_module("llada_training"), function)(args)
    except ModuleNotFoundError as error:
        print_error(f"Training needs `{error.name}`; install it with: pip install 'llada-hf[train]'")
        raise typer.Exit(2) from None
