"""`llada convert`: makes LLaDA checkpoints from others; each sub-command imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .options import DTYPES, check_choice, quiet_transformers, reports_errors
from .screen import busy

app = typer.Typer(no_args_is_help=True, help="Convert a checkpoint; each sub-command has its own --help.")

LAYOUTS = ("official", "llama")
Source = Annotated[str, typer.Argument(metavar="SRC", help="Folder or Hub id of the checkpoint.", show_default=False)]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to create.", show_default=False)]
Dtype = Annotated[
    str, typer.Option(help="Data type of the weights: float32, bfloat16, float16, or auto: the source's.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace the checkpoint in DST.")]


@app.command()
@reports_errors
def autoregressive(
    source: Source,
    target: Target,
    gguf_file: Annotated[
        str | None, typer.Option(help="Name of a GGUF file in SRC, which is dequantised.", show_default=False)
    ] = None,
    dtype: Dtype = "auto",
    mask_token: Annotated[
        str | None,
        typer.Option(help="Text of the mask token; <|mdm_mask|> unless SRC declares one.", show_default=False),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="Token from whose embedding new tokens start; the mean unless given.", show_default=False),
    ] = None,
    force: Force = False,
) -> None:
    """Make a LLaDA checkpoint from a Llama or Mistral one: no causal mask, one mask token more.

    The weights do not change; train the result before use, with llada train pretrain.
    """
    from llada_core.hub import local_folder

    check_choice("dtype", dtype, DTYPES)
    local_folder(source)
    with busy("Starting"):
        from llada_conversion import convert_autoregressive

    quiet_transformers()
    options = {"gguf_file": gguf_file, "dtype": dtype, "mask_token": mask_token, "init_from": init_from}
    folder = convert_autoregressive(source, target, **options, force=force)
    print(f"LLaDA checkpoint: {folder}")
    print(f"Train it before use: llada train pretrain --model {folder} --attention_annealing_steps 200 …")


@app.command()
@reports_errors
def official(
    source: Source,
    target: Target,
    layout: Annotated[str, typer.Option(help="Tensor names of the result: official or llama.")] = "official",
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link the weight files instead of copying them; they stay shared.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare every tensor's bytes and the logits with SRC before DST is created."),
    ] = False,
    revision: Revision = None,
    force: Force = False,
) -> None:
    """Add current code and repaired tokenizer files to LLaDA-8B-Base, -Instruct or -1.5.

    The weight files are copied unchanged. Llama's tensor names are read too, and written with --layout llama.
    """
    from llada_core.hub import local_folder

    check_choice("layout", layout, LAYOUTS)
    local_folder(source)
    with busy("Starting"):
        from llada_conversion import convert_official

    options = {"layout": layout, "link": link, "verify": verify, "revision": revision}
    folder = convert_official(source, target, **options, force=force)
    print(f"LLaDA checkpoint: {folder}{' (verified)' if verify else ''}")
