"""Laws of a request's fields: what they mean, and what is refused by name."""

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from llada_serving import Bounds
from llada_serving.requests import FIELDS, ONLY_NEUTRAL, WITHOUT_EFFECT, RequestError, read_job

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": MESSAGES}


def read(endpoint: str = "chat", bounds: Bounds | None = None, **fields):
    minimal = {"chat": CHAT, "completions": {"prompt": "Hi"}, "responses": {"input": "Hi"}}[endpoint]
    return read_job({**minimal, **fields}, endpoint, "id", bounds or Bounds())


def test_fields_become_options_of_generate() -> None:
    job = read(
        max_tokens=12,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=["a", "b"],
        frequency_penalty=0.5,
        presence_penalty=-1,
        logit_bias={"7": 2, "8": -100},
        threshold=0.9,
        cache="dual",
        steps=4,
        block_length=8,
    )
    assert job.seed == 3
    assert job.options == {
        "max_new_tokens": 12,
        "temperature": 0.5,
        "do_sample": None,
        "top_p": 0.9,
        "stop_strings": ["a", "b"],
        "frequency_penalty": 0.5,
        "presence_penalty": -1.0,
        "sequence_bias": [[[7], 2.0], [[8], -float("inf")]],
        "threshold": 0.9,
        "cache": "dual",
        "steps": 4,
        "block_length": 8,
    }


def test_a_request_that_says_nothing_sets_nothing() -> None:
    nothing = dict.fromkeys(("max_tokens", "temperature", "top_p", "seed", "stop", "n", "tools", "threshold"))
    assert read().options == read(**nothing).options == {}


def test_requests_without_a_seed_draw_differently() -> None:
    assert len({read().seed for _ in range(8)}) == 8


def test_what_limits_draws_needs_no_temperature() -> None:
    assert read(top_p=0.9).options["temperature"] == 1.0
    assert read(top_p=0.9, temperature=0).options["temperature"] == 0.0


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_a_length_are_one(name) -> None:
    assert read(**{name: 9}).options == {"max_new_tokens": 9}


def test_a_suffix_without_a_length_leaves_a_short_gap() -> None:
    job = read("completions", suffix="!")
    assert (job.suffix, job.options) == ("!", {"max_new_tokens": 16})


@pytest.mark.parametrize("name, values", ONLY_NEUTRAL.items())
def test_a_field_that_is_not_supported_may_ask_for_nothing(name, values) -> None:
    endpoint = "responses" if name in FIELDS["completions"] else "chat"
    for value in (None, *values):
        read(endpoint, **{name: value})
    with pytest.raises(RequestError, match=f"`{name}` is not supported here, got 'anything else'; leave it out"):
        read(endpoint, **{name: "anything else"})


def test_fields_about_bookkeeping_are_taken() -> None:
    read(**dict.fromkeys(WITHOUT_EFFECT, "anything"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"treshold": 1}, "Unknown field `treshold`; did you mean `threshold`?"),
        ({"xyzzy": 1}, "Unknown field `xyzzy`; known fields: model, "),
        ({"temperature": 2.5}, "`temperature` must be a number from 0 to 2, got 2.5"),
        ({"temperature": float("nan")}, "`temperature` must be a number from 0 to 2, got nan"),
        ({"temperature": True}, "`temperature` must be a number from 0 to 2, got True"),
        ({"top_p": 0}, "`top_p` must be above 0, got 0"),
        ({"top_p": "1"}, "`top_p` must be a number from 0 to 1, got '1'"),
        ({"max_tokens": 0}, "`max_tokens` must be a whole number from 1 to 2147483647, got 0"),
        ({"max_tokens": -1}, "`max_tokens` must be a whole number"),
        ({"max_tokens": 1.5}, "`max_tokens` must be a whole number"),
        ({"max_tokens": 10**30}, "`max_tokens` must be a whole number"),
        ({"seed": 2**64}, "`seed` must be a whole number from"),
        ({"steps": 4}, "`steps` needs `max_tokens`"),
        ({"steps": 0, "max_tokens": 8}, "`steps` must be a whole number from 1"),
        ({"threshold": 0}, "`threshold` must be above 0, got 0"),
        ({"presence_penalty": 3}, "`presence_penalty` must be a number from -2 to 2, got 3"),
        ({"logit_bias": {"x": 1}}, "`logit_bias` must map up to 300 token ids to numbers from -100 to 100"),
        ({"logit_bias": {"1": 101}}, "`logit_bias` must map"),
        ({"logit_bias": [1]}, "`logit_bias` must map"),
        ({"stop": ""}, "`stop` must be a text or a list of up to 16 texts of up to 200 characters, got ''"),
        ({"stop": ["a"] * 17}, "`stop` must be a text"),
        ({"stop": {"a": 1}}, "`stop` must be a text"),
        ({"stop": "\ud800"}, "`stop` holds half of a surrogate pair"),
        ({"stream": "yes"}, "`stream` must be true or false, got 'yes'"),
        ({"chat_template_kwargs": 1}, "`chat_template_kwargs` must be an object"),
        ({"messages": []}, "`messages` must be a list with at least one message, got []"),
        ({"messages": "Hi"}, "`messages` must be a list with at least one message, got 'Hi'"),
        ({"messages": [{"content": "Hi"}]}, "`messages[0]` must be an object with a `role` and a `content`"),
        ({"messages": [{"role": "user"}]}, "The `content` of `messages[0]` must be a text, got None"),
        ({"messages": [*MESSAGES, {"role": "user", "content": [{"type": "image_url"}]}]}, "of `messages[1]` must be"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "`messages[0]` holds half of a surrogate pair"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "`messages[0]` holds `tool_calls`"),
        ({"generation_config": "{"}, "`generation_config` must be a generation config as JSON text"),
        ({"generation_config": "[]"}, "`generation_config` must be a generation config as JSON text: it is no object"),
        ({"generation_config": 7}, "`generation_config` must be a generation config as JSON text"),
    ],
)  # fmt: skip
def test_a_bad_chat_is_refused_by_name(fields, message) -> None:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert message in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "endpoint, fields, message",
    [
        ("completions", {"prompt": ""}, "`prompt` must hold at least one token, got an empty text"),
        ("completions", {"prompt": [1, 2]}, "`prompt` must be one text, got [1, 2]"),
        ("completions", {"suffix": 3}, "`suffix` must be one text, got 3"),
        ("completions", {"prompt": "\udc00"}, "`prompt` holds half of a surrogate pair"),
        ("responses", {"input": 3}, "`input` must be a list with at least one message, got 3"),
        ("responses", {"input": [{"type": "input_image"}]}, "The `content` of `input[0]` must be text"),
        ("responses", {"instructions": 3}, "`instructions` must be a text, got 3"),
        ("responses", {"stop": "a"}, "Unknown field `stop`"),
    ],
)
def test_a_bad_completion_or_response_is_refused_by_name(endpoint, fields, message) -> None:
    with pytest.raises(RequestError) as caught:
        read(endpoint, **fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_tokens": 101}, "`max_tokens` must be at most 100 on this server, got 101."),
        ({"max_tokens": 99, "steps": 51}, "`steps` must be at most 50 on this server, got 51."),
        ({"block_length": 41}, "`block_length` must be at most 40 on this server, got 41."),
        ({"threshold": 0.5}, "`threshold` must be at least 0.8 on this server, got 0.5."),
        ({"cache": "prefix"}, "`cache` must be one of none, dual on this server, got 'prefix'."),
        ({"generation_config": '{"max_new_tokens": 101}'}, "`max_tokens` must be at most 100 on this server, got 101."),
        ({"generation_config": '{"cache": "prefix"}'}, "`cache` must be one of none, dual on this server"),
    ],
)
def test_bounds_set_at_start_hold_for_every_request(fields, message) -> None:
    bounds = Bounds(max_tokens=100, max_steps=50, max_block_length=40, min_threshold=0.8, caches=("none", "dual"))
    with pytest.raises(RequestError) as caught:
        read(bounds=bounds, **fields)
    assert str(caught.value) == message or message in str(caught.value)
