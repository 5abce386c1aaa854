"""`llada demo`: a page that shows the canvas."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import MODEL_OPTIONS, reports_errors, takes
from .screen import busy

LOADING_OPTIONS = [row for row in MODEL_OPTIONS if row.name != "model"]


@reports_errors
@takes(LOADING_OPTIONS, into="model_options", panel="Model")
def demo(
    model: Annotated[
        str | None, typer.Argument(help="Folder or Hub id of a LLaDA checkpoint; the bundled model unless given.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 7860 on unless given.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    *,
    model_options: dict[str, Any],
) -> None:
    """Show in a browser how text appears: chat and infilling, pass by pass.

    `llada push --space user/name` puts the same page on the Hub.
    """
    from llada_core.hub import check_model_name
    from llada_core.lazy import requires_extra

    if model is not None:
        check_model_name(model)
    with requires_extra("demo", "`llada demo`"), busy("Starting"):
        from llada_serving.demo import launch

    from .generate import load_with_notice
    from .options import quiet_transformers

    quiet_transformers()
    checkpoint = load_with_notice({**model_options, "model": model}, quiet=False)
    name = "llada-tiny" if model is None else Path(model).name
    launch(checkpoint, name, server_name=host, server_port=port, inbrowser=open_browser)
