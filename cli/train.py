"""`llada train`: hands its arguments on to the trainers, which define their own flags."""

import os
import sys

import typer

from llada_core.lazy import requires_extra

from .options import errors_on_one_line

app = typer.Typer(no_args_is_help=True, help="Train a model; each sub-command has its own --help.")

# Everything after the sub-command belongs to the trainer, --help included.
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}
# Ours. It is not called --debug, which is an option of the trainers.
_TRACEBACK = "--traceback"
_HELP, _HELP_ALL = ("--help", "-h"), "--help-all"
# `datasets` and transformers show a bar only for what takes longer, in seconds; on no terminal there is none.
_BAR_DELAY = 5


@app.command("pretrain", context_settings=_FORWARD, add_help_option=False)
def pretrain(context: typer.Context) -> None:
    """Pre-train on text files, JSON lines or a dataset."""
    _forward("pretrain", context)


@app.command("sft", context_settings=_FORWARD, add_help_option=False)
def sft(context: typer.Context) -> None:
    """Fine-tune on conversations or prompts with completions, whole or with LoRA."""
    _forward("sft", context)


@app.command("dpo", context_settings=_FORWARD, add_help_option=False)
def dpo(context: typer.Context) -> None:
    """Train on pairs of a preferred and a rejected answer (VRPO), whole or with LoRA."""
    _forward("dpo", context)


@app.command("kto", context_settings=_FORWARD, add_help_option=False)
def kto(context: typer.Context) -> None:
    """Train on good and bad answers (KTO), whole or with LoRA."""
    _forward("kto", context)


@app.command("grpo", context_settings=_FORWARD, add_help_option=False)
def grpo(context: typer.Context) -> None:
    """Train on prompts by rewards for the answers (fork, espo or diffu-GRPO), whole or with LoRA."""
    _forward("grpo", context)


def _forward(command: str, context: typer.Context) -> None:
    """Print a trainer's help, or call it; errors are one line, or with --traceback all of it."""
    args = context.args
    if {*_HELP, _HELP_ALL} & set(args):
        from llada_training.help import print_help

        print_help(command, str(context.command.help), everything=_HELP_ALL in args)
        return
    # tqdm reads them when it is imported.
    os.environ.setdefault("TQDM_DELAY", str(_BAR_DELAY))
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    with errors_on_one_line(debug=_TRACEBACK in args), requires_extra("train", "Training"):
        import llada_training

        getattr(llada_training, f"{command}_main")([arg for arg in args if arg != _TRACEBACK])
