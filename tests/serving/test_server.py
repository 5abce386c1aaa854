"""Laws of the server itself: who leaves frees a place, who floods or sends rubbish is told, a dead worker is seen."""

import asyncio
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from llada_checkpoints import BUNDLED_MODEL
from llada_serving import Limits, Server, ServerConfig, gate
from llada_serving.metrics import Metrics
from tests.helpers import ROOT
from tests.serving.conftest import call, openai, question, wait_for

# More passes than any test waits for, one per token, and no end of text.
LONG = {"logit_bias": {"0": -100, "5": -100}, "extra_body": {"block_length": 2}}


def long_body(**fields) -> dict:
    return {
        "messages": question(),
        "block_length": 2,
        "logit_bias": {"0": -100, "5": -100},
        **fields,
    }


def opened(server: Server, body: dict, **headers: str) -> socket.socket:
    """A request that was sent, and of whose answer nothing was read."""
    address = urllib.parse.urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port))
    data = json.dumps(body).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def metric(server: Server, name: str) -> float:
    text = call(server, "GET", "/metrics")[2].decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}(\{{| )", line))


def kill(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread, as nothing in it expects."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


def test_a_client_that_closes_its_stream_early_frees_its_place_within_a_pass(server, client) -> None:
    before = metric(server, "llada_requests_cancelled_total")
    stream = client.chat.completions.create(model=server.name, messages=question(), stream=True, **LONG)
    for event in stream:
        if event.choices[0].delta.content:
            break
    [job] = server.jobs.values()
    stream.close()
    assert wait_for(lambda: job.is_cancelled.is_set() and not server.jobs)
    began = time.monotonic()
    reply = client.chat.completions.create(model=server.name, messages=question(), max_tokens=1)
    assert reply.usage.completion_tokens == 1
    assert time.monotonic() - began < 5  # the answer that was left would have taken much longer
    assert metric(server, "llada_requests_cancelled_total") == before + 1
    assert metric(server, "llada_requests_in_flight") == 0


def test_a_client_that_leaves_before_its_answer_frees_its_place_too(server, client) -> None:
    connection = opened(server, long_body())
    assert wait_for(lambda: len(server.jobs) == 1)
    [job] = server.jobs.values()
    connection.close()
    assert wait_for(lambda: job.is_cancelled.is_set() and not server.jobs)
    began = time.monotonic()
    client.chat.completions.create(model=server.name, messages=question(), max_tokens=1)
    assert time.monotonic() - began < 5


def test_a_client_that_never_reads_does_not_keep_the_others(server, client) -> None:
    with opened(server, long_body(stream=True)):
        assert wait_for(lambda: len(server.jobs) == 1)
        with opened(server, long_body(stream=True)):
            assert call(server, "GET", "/health")[0] == 200
    assert wait_for(lambda: not server.jobs)


def test_a_full_server_refuses_more_and_goes_on(server, client) -> None:
    with ExitStack() as stack:
        for _ in range(server.config.limits.max_requests):
            stack.enter_context(opened(server, long_body()))
        assert wait_for(lambda: len(server.jobs) == server.config.limits.max_requests)
        for _ in range(50):
            status, headers, body = call(server, "POST", "/v1/chat/completions", {"messages": question()})
            assert (status, headers["retry-after"]) == (429, "1")
        assert json.loads(body)["error"]["message"] == "The server is full (20 requests); try again later."
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=server.name, messages=question())
        assert call(server, "GET", "/health")[0] == 200
    assert wait_for(lambda: not server.jobs)
    client.chat.completions.create(model=server.name, messages=question(), max_tokens=1)


def test_a_flood_is_answered_or_refused_to_the_last_request(server, client) -> None:
    body = {"prompt": "The capital of", "max_tokens": 1}

    def ask(number: int) -> int:
        status, headers, text = call(server, "POST", "/v1/completions", body)
        if status != 200:
            assert (status, headers["retry-after"]) == (429, "1")
            assert json.loads(text)["error"]["message"] == "The server is full (20 requests); try again later."
        return status

    with ThreadPoolExecutor(40) as pool:
        found = Counter(pool.map(ask, range(120)))
    assert found[200] + found[429] == 120 and found[200] >= 20
    assert wait_for(lambda: not server.jobs)
    client.completions.create(model=server.name, **body)


def test_an_answer_that_nobody_reads_is_dropped(monkeypatch) -> None:
    monkeypatch.setattr(gate, "SEND_TIMEOUT", 0.05)
    has_ended = []

    async def application(scope, receive, send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        finally:
            has_ended.append(True)

    async def visit(metrics: Metrics) -> int:
        messages = [{"type": "http.request", "body": b"{}"}]

        async def receive() -> dict:
            return messages.pop() if messages else await asyncio.sleep(60)

        async def send(message: dict) -> None:
            await asyncio.sleep(60)  # the client's buffers are full

        doors = gate.Gate(application, Limits(), {}, metrics, lambda: True)
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        await asyncio.wait_for(doors(scope, receive, send), 10)
        return doors.num_inside

    metrics = Metrics()
    assert asyncio.run(visit(metrics)) == 0
    assert "llada_requests_cancelled_total 1.0" in metrics.text().decode()
    assert has_ended


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"{", 400, "The request must be JSON: "),
        (b"", 400, "The request must be JSON: "),
        (b'{"prompt": "\xff"}', 400, "The request must be UTF-8: "),
        (b"[]", 400, "The request must be a JSON object."),
        (DEEP[:90_000].encode(), 400, "The request must be JSON: it is nested too deeply"),
        (b'"' + b"a" * 100_001 + b'"', 413, "The request must have at most 100000 bytes; send a shorter one."),
        ({"prompt": "a " * 600}, 400, "The model reads at most 512 tokens, got "),
        ({"prompt": "a " * 200, "max_tokens": 350}, 400, " and 350 of `max_tokens`; send a shorter text or a smaller"),
        ({"prompt": "a <|mdm_mask|> b"}, 400, "The prompt must not contain the mask token; to fill a gap, send"),
        ({"prompt": "a", "suffix": "<|mdm_mask|>"}, 400, "The prompt must not contain the mask token"),
        ({"prompt": "a", "suffix": "b " * 600}, 400, "of the suffix and 16 of `max_tokens`; send a shorter text"),
        ({"prompt": "a", "model": "other"}, 404, "The model `other` is not served here; use `llada-tiny`."),
        ({"prompt": "a", "model": 3}, 400, "`model` must be the model's name, got 3."),
        ({"prompt": "a", "colour": "red"}, 400, "Unknown field `colour`; known fields: "),
        ({"prompt": "a", "max_tokens": -5}, 400, "`max_tokens` must be a whole number from 1"),
        ({"prompt": "a", "logit_bias": {"999999": 1}}, 400, "`sequence_bias` must lie in the vocabulary"),
        ({"prompt": "a", "steps": 1, "max_tokens": 100}, 400, "`steps` must be at least the number of blocks (4)"),
        ({"prompt": "a", "generation_config": '{"num_beams": 4}'}, 200, ""),
        ({"prompt": "a", "generation_config": '{"num_return_sequences": 2, "do_sample": true}'}, 400, "must be 1 here"),
        ({"prompt": "a", "generation_config": '{"steps": -1}'}, 400, "`steps` must be None or at least 1, got -1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_rubbish_is_refused_with_a_reason_and_the_server_goes_on(server, body, status, message, stream) -> None:
    if isinstance(body, dict):
        body = {"max_tokens": 1, **body, "stream": stream} if status == 200 else {**body, "stream": stream}
    found, headers, text = call(server, "POST", "/v1/completions", body)
    assert found == status, text
    if status != 200:
        assert headers["content-type"] == "application/json"
        assert message in json.loads(text)["error"]["message"]
        assert json.loads(text)["error"]["type"] == "invalid_request_error"
    assert call(server, "GET", "/health")[0] == 200
    assert not server.jobs


@pytest.mark.parametrize("path", ["/v1/systemone", "/v1/audio/transcriptions", "/reset", "/nothing"])
def test_routes_without_a_meaning_are_not_there(server, path) -> None:
    assert call(server, "POST", path, {})[0] == 404


def test_loading_another_model_is_refused(server) -> None:
    status, _, text = call(server, "POST", "/load_model", {"model": "other"})
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")


def test_an_id_of_the_client_is_kept_unless_it_is_in_use(server) -> None:
    with opened(server, long_body(), **{"x-request-id": "mine"}):
        assert wait_for(lambda: "mine" in server.jobs)
        _, headers, _ = call(server, "POST", "/v1/chat/completions", {"messages": []}, **{"x-request-id": "mine"})
        assert headers["x-request-id"] != "mine"
    assert wait_for(lambda: not server.jobs)
    body = {"messages": question(), "max_tokens": 1}
    _, headers, text = call(server, "POST", "/v1/chat/completions", body, **{"x-request-id": "mine"})
    assert (headers["x-request-id"], json.loads(text)["id"]) == ("mine", "mine")


def test_the_metrics_count_requests_tokens_and_passes(server, client) -> None:
    names = ("requests_total", "generated_tokens_total", "forward_passes_total", "request_seconds_count")
    before = [metric(server, f"llada_{name}") for name in names]
    usage = client.chat.completions.create(model=server.name, messages=question(), max_tokens=4).usage
    assert wait_for(lambda: metric(server, "llada_request_seconds_count") > before[-1])
    after = [metric(server, f"llada_{name}") for name in names]
    assert [now - then for now, then in zip(after, before)] == [1, usage.completion_tokens, usage.forward_passes, 1]


def test_it_listens_to_this_machine_only_unless_told_otherwise() -> None:
    assert ServerConfig().host == "127.0.0.1"


def test_a_port_in_use_is_named(server, checkpoint) -> None:
    port = urllib.parse.urlsplit(server.url).port
    with pytest.raises(OSError, match=rf"`--port` {port} cannot be used \(Address already in use\); pass another port"):
        Server(checkpoint, ServerConfig(port=port))


def test_whoever_connects_before_the_start_is_answered_after_it(checkpoint) -> None:
    server = Server(checkpoint, ServerConfig(port=0, continuous_batching=False))
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as early:
        early.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with server:
            assert early.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_with_a_key_nobody_enters_without_it(checkpoint) -> None:
    config = ServerConfig(port=0, continuous_batching=False, limits=Limits(api_key="sésame"))
    with Server(checkpoint, config) as server:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "sesame"}):
            for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/metrics")):
                status, found, text = call(server, method, path, **headers)
                assert (status, found["www-authenticate"]) == (401, "Bearer")
                assert json.loads(text)["error"]["code"] == "invalid_api_key"
        key = {"Authorization": "Bearer sésame".encode().decode("latin-1")}
        assert call(server, "GET", "/v1/models", **key)[0] == 200
        assert call(server, "GET", "/health")[0] == 200


@pytest.mark.parametrize("batched", [False, True])
def test_a_dead_worker_is_seen_and_everybody_who_waits_is_told(checkpoint, batched, monkeypatch) -> None:
    with Server(checkpoint, ServerConfig(port=0, continuous_batching=batched)) as server:
        manager = server.manager
        thread = manager.batching._generation_thread if batched else manager.worker.thread
        if batched:
            end = manager.batching._end
            # The thread lives on for a while after its last reports.
            monkeypatch.setattr(manager.batching, "_end", lambda request: (end(request), time.sleep(0.3)))
        waiting, streaming = opened(server, long_body()), opened(server, long_body(stream=True))
        assert wait_for(lambda: len(server.jobs) == 2)
        kill(thread)
        assert wait_for(lambda: not thread.is_alive())
        assert call(server, "GET", "/health")[0] == 503
        status, headers, text = call(server, "POST", "/v1/chat/completions", {"messages": question()})
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(text)["error"]["type"] == "server_error"
        for connection in (waiting, streaming):
            connection.settimeout(30)
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 503" if connection is waiting else b"HTTP/1.1 200"), answer
            connection.close()


def test_the_command_serves_a_local_folder_without_the_network(tmp_path) -> None:
    """A Hub that only listens would notice the first question."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(0.01)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
        }
        command = [sys.executable, "-m", "llada_cli", "serve", str(BUNDLED_MODEL), "--port", "0", "--max-tokens", "8"]
        process = subprocess.Popen(
            [*command, "--threshold", "0.9"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        try:
            line = process.stdout.readline()
            url = re.search(r"http://\S+(?=;)", line)[0]
            assert line == f"llada-tiny listens at {url}; Ctrl-C ends it.\n"
            with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
                reply = client.chat.completions.create(model="llada-tiny", messages=question())
                assert reply.usage.completion_tokens <= 8
                assert reply.usage.tokens_per_pass > 0.5  # the server's own threshold
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        assert "Traceback" not in errors
        with pytest.raises(TimeoutError):
            hub.accept()
