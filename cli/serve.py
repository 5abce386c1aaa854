"""`llada serve`: a model behind OpenAI's endpoints."""

from typing import Annotated, Any

import typer

from .options import GENERATION_OPTIONS, MODEL_OPTIONS, reports_errors, takes
from .screen import busy

SERVER, BOUNDS = "Server", "Bounds of one request"
# What a server can set for all its requests: neither a length nor a seed, nor what needs more than one answer.
_OF_REQUESTS = ("max_new_tokens", "max_length", "max_time", "steps", "stop_strings", "seed", "suffix_window")
DEFAULT_OPTIONS = [row for row in GENERATION_OPTIONS if row.name not in _OF_REQUESTS]
LOADING_OPTIONS = [row for row in MODEL_OPTIONS if row.name != "model"]


@reports_errors
@takes(LOADING_OPTIONS, into="model_options", panel="Model")
@takes(DEFAULT_OPTIONS, into="options", panel="Generation, where a request does not say")
def serve(
    model: Annotated[
        str | None, typer.Argument(help="Folder or Hub id of a LLaDA checkpoint; the bundled model unless given.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.", rich_help_panel=SERVER)] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.", rich_help_panel=SERVER)
    ] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. Default: its id.", rich_help_panel=SERVER)
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="LLADA_API_KEY", help="Key that clients must send.", rich_help_panel=SERVER),
    ] = None,
    continuous_batching: Annotated[
        bool, typer.Option(help="Answer requests together, not one after another.", rich_help_panel=SERVER)
    ] = True,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Requests in one batch.", rich_help_panel=SERVER)
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests waiting or in work; more get 429.", rich_help_panel=SERVER)
    ] = 256,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Size of one request.", rich_help_panel=SERVER)] = 2**20,
    cors: Annotated[bool, typer.Option("--cors", help="Let any web page call.", rich_help_panel=SERVER)] = False,
    log_level: Annotated[
        str, typer.Option(help="critical, error, warning, info or debug.", rich_help_panel=SERVER)
    ] = "warning",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer.", rich_help_panel=BOUNDS)] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", rich_help_panel=BOUNDS)] = None,
    max_block_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block.", rich_help_panel=BOUNDS)
    ] = None,
    min_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest `threshold`.", rich_help_panel=BOUNDS)
    ] = 0.0,
    allow_cache: Annotated[
        list[str] | None,
        typer.Option(help="Cache that may be chosen; repeatable. Default: all.", rich_help_panel=BOUNDS),
    ] = None,
    *,
    model_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Serve a model over HTTP: OpenAI's chat completions, completions and responses.

    The endpoints are those of `transformers serve`; chats also work with `transformers chat`. What a diffusion model
    adds, and the limits: docs/serving.md.
    """
    from llada_core.hub import check_model_name
    from llada_core.lazy import requires_extra

    if log_level not in ("critical", "error", "warning", "info", "debug"):
        raise ValueError(f"`--log-level` must be critical, error, warning, info or debug, got {log_level!r}.")
    if model is not None:
        check_model_name(model)
    with requires_extra("serve", "`llada serve`"), busy("Starting"):
        from llada_serving.app import Server, ServerConfig, model_name
        from llada_serving.gate import Limits
        from llada_serving.requests import Bounds

    from .generate import load_with_notice
    from .options import quiet_transformers

    quiet_transformers()
    if model is not None:
        model_options["model"] = model
    caches = {"caches": tuple(allow_cache)} if allow_cache else {}
    config = ServerConfig(
        host=host,
        port=port,
        name=name,
        continuous_batching=continuous_batching,
        max_batch_size=max_batch_size,
        bounds=Bounds(max_tokens, max_steps, max_block_length, min_threshold, **caches),
        limits=Limits(max_requests, max_body_bytes, api_key),
        cors=cors,
        log_level=log_level,
    )
    checkpoint = load_with_notice(model_options, quiet=False)
    server = Server(checkpoint, config, model_name(model), **options)
    typer.echo(f"{server.name} listens at {server.url}/v1; Ctrl-C ends it.")
    server.run()
