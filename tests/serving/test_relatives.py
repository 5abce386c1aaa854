"""Laws of serving LLaDA's relatives: the answers of `generate`, one at a time and batched, whatever the cache."""

import json
from collections.abc import Iterator

import pytest
import torch

from llada_core.loading import load_checkpoint
from llada_core.tokenization import encode_chat
from llada_serving import Server, ServerConfig
from tests.family import KINDS, released_folder
from tests.serving.conftest import call

TURNS = [{"role": "user", "content": "ab cd"}]
CACHES = ("none", "prefix", "dual")


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return released_folder(request.param, tmp_path_factory.mktemp("relatives") / request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["one at a time", "batched"])
def relative(request, folder) -> Iterator[Server]:
    checkpoint = load_checkpoint(folder, device="cpu", dtype="float32")
    with Server(checkpoint, ServerConfig(port=0, continuous_batching=request.param), name=folder.name) as running:
        yield running


def generated(server: Server, ids: list[int], **options) -> tuple[str, int]:
    """Text and passes of `generate` for a prompt alone."""
    model, tokenizer = server.checkpoint.model, server.checkpoint.tokenizer
    output = model.generate(torch.tensor([ids]), return_dict_in_generate=True, **options)
    answer = output.sequences[0, len(ids) :].tolist()
    return tokenizer.decode(answer, skip_special_tokens=True), int(output.num_forward_passes[0])


def posted(server: Server, path: str, **body) -> dict:
    status, _, text = call(server, "POST", path, body)
    assert status == 200, text
    return json.loads(text)


@pytest.mark.parametrize("cache", CACHES)
def test_a_relative_completes_as_generate_does(relative, cache) -> None:
    ids = relative.checkpoint.tokenizer("ab cd")["input_ids"]
    text, passes = generated(relative, ids, max_new_tokens=12, block_length=4, cache=cache, threshold=0.5)
    reply = posted(
        relative, "/v1/completions", prompt="ab cd", max_tokens=12, block_length=4, cache=cache, threshold=0.5
    )
    assert (reply["choices"][0]["text"], reply["usage"]["forward_passes"]) == (text, passes)


def test_a_relative_fills_a_gap_of_the_length_asked_for(relative) -> None:
    reply = posted(relative, "/v1/completions", prompt="ab", suffix="cd", max_tokens=3)
    assert (reply["usage"]["completion_tokens"], reply["usage"]["forward_passes"]) == (3, 3)


def test_a_chat_has_the_template_of_its_kind_or_is_refused(relative) -> None:
    chat = {"messages": TURNS, "max_tokens": 6}
    if relative.name == "illada":  # a base checkpoint comes without a template
        for path, body in {"/v1/chat/completions": chat, "/v1/responses": {"input": "ab"}}.items():
            status, _, text = call(relative, "POST", path, body)
            message = json.loads(text)["error"]["message"]
            assert status == 400 and message.endswith("a conversation; send a `prompt` to /v1/completions.")
        return
    text, passes = generated(relative, encode_chat(relative.checkpoint.tokenizer, TURNS), max_new_tokens=6)
    reply = posted(relative, "/v1/chat/completions", **chat)
    assert (reply["choices"][0]["message"]["content"], reply["usage"]["forward_passes"]) == (text, passes)
