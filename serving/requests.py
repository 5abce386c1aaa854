"""What a client may ask for: the fields of each endpoint, checked, and the generation options that they become.

The fields are OpenAI's, as transformers' server takes them, and the options of masked diffusion beside them. A field
that has no effect here is refused unless its value asks for nothing: no answer is silently different from the request.
"""

import difflib
import json
import math
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig

from llada_core.tokenization import LLADA, LLADA_MOE

# What torch takes as a seed.
SEEDS = (-(2**63), 2**64 - 1)
MAX_STOPS, MAX_STOP_LENGTH, MAX_BIASES = 16, 200, 300
# Tokens between a prompt and a suffix unless `max_tokens` says otherwise: the default of OpenAI's endpoint.
INFILL_TOKENS = 16

# Options of `generate` that a request may set beside OpenAI's fields.
DIFFUSION_FIELDS = ("threshold", "cache", "steps", "block_length", "top_k", "min_p", "repetition_penalty")
_SAMPLING = ("model", "stream", "stream_options", "temperature", "top_p", "seed", "generation_config")
_TEXT = (*_SAMPLING, "max_tokens", "stop", "frequency_penalty", "presence_penalty", "logit_bias")
# Endpoint -> the fields that are read.
FIELDS = {
    "chat": (*_TEXT, "messages", "max_completion_tokens", "chat_template_kwargs", *DIFFUSION_FIELDS),
    "completions": (*_TEXT, "prompt", "suffix", *DIFFUSION_FIELDS),
    "responses": (*_SAMPLING, "input", "instructions", "max_output_tokens", *DIFFUSION_FIELDS),
}
# Fields about bookkeeping on OpenAI's side, which no answer depends on.
WITHOUT_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "max_tool_calls",
    "include",
)
# Fields that are not supported -> the values that ask for nothing. `null` always does.
ONLY_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}}, {}),
    "modalities": (["text"],),
    "truncation": ("disabled",),
    "background": (False,),
    "audio": (),
    "prediction": (),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "reasoning": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}


class RequestError(ValueError):
    """A request that cannot be answered, with the status and the code that its client is told.

    Args:
        message: what is wrong, and the way out.
        param: the field.
        status: HTTP status.
        code: a word for programs.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


# Ends of a turn, which a tokenizer without the token spells out.
ENDS_OF_TURN = tuple(kind.end_of_turn for kind in (LLADA, LLADA_MOE) if kind.end_of_turn)


@dataclass(frozen=True)
class Bounds:
    """How much a single request may ask for; None leaves the model's own limit.

    Args:
        max_tokens: tokens of an answer, at least 1.
        max_steps: denoising steps, at least 1.
        max_block_length: tokens of a block, at least 1.
        min_threshold: lowest confidence of the parallel rule, in [0, 1].
        caches: caches that may be chosen.
    """

    max_tokens: int | None = None
    max_steps: int | None = None
    max_block_length: int | None = None
    min_threshold: float = 0.0
    caches: tuple[str, ...] = ("none", "prefix", "dual")

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options of a request outside the bounds.

        Raises:
            RequestError: in this case.
        """
        limits = {"max_new_tokens": self.max_tokens, "steps": self.max_steps, "block_length": self.max_block_length}
        for name, limit in limits.items():
            shown = "max_tokens" if name == "max_new_tokens" else name
            if limit is not None and (options.get(name) or 0) > limit:
                raise RequestError(f"`{shown}` must be at most {limit} on this server, got {options[name]}.", shown)
        threshold, cache = options.get("threshold"), options.get("cache")
        if threshold is not None and threshold < self.min_threshold:
            raise RequestError(
                f"`threshold` must be at least {self.min_threshold} on this server, got {threshold}.", "threshold"
            )
        if cache is not None and cache not in self.caches:
            raise RequestError(
                f"`cache` must be one of {', '.join(self.caches)} on this server, got {cache!r}.", "cache"
            )


@dataclass
class Job:
    """One request on its way through the server.

    Attributes:
        request_id: unique among the requests in the server.
        endpoint: a key of `FIELDS`.
        options: options of `generate` that the request sets.
        base: a whole generation config that the request brings, in place of the model's.
        seed: of its draws; drawn at random where the client gives none, so that neighbours never matter.
        max_tokens: how long the answer may grow where the request sets no length; None is the model's limit.
        cuts: texts before which the answer's text ends.
        suffix: text after the answer, to be filled in between.
        suffix_ids: its tokens.
        num_prompt_tokens, num_tokens, num_passes: counted by the worker.
        finish_reason: "stop" for an answer that ended by itself or at a stop text, "length" for one that was cut.
        began, first_at: seconds, `time.monotonic`; when the first block was done.
        key: its id in the manager, where a client's id may still be in use by a request that was cancelled.
        is_cancelled: set once nobody waits for the answer.
    """

    request_id: str
    endpoint: str
    options: dict[str, Any] = field(default_factory=dict)
    base: GenerationConfig | None = None
    seed: int = field(default_factory=lambda: secrets.randbits(63))
    max_tokens: int | None = None
    cuts: tuple[str, ...] = ENDS_OF_TURN
    suffix: str | None = None
    suffix_ids: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_passes: int = 0
    finish_reason: str = "length"
    began: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    def usage(self) -> dict[str, Any]:
        """What a diffusion model reports besides the tokens."""
        per_pass = round(self.num_tokens / self.num_passes, 3) if self.num_passes else 0.0
        return {"forward_passes": self.num_passes, "tokens_per_pass": per_pass}


def read_job(body: dict[str, Any], endpoint: str, request_id: str, bounds: Bounds) -> Job:
    """Check the fields of a request, and turn them into options of `generate`.

    Args:
        body: the request's JSON object.
        endpoint: a key of `FIELDS`.
        request_id: the job's.
        bounds: of this server.

    Raises:
        RequestError: for an unknown field, one that is not supported, and a value outside its range or the bounds.
    """
    _check_names(body, endpoint)
    job = Job(request_id, endpoint, max_tokens=bounds.max_tokens)
    _check_text_fields(body, endpoint)
    job.base, options = _read_generation_config(body), _read_numbers(body)
    if "stop" in body and body["stop"] is not None:
        stops = _read_stops(body["stop"])
        options["stop_strings"], job.cuts = stops, (*stops, *ENDS_OF_TURN)
    if body.get("logit_bias"):
        options["sequence_bias"] = _read_biases(body["logit_bias"])
    if body.get("seed") is not None:
        job.seed = _integer(body, "seed", *SEEDS)
    if body.get("suffix"):
        job.suffix = body["suffix"]
        options.setdefault("max_new_tokens", INFILL_TOKENS)
    if "steps" in options and options.get("max_new_tokens") is None:
        raise RequestError("`steps` needs `max_tokens`, which shares them over the answer; pass both.", "steps")
    bounds.check(vars(job.base) if job.base is not None else {})
    bounds.check(options)
    job.options = options
    return job


def _check_names(body: dict[str, Any], endpoint: str) -> None:
    for name, value in body.items():
        if name in FIELDS[endpoint] or name in WITHOUT_EFFECT:
            continue
        if name in ONLY_NEUTRAL:
            if value is None or any(type(value) is type(one) and value == one for one in ONLY_NEUTRAL[name]):
                continue
            raise RequestError(f"`{name}` is not supported here, got {_short(value)}; leave it out.", name)
        nearest = difflib.get_close_matches(name, FIELDS[endpoint], n=1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"known fields: {', '.join(FIELDS[endpoint])}."
        raise RequestError(f"Unknown field `{name[:80]}`; {hint}", name[:80], code="unknown_field")


def _check_text_fields(body: dict[str, Any], endpoint: str) -> None:
    if not isinstance(body.get("model") or "", str):
        raise RequestError(f"`model` must be the model's name, got {_short(body['model'])}.", "model")
    if not isinstance(body.get("stream") or False, bool):
        raise RequestError(f"`stream` must be true or false, got {_short(body['stream'])}.", "stream")
    if endpoint == "chat":
        _check_messages(body.get("messages"))
        if not isinstance(body.get("chat_template_kwargs") or {}, dict):
            raise RequestError("`chat_template_kwargs` must be an object.", "chat_template_kwargs")
    elif endpoint == "completions":
        if isinstance(body.get("prompt"), list) and len(body["prompt"]) == 1:
            body["prompt"] = body["prompt"][0]
        for name in ("prompt", "suffix"):
            if not isinstance(body.get(name) or "", str):
                raise RequestError(f"`{name}` must be one text, got {_short(body[name])}.", name)
            _check_unicode(body.get(name) or "", name)
        if not body.get("prompt"):
            raise RequestError("`prompt` must hold at least one token, got an empty text.", "prompt")
    else:
        _check_input(body)


def _check_messages(messages: Any, name: str = "messages") -> None:
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"`{name}` must be a list with at least one message, got {_short(messages)}.", name)
    for index, message in enumerate(messages):
        place = f"{name}[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"`{place}` must be an object with a `role` and a `content`.", name)
        if message.get("tool_calls"):
            raise RequestError(f"`{place}` holds `tool_calls`, which are not supported here; leave them out.", name)
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise RequestError(f"The `content` of `{place}` must be a text, got {_short(content)}.", name)
        for part in parts:
            is_text = isinstance(part, dict) and part.get("type") in ("text", "input_text", "output_text")
            if not is_text or not isinstance(part.get("text"), str):
                raise RequestError(f"The `content` of `{place}` must be text, got {_short(part)}.", name)
            _check_unicode(part["text"], place)


def _check_input(body: dict[str, Any]) -> None:
    given = body.get("input")
    if isinstance(given, str) and given:
        _check_unicode(given, "input")
    elif isinstance(given, list) and given and isinstance(given[0], dict) and "role" not in given[0]:
        _check_messages([{"role": "user", "content": given}], "input")
    else:
        _check_messages(given, "input")
    if not isinstance(body.get("instructions") or "", str):
        raise RequestError(f"`instructions` must be a text, got {_short(body['instructions'])}.", "instructions")
    _check_unicode(body.get("instructions") or "", "instructions")


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"`{name}` holds half of a surrogate pair, which is no character; leave it out.") from None


def _read_generation_config(body: dict[str, Any]) -> GenerationConfig | None:
    """A whole generation config as JSON text, as `transformers chat` sends it."""
    text = body.get("generation_config")
    if text is None:
        return None
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
        return GenerationConfig(**values)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"`generation_config` must be a generation config as JSON text: {_short(error)}", "generation_config"
        ) from None


def _read_numbers(body: dict[str, Any]) -> dict[str, Any]:
    """The fields that are numbers or words, as options of `generate`."""
    options: dict[str, Any] = {}
    for name in ("max_output_tokens", "max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            options["max_new_tokens"] = _integer(body, name, 1, 2**31 - 1)
    ranges = {
        "temperature": (0.0, 2.0),
        "top_p": (0.0, 1.0),
        "frequency_penalty": (-2.0, 2.0),
        "presence_penalty": (-2.0, 2.0),
        "threshold": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (0.01, 100.0),
    }
    for name, (low, high) in ranges.items():
        if body.get(name) is not None:
            options[name] = _number(body, name, low, high)
    for name in ("steps", "block_length", "top_k"):
        if body.get(name) is not None:
            options[name] = _integer(body, name, 1, 2**31 - 1)
    for name in ("top_p", "threshold"):
        if options.get(name) == 0:
            raise RequestError(f"`{name}` must be above 0, got 0.", name)
    if body.get("cache") is not None:
        options["cache"] = body["cache"]
    for name in ("frequency_penalty", "presence_penalty"):
        if options.get(name) == 0:
            del options[name]
    if "temperature" in options:
        options["do_sample"] = None
    elif any(options.get(name) is not None for name in ("top_p", "top_k", "min_p")):
        options["temperature"] = 1.0  # OpenAI's default; they have no meaning without one
        options["do_sample"] = None
    return options


def _read_stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    is_valid = isinstance(stops, list) and all(isinstance(text, str) and text for text in stops)
    if not is_valid or len(stops) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in stops):
        raise RequestError(
            f"`stop` must be a text or a list of up to {MAX_STOPS} texts of up to {MAX_STOP_LENGTH} characters, got "
            f"{_short(value)}.",
            "stop",
        )
    for text in stops:
        _check_unicode(text, "stop")
    return stops or []


def _read_biases(value: Any) -> list[list[Any]]:
    try:
        biases = {int(token): float(bias) for token, bias in value.items()}
        is_valid = all(-100 <= bias <= 100 for bias in biases.values()) and len(biases) <= MAX_BIASES
    except (AttributeError, TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise RequestError(
            f"`logit_bias` must map up to {MAX_BIASES} token ids to numbers from -100 to 100, got {_short(value)}.",
            "logit_bias",
        )
    # As with OpenAI, -100 bans a token.
    return [[[token], -math.inf if bias == -100 else bias] for token, bias in biases.items()]


def _number(body: dict[str, Any], name: str, low: float, high: float) -> float:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise RequestError(f"`{name}` must be a number from {low:g} to {high:g}, got {_short(value)}.", name)
    return float(value)


def _integer(body: dict[str, Any], name: str, low: int, high: int) -> int:
    value = body[name]
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"`{name}` must be a whole number from {low} to {high}, got {_short(value)}.", name)
    return value


def _short(value: Any) -> str:
    """A value in a message, not the whole of it."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 100 else text[:97] + "…"
