"""What stands before the application: who may enter, how many, with how much, and what happens when they leave.

An ASGI middleware. transformers' application notices that a client has left only while it streams; here the work of
every request is cancelled then. Nothing that a client sends, or does not read, keeps the server.
"""

import asyncio
import hmac
import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from .metrics import Metrics
from .requests import Job, RequestError

# Paths that generate -> their name in the metrics.
GENERATING = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/v1/responses": "responses"}
# Seconds for a client to send its whole request, and to make room for the next piece of an answer.
BODY_TIMEOUT, SEND_TIMEOUT = 30.0, 60.0


@dataclass(frozen=True)
class Limits:
    """How much the server takes at once.

    Args:
        max_requests: requests waiting or being answered, at least 1.
        max_body_bytes: size of one request.
        api_key: what clients must send as `Authorization: Bearer KEY`; None asks for nothing.
    """

    max_requests: int = 256
    max_body_bytes: int = 2**20
    api_key: str | None = None


class Gate:
    """The middleware.

    Args:
        app: the application behind it.
        limits: what it lets in.
        jobs: the requests in the server.
        metrics: what it counts.
        is_alive: whether requests can be answered.
    """

    def __init__(self, app: Any, limits: Limits, jobs: dict[str, Job], metrics: Metrics, is_alive: Callable[[], bool]):
        self.app, self.limits, self.jobs, self.metrics, self.is_alive = app, limits, jobs, metrics, is_alive
        self.num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_key(scope)
            if scope["method"] != "POST":
                await self.app(scope, receive, send)
                return
            body = await read_body(scope, receive, self.limits.max_body_bytes)
        except RequestError as error:
            self._count(scope, error.status)
            await refusal(error)(scope, receive, send)
            return
        if scope["path"] in GENERATING:
            await self._generate(scope, body, receive, send)
        else:
            await self.app(as_json(scope, str(uuid.uuid4())), replay(body, asyncio.Event()), send)

    async def _generate(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let a request in, if there is room, and have it answered or cancelled."""
        if self.num_inside >= self.limits.max_requests or not self.is_alive():
            error = RequestError("The server cannot answer any more: its worker has died.", status=503)
            if self.is_alive():
                error = RequestError(
                    f"The server is full ({self.limits.max_requests} requests); try again later.",
                    status=429,
                    code="too_many_requests",
                )
            self._count(scope, error.status)
            await refusal(error)(scope, receive, send)
            return
        request_id = self._new_id(Headers(scope=scope).get("x-request-id"))
        self.num_inside += 1
        self.metrics.in_flight.inc()
        try:
            status = await self._run(as_json(scope, request_id), body, receive, send)
        finally:
            self.num_inside -= 1
            self.metrics.in_flight.dec()
            job = self.jobs.pop(request_id, None)
        self._count(scope, status)
        if job is not None and job.num_passes and status == 200:
            self.metrics.answered(job, time.monotonic() - job.began)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> int:
        """Run the application until it has answered or the client has left; returns the status, 499 for the latter."""
        status, is_complete, left = 499, False, asyncio.Event()

        async def count_and_send(message: Message) -> None:
            nonlocal status, is_complete
            try:
                await asyncio.wait_for(send(message), SEND_TIMEOUT)
            except TimeoutError:
                left.set()
                raise
            if message["type"] == "http.response.start":
                status = message["status"]
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()

        answer = asyncio.ensure_future(self.app(scope, replay(body, left), count_and_send))
        watcher, leaving = asyncio.ensure_future(watch()), asyncio.ensure_future(left.wait())
        try:
            await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watcher, leaving):
                task.cancel()
            if not answer.done() and not is_complete:
                answer.cancel()
        results = await asyncio.gather(answer, return_exceptions=True)
        if not is_complete and left.is_set():
            self.metrics.cancelled.inc()
            return 499
        for error in results:
            if isinstance(error, Exception):
                raise error
        return status

    def _check_key(self, scope: Scope) -> None:
        key = self.limits.api_key
        if key is None or scope["path"] == "/health":
            return
        given = Headers(scope=scope).get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {key}".encode()):
            raise RequestError(
                "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
            )

    def _new_id(self, wished: str | None) -> str:
        """The client's id of its request, unless it is odd or in use."""
        if wished is not None and re.fullmatch(r"[\w.:-]{1,128}", wished) and wished not in self.jobs:
            return wished
        return str(uuid.uuid4())

    def _count(self, scope: Scope, status: int) -> None:
        self.metrics.requests.labels(GENERATING.get(scope["path"], "other"), status).inc()


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """A request's body, if it is a JSON object of at most `max_bytes`.

    Raises:
        RequestError: if it is not, or does not arrive in time.
    """
    too_large = RequestError(f"The request must have at most {max_bytes} bytes; send a shorter one.", status=413)
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    body = bytearray()

    async def read() -> None:
        while True:
            message = await receive()
            body.extend(message.get("body", b""))
            if len(body) > max_bytes:
                raise too_large
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    try:
        await asyncio.wait_for(read(), BODY_TIMEOUT)
    except TimeoutError:
        raise RequestError(f"The request did not arrive within {BODY_TIMEOUT:g} seconds.", status=408) from None
    if not body and scope["path"] not in GENERATING:
        return b"{}"
    try:
        is_object = isinstance(json.loads(body.decode("utf-8")), dict)
    except UnicodeDecodeError as error:
        raise RequestError(f"The request must be UTF-8: {error}.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"The request must be JSON: {reason}.") from None
    if not is_object:
        raise RequestError("The request must be a JSON object.")
    return bytes(body)


def as_json(scope: Scope, request_id: str) -> Scope:
    """The scope of a request whose body was read: `curl -d` calls it a form."""
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    headers["content-type"], headers["x-request-id"] = "application/json", request_id
    return scope


def replay(body: bytes, left: asyncio.Event) -> Receive:
    """A `receive` that gives a body that was read, and then that the client has left, once it has."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


def refusal(error: RequestError) -> Response:
    """The response to a request that is refused."""
    headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)
