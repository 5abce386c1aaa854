"""Laws of what the real clients get: the answers of `generate`, with counts and reasons, whoever else is served."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from llada_core.tokenization import encode_chat
from tests.helpers import ROOT
from tests.serving.conftest import call, question

FEW = {"max_tokens": 12}
SAMPLED = {"max_tokens": 12, "temperature": 1.0, "extra_body": {"block_length": 6}}


def generated(checkpoint: Any, ids: list[int], seed: int | None = None, **options: Any) -> Any:
    """What `generate` gives for a prompt alone, under the options that the server gives its model."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    output = checkpoint.model.generate(
        torch.tensor([ids]),
        generator=generator,
        tokenizer=checkpoint.tokenizer,
        return_dict_in_generate=True,
        **options,
    )
    answer = output.sequences[0, len(ids) :].tolist()
    return checkpoint.tokenizer.decode(answer, skip_special_tokens=True), answer, int(output.num_forward_passes[0])


def streamed(events: Any) -> tuple[str, Any]:
    """The text of a stream and its last event."""
    events = list(events)
    return "".join(event.choices[0].delta.content or "" for event in events), events[-1]


def test_a_chat_gets_the_answer_of_generate_with_its_counts(server, client, checkpoint) -> None:
    ids = encode_chat(checkpoint.tokenizer, question())
    text, answer, passes = generated(checkpoint, ids, max_new_tokens=12)
    reply = client.chat.completions.create(model=server.name, messages=question(), **FEW)
    assert (reply.choices[0].message.content, reply.choices[0].message.role) == (text, "assistant")
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), len(answer))
    assert usage.total_tokens == len(ids) + len(answer)
    assert (usage.forward_passes, usage.tokens_per_pass) == (passes, round(len(answer) / passes, 3))
    assert reply.choices[0].finish_reason == "stop"


def test_without_a_length_the_canvas_grows_block_by_block(server, client, checkpoint) -> None:
    ids = encode_chat(checkpoint.tokenizer, question())
    grown = {"max_new_tokens": None, "suffix_window": None, "block_length": 8}
    text, answer, passes = generated(checkpoint, ids, **grown)
    reply = client.chat.completions.create(model=server.name, messages=question(), extra_body={"block_length": 8})
    assert (reply.choices[0].message.content, reply.usage.forward_passes) == (text, passes)
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (len(answer), "stop")


def test_an_answer_that_reaches_its_length_says_so(server, client) -> None:
    reply = client.chat.completions.create(model=server.name, messages=question(), max_tokens=3)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 3)


def test_a_stream_is_the_whole_answer_and_ends_with_its_counts(server, client) -> None:
    options = {"max_tokens": 12, "extra_body": {"block_length": 4}}
    whole = client.chat.completions.create(model=server.name, messages=question(), **options)
    text, last = streamed(
        client.chat.completions.create(model=server.name, messages=question(), stream=True, **options)
    )
    assert text == whole.choices[0].message.content
    assert last.choices[0].finish_reason == "stop"
    assert last.usage.model_dump() == whole.usage.model_dump()


def test_a_stream_delivers_every_block_when_it_is_finished(server, client) -> None:
    stream = client.chat.completions.create(
        model=server.name, messages=question(), stream=True, max_tokens=12, extra_body={"block_length": 4}
    )
    assert sum(bool(event.choices[0].delta.content) for event in stream) >= 2


def test_a_stream_ends_with_done_for_those_who_wait_for_it(server) -> None:
    body = {"messages": question(), "max_tokens": 2, "stream": True}
    status, headers, text = call(server, "POST", "/v1/chat/completions", body)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert text.endswith(b"\n\ndata: [DONE]\n\n")


def test_a_seed_gives_the_answer_of_generate_with_its_generator(server, client, checkpoint) -> None:
    ids = encode_chat(checkpoint.tokenizer, question())
    text, *_ = generated(checkpoint, ids, seed=5, max_new_tokens=12, temperature=1.0, block_length=6)
    reply = client.chat.completions.create(model=server.name, messages=question(), seed=5, **SAMPLED)
    assert reply.choices[0].message.content == text


def test_a_seed_gives_one_answer_alone_or_among_fifteen_others(server, client) -> None:
    def ask(seed: int) -> str:
        messages = question("Who are you?" if seed % 3 else "Tell me about cats, please.")
        reply = client.chat.completions.create(model=server.name, messages=messages, seed=seed, **SAMPLED)
        return reply.choices[0].message.content

    alone = [ask(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(16)))
    assert together[:2] == alone
    assert len(set(together)) > 2


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(server, client) -> None:
    whole = client.chat.completions.create(model=server.name, messages=question(), **FEW).choices[0].message.content
    first, second = whole.split()[1:3]
    for stop in (first, [second, first], f"{first} {second}"):
        options = {"messages": question(), "stop": stop, **FEW, "extra_body": {"block_length": 2}}
        reply = client.chat.completions.create(model=server.name, **options)
        text, last = streamed(client.chat.completions.create(model=server.name, stream=True, **options))
        assert reply.choices[0].message.content == text
        assert first not in text
        assert reply.choices[0].finish_reason == last.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "fields, options",
    [
        ({"frequency_penalty": 2.0}, {"frequency_penalty": 2.0}),
        ({"presence_penalty": -2.0}, {"presence_penalty": -2.0}),
        ({"logit_bias": {"40": 100}}, {"sequence_bias": [[[40], 100.0]]}),
        ({"extra_body": {"steps": 3}}, {"steps": 3}),
        ({"extra_body": {"threshold": 0.5}}, {"threshold": 0.5}),
        ({"extra_body": {"cache": "dual", "block_length": 4}}, {"cache": "dual", "block_length": 4}),
    ],
)
def test_an_option_of_a_request_is_the_option_of_generate(server, client, checkpoint, fields, options) -> None:
    ids = encode_chat(checkpoint.tokenizer, question())
    text, _, passes = generated(checkpoint, ids, max_new_tokens=12, **options)
    reply = client.chat.completions.create(model=server.name, messages=question(), **FEW, **fields)
    assert (reply.choices[0].message.content, reply.usage.forward_passes) == (text, passes)


def test_a_completion_continues_its_prompt(server, client, checkpoint) -> None:
    ids = checkpoint.tokenizer("The capital of Italy is")["input_ids"]
    text, answer, _ = generated(checkpoint, ids, max_new_tokens=8)
    reply = client.completions.create(model=server.name, prompt="The capital of Italy is", max_tokens=8)
    assert (reply.choices[0].text, reply.usage.completion_tokens) == (text, len(answer))
    events = client.completions.create(model=server.name, prompt="The capital of Italy is", max_tokens=8, stream=True)
    assert "".join(event.choices[0].text for event in events) == text


def test_a_suffix_is_led_up_to(server, client) -> None:
    options = {"model": server.name, "prompt": "The capital of", "suffix": " is Rome.", "max_tokens": 1}
    reply = client.completions.create(**options)
    assert (reply.choices[0].text, reply.usage.completion_tokens, reply.usage.forward_passes) == (" Italy", 1, 1)
    assert "".join(event.choices[0].text for event in client.completions.create(**options, stream=True)) == " Italy"


def test_the_responses_endpoint_answers_with_and_without_a_stream(server, client) -> None:
    options = {"model": server.name, "input": "What is the capital of France?", "max_output_tokens": 12}
    whole = client.responses.create(**options)
    assert (whole.status, whole.usage.forward_passes > 0) == ("completed", True)
    events = list(client.responses.create(**options, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    short = client.responses.create(**{**options, "max_output_tokens": 2})
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_the_list_of_models_holds_the_one_that_is_served(server, client) -> None:
    [model] = client.models.list()
    assert (model.id, model.owned_by, model.max_model_len) == (server.name, "llada", 512)


def test_transformers_chat_talks_to_the_server(server, tmp_path) -> None:
    command = [sys.executable, "-m", "transformers.cli.transformers", "chat", server.name, f"{server.url}/v1"]
    flags = ["max_new_tokens=12", "do_sample=False"]
    done = subprocess.run(
        [*command, *flags],
        input="What is the capital of France?\n!exit\n",
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120", "HF_HUB_OFFLINE": "0"},  # offline, its client asks no server at all
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "The capital of France is Paris." in done.stdout


def test_the_code_of_the_documentation_runs(server, capsys) -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    client_code, server_code = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    exec(compile(client_code.replace("http://127.0.0.1:8000", server.url), "serving.md", "exec"), {})
    exec(compile(server_code, "serving.md", "exec"), {})
    shown = capsys.readouterr().out
    assert shown.startswith("The capital of France is Paris. 32\nThe capital of France is Paris. Italy\n")
    assert "http://127.0.0.1:" in shown
