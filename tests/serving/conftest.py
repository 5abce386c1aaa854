"""A server around the bundled model, in a thread: one answer at a time, and with continuous batching."""

import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")
openai = pytest.importorskip("openai", reason="the server needs the extra `serve`")

from llada_core.loading import Checkpoint, load_checkpoint  # noqa: E402
from llada_serving import Bounds, Limits, Server, ServerConfig  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return load_checkpoint(device="cpu", dtype="float32")


@pytest.fixture(scope="session", params=[False, True], ids=["one at a time", "batched"])
def server(request, checkpoint) -> Iterator[Server]:
    config = ServerConfig(
        port=0,
        continuous_batching=request.param,
        bounds=Bounds(max_tokens=400, max_steps=64, max_block_length=64, min_threshold=0.3, caches=("none", "dual")),
        limits=Limits(max_requests=20, max_body_bytes=100_000),
    )
    with Server(checkpoint, config) as running:
        yield running


@pytest.fixture
def client(server) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


def call(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request with nothing between us and the server: status, headers, body."""
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    sent = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
    connection.request(method, path, sent, headers)
    response = connection.getresponse()
    try:
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def question(text: str = "What is the capital of France?") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
