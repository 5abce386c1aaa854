"""What of transformers' serving application is relied on; a new version that moves it fails here, by name.

It has no public interface: methods with an underscore are overridden, and its answers are completed. Everything that
`serving/` takes for granted stands here once.
"""

import asyncio
import inspect
import json

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from transformers.cli.serving import utils
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server

from llada_serving.app import LEFT_OUT
from llada_serving.gate import GENERATING
from llada_serving.managers import Batched, BlockStreamer, LLaDAManager, OneAtATime, OneModel

HANDLERS = (ChatCompletionHandler, CompletionHandler, ResponseHandler)


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_a_manager_has_the_methods_that_handlers_call() -> None:
    base = utils.BaseGenerateManager
    assert base.__abstractmethods__ == {"generate_streaming", "generate_non_streaming", "stop"}
    for name in base.__abstractmethods__ - {"stop"}:
        for ours in (OneAtATime, Batched):
            assert parameters(getattr(ours, name)) == parameters(getattr(base, name))
    assert not inspect.isabstract(OneAtATime) and not inspect.isabstract(Batched) and issubclass(Batched, LLaDAManager)


def test_the_shared_state_has_the_methods_that_handlers_call() -> None:
    for name in ("use_continuous_batching", "get_manager", "is_cb_alive", "shutdown"):
        assert parameters(getattr(OneModel, name)) == parameters(getattr(utils.GenerationState, name))


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_handler_has_the_methods_that_ours_override(handler) -> None:
    assert parameters(handler.handle_request) == ["self", "body", "request_id"]
    assert parameters(handler._validate_request) == ["self", "body"]
    assert parameters(handler._build_generation_config) == ["self", "body", "model_generation_config", "use_cb"]
    source = inspect.getsource(handler.handle_request)
    assert "self._build_generation_config(body, model.generation_config" in source  # our job travels in the body


def test_the_model_manager_has_the_methods_that_ours_override() -> None:
    names = {"process_model_name", "load_model_and_processor", "load_model_streaming", "get_model_modality"}
    for name in names | {"get_gen_models", "shutdown"}:
        assert callable(getattr(ModelManager, name))
    assert "model_timeout" in parameters(ModelManager.__init__)


def test_the_application_has_the_routes_that_are_served_and_those_that_are_left_out() -> None:
    app = build_server(*[None] * 7)
    routes = {route.path for route in app.router.routes}
    assert routes >= {*GENERATING, *LEFT_OUT, "/v1/models", "/health", "/load_model"}


def test_a_stream_writes_an_error_between_quotes_as_it_is() -> None:
    """So a message with quotes would be no JSON, and ours have none."""
    assert '\'data: {{"error": "{item.msg}"}}\\n\\n\'' in inspect.getsource(ChatCompletionHandler._streaming)

    async def fail() -> str:
        queue: asyncio.Queue = asyncio.Queue()
        streamer = BlockStreamer.__new__(BlockStreamer)
        streamer._loop, streamer._queue = asyncio.get_running_loop(), queue
        streamer.fail('a "quoted"\nline \\ here')
        return (await queue.get()).msg

    message = asyncio.run(fail())
    assert json.loads(f'{{"error": "{message}"}}') == {"error": "a 'quoted' line / here"}


def test_the_streamer_skips_the_prompt_and_decodes_token_by_token() -> None:
    assert issubclass(BlockStreamer, utils.DirectStreamer)
    source = inspect.getsource(utils.DirectStreamer)
    for name in ("_decode_stream", "_tokenizer", "_enqueue", "total_tokens", "_parser"):
        assert name in source
