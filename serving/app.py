"""The server: transformers' serving application around one LLaDA model.

`transformers serve` looks a model's class up among its own, so it cannot serve one that it does not contain. Its parts
can: this file gives its application our model, generation managers and handlers, and stands a gate before it. What is
taken over: the routes of chats, completions, responses, models, health and `/load_model`, the handlers with their chat
template and OpenAI's objects, and the streamer. `tests/serving/test_seam.py` holds what of it we rely on.
"""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import CBWorkerDeadError, Modality

from llada_core.host import limit_kernel_cache
from llada_core.hub import local_folder
from llada_core.loading import Checkpoint

from .gate import Gate, Limits, refusal
from .handlers import Chats, Completions, Responses
from .managers import Batched, LLaDAManager, OneAtATime, OneModel
from .metrics import Metrics
from .requests import Bounds, Job, RequestError

# Routes of transformers' application that have no meaning for one text model: decisions, speech, and unloading it.
LEFT_OUT = ("/v1/systemone", "/v1/audio/transcriptions", "/reset")
START_TIMEOUT = 30.0
# Connections that wait to be accepted; the system may allow fewer.
BACKLOG = 2048


@dataclass(frozen=True)
class ServerConfig:
    """How to serve.

    Args:
        host, port: where to listen; port 0 takes a free one.
        name: what clients call the model; None is its Hub id, or its folder's name.
        continuous_batching: answer requests together; False answers them one after another.
        max_batch_size: requests in one batch, at least 1; None leaves it to the model's budget of memory.
        bounds: what one request may ask for.
        limits: what the server takes at once, and its API key.
        cors: let web pages of any origin call the server.
        log_level: of uvicorn.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    continuous_batching: bool = True
    max_batch_size: int | None = None
    bounds: Bounds = field(default_factory=Bounds)
    limits: Limits = field(default_factory=Limits)
    cors: bool = False
    log_level: str = "warning"


class OneModelManager(ModelManager):
    """transformers' model manager with one model, which is loaded already and stays.

    Args:
        checkpoint: the model.
        name: what clients call it.
    """

    def __init__(self, checkpoint: Checkpoint, name: str):
        super().__init__(model_timeout=-1)
        self.checkpoint, self.name, self.created = checkpoint, name, int(time.time())

    def process_model_name(self, model_id: str) -> str:
        """The name, if a client means this model.

        Raises:
            RequestError: for another one.
        """
        if model_id not in (self.name, f"{self.name}@main"):
            raise RequestError(
                f"The model `{str(model_id)[:200]}` is not served here; use `{self.name}`.",
                "model",
                status=404,
                code="model_not_found",
            )
        return self.name

    def load_model_and_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        return self.checkpoint.model, self.checkpoint.tokenizer

    async def load_model_streaming(
        self, model_id_and_revision: str, gguf_file: str | None = None
    ) -> AsyncIterator[str]:
        """That the model is there; `transformers chat` asks before it begins."""
        ready = {"status": "ready", "model": model_id_and_revision, "cached": True}
        yield f"data: {json.dumps(ready)}\n\n"

    def get_model_modality(self, model: Any, processor: Any = None) -> Modality:
        """Text."""
        return Modality.LLM

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """What `/v1/models` lists."""
        length = self.checkpoint.model.config.max_sequence_length
        return [
            {
                "id": self.name,
                "object": "model",
                "created": self.created,
                "owned_by": "llada",
                "max_model_len": length,
            }
        ]

    def shutdown(self) -> None:
        """Nothing: whoever made the server owns the model."""


def model_name(model: str | None) -> str:
    """What clients call a model unless they are told another name: its Hub id, or its folder's name."""
    if model is None:
        return "llada-tiny"
    return model if local_folder(model) is None else Path(model).expanduser().resolve().name


def prepare_model(checkpoint: Checkpoint, changes: dict[str, Any]) -> Checkpoint:
    """Give the model the options its files set, with `changes`, and let an answer end at an end of turn too."""
    options = checkpoint.options.updated(**changes)
    if options.stop_at_eos and not options.logits_eos_inf:
        options = options.updated(
            eos_token_id=sorted(Checkpoint(checkpoint.model, checkpoint.tokenizer, options).stop_ids)
        )
    checkpoint.model.generation_config = options
    return Checkpoint(checkpoint.model, checkpoint.tokenizer, options)


def make_manager(checkpoint: Checkpoint, jobs: dict[str, Job], config: ServerConfig) -> LLaDAManager:
    """The manager that answers requests; its threads run."""
    if not config.continuous_batching:
        return OneAtATime(jobs, checkpoint.model, checkpoint.tokenizer)
    from transformers import ContinuousBatchingConfig

    batching = None
    if config.max_batch_size is not None:
        batching = ContinuousBatchingConfig(max_requests_per_batch=config.max_batch_size)
    return Batched(jobs, checkpoint.model, checkpoint.tokenizer, batching)


def build_app(models: OneModelManager, state: OneModel, jobs: dict[str, Job], config: ServerConfig) -> FastAPI:
    """transformers' application with our handlers, and errors as OpenAI's clients read them."""
    shared: dict[str, Any] = {"model_manager": models, "generation_state": state, "bounds": config.bounds, "jobs": jobs}
    app = build_server(
        models,
        Chats(**shared),
        completion_handler=Completions(**shared),
        response_handler=Responses(**shared),
        transcription_handler=None,
        systemone_handler=None,
        generation_state=state,
        enable_cors=config.cors,
    )
    # They write one line for every request as a warning; uvicorn's own log has them.
    logging.getLogger("transformers.cli.serving").setLevel(logging.ERROR)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in LEFT_OUT]

    def refuse(request: Request, error: Exception) -> Response:
        return refusal(as_request_error(error))

    for kind in (RequestError, HTTPException, RequestValidationError, CBWorkerDeadError, Exception):
        app.add_exception_handler(kind, refuse)
    return app


def as_request_error(error: Exception) -> RequestError:
    """Any error as one with a status, whose text a client may read."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, CBWorkerDeadError):
        return RequestError(str(error), status=503)
    if isinstance(error, HTTPException):
        return RequestError(str(error.detail), status=error.status_code)
    if isinstance(error, RequestValidationError):
        return RequestError(f"The request is not valid: {error.errors()[0]['msg']}.")
    return RequestError("The server failed to answer; its log says why.", status=500)


class Server:
    """A model, served over HTTP.

    Args:
        checkpoint: model and tokenizer, as `load_checkpoint` gives them.
        config: how to serve.
        name: what clients call the model unless `config` says otherwise.
        options: of `generate`, for requests that do not set them.

    Raises:
        ValueError: for options that are not known or not valid.
        OSError: for an address that cannot be used.

    Example:

    ```python
    from llada_core.loading import load_checkpoint
    from llada_serving import Server, ServerConfig

    with Server(load_checkpoint(), ServerConfig(port=0)) as server:
        print(server.url)  # http://127.0.0.1:…
    ```
    """

    def __init__(
        self, checkpoint: Checkpoint, config: ServerConfig | None = None, name: str = "llada-tiny", **options: Any
    ):
        limit_kernel_cache()
        self.config = config or ServerConfig()
        self._socket = self._listen()  # before the manager, whose threads would outlive an error
        self.checkpoint, self.jobs, self.metrics = prepare_model(checkpoint, options), dict[str, Job](), Metrics()
        self.manager = make_manager(self.checkpoint, self.jobs, self.config)
        state = OneModel(self.manager)
        models = OneModelManager(self.checkpoint, self.config.name or name)
        app = build_app(models, state, self.jobs, self.config)

        @app.get("/metrics")
        def metrics() -> Response:
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

        self.app = Gate(app, self.config.limits, self.jobs, self.metrics, self.manager.is_alive)
        self.name = models.name
        how: Any = {"log_level": self.config.log_level, "timeout_graceful_shutdown": 5}
        self._uvicorn = uvicorn.Server(uvicorn.Config(self.app, **how))
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        try:
            self._uvicorn.run(sockets=[self._socket])
        finally:
            self.manager.stop()

    def start(self) -> "Server":
        """Serve in a thread.

        Raises:
            RuntimeError: if it does not start within half a minute.
        """
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="llada-server", daemon=True)
        self._thread.start()
        began = time.monotonic()
        while not self._uvicorn.started:
            if time.monotonic() - began > START_TIMEOUT or not self._thread.is_alive():
                raise RuntimeError("The server did not start; its log says why.")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """End the requests at the border of a pass, and the server."""
        self.manager.stop()
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=15)
        self._socket.close()

    async def _serve(self) -> None:
        await self._uvicorn.serve(sockets=[self._socket])

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.config.host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.config.host, self.config.port))
            listener.listen(BACKLOG)  # whoever reads the address may connect at once
        except OSError as error:
            listener.close()
            raise OSError(
                f"`--host` {self.config.host} and `--port` {self.config.port} cannot be used ({error.strerror}); pass "
                "another port."
            ) from None
        return listener

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()
