"""`llada train`: hands its arguments on to the trainers, which define their own flags."""

import typer

from llada_core.lazy import requires_extra

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


@app.command("dpo", context_settings=_FORWARD, add_help_option=False)
def dpo(context: typer.Context) -> None:
    """Train on pairs of a preferred and a rejected answer (VRPO), whole or with LoRA."""
    _forward("dpo_main", context.args)


@app.command("kto", context_settings=_FORWARD, add_help_option=False)
def kto(context: typer.Context) -> None:
    """Train on good and bad answers (KTO), whole or with LoRA."""
    _forward("kto_main", context.args)


@app.command("grpo", context_settings=_FORWARD, add_help_option=False)
def grpo(context: typer.Context) -> None:
    """Train on prompts by rewards for the answers (fork, espo or diffu-GRPO), whole or with LoRA."""
    _forward("grpo_main", context.args)


def _forward(function: str, args: list[str]) -> None:
    """Call `llada_training.<function>(args)`; errors are one line, or with --traceback all of it."""
    with errors_on_one_line(debug=_TRACEBACK in args), requires_extra("train", "Training"):
        import llada_training

        getattr(llada_training, function)([arg for arg in args if arg != _TRACEBACK])
