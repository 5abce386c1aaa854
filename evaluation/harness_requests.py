"""From the harness's requests to token ids and options, and from an answer's text to what the harness wants of it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from modeling_llada.generation_config_llada import ALIASES

from .harness_options import GENERATION_OPTIONS

# How tasks and other back ends spell the length of an answer; the first that is given counts.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Options that only together say how tokens are drawn.
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k")

Ids = tuple[int, ...]


@dataclass
class Truncation:
    """Cuts what is too long from the left, and counts it.

    Attributes:
        num_requests: texts that were cut.
        num_tokens: tokens that they lost.
    """

    num_requests: int = 0
    num_tokens: int = 0

    def fit(self, ids: Sequence[int], room: int) -> Ids:
        """Return the last `room` ids at most."""
        num_lost = max(0, len(ids) - room)
        self.num_requests += num_lost > 0
        self.num_tokens += num_lost
        return tuple(ids[num_lost:])


def rolling_windows(ids: Sequence[int], prefix_id: int, max_length: int) -> list[tuple[Ids, Ids]]:
    """Cut a text into windows whose continuations make up the whole text, each token in one of them.

    Args:
        ids: the text.
        prefix_id: token that stands before the first window.
        max_length: longest window, context and continuation, at least 2.

    Returns:
        Context and continuation of each window. The first context is `prefix_id`; others are what precedes the
        continuation: one token, and in the last window as many as it has room for. Empty for an empty text.
    """
    # The harness counts what a causal model reads: everything but the last token.
    windows = get_rolling_token_windows(list(ids), prefix_id, max_seq_len=max_length - 1, context_len=1)
    return [(tuple(context), tuple(continuation)) for context, continuation in map(make_disjoint_window, windows)]


def stands_alone(requests: Sequence[Any]) -> list[bool]:
    """Tell for each request whether it is the only one of its question; its repeats do not count as others."""
    distinct = {id(request): (request.task_name, request.doc_id) for request in requests}
    sizes = Counter(distinct.values())
    return [sizes[request.task_name, request.doc_id] == 1 for request in requests]


def repeat_numbers(requests: Sequence[Any]) -> list[int]:
    """Number the occurrences of each request, from 0.

    The harness repeats a request that is to be answered several times. It also repeats the last one so that all
    processes have equally many; those begin again at 0.
    """
    seen: Counter[int] = Counter()
    numbers = []
    for request in requests:
        numbers.append(seen[id(request)] % (request.repeats or 1))
        seen[id(request)] += 1
    return numbers


def settle_request(
    generation_kwargs: dict[str, Any], named: Iterable[str]
) -> tuple[list[str], dict[str, Any], list[str]]:
    """Translate a task's `generation_kwargs`.

    Args:
        generation_kwargs: as the task spells them.
        named: options that the model's arguments name. They come before the task's; any of `do_sample`,
            `temperature`, `top_p` and `top_k` comes before all four.

    Returns:
        The strings that end an answer; options of `LLaDAGenerationConfig`; and the names that are not used, because
        the model's arguments come before them or because they mean nothing to masked diffusion.

    Raises:
        ValueError: for an `until` that is not text.
    """
    left = {name: value for name, value in generation_kwargs.items() if value is not None}
    until = left.pop("until", [])
    until = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(text, str) for text in until):
        raise ValueError(f"`until` must be text or a list of texts, got {until!r}.")
    named = set(named)
    closed = named | set(_SAMPLING if named & set(_SAMPLING) else ())
    lengths = [name for name in LENGTH_NAMES if name in left]
    options: dict[str, Any] = {}
    unused = lengths[1:]
    for name in [name for name in left if name not in unused]:
        target = "max_new_tokens" if name in lengths else ALIASES.get(name, name)
        if target in closed or target in options or target not in GENERATION_OPTIONS:
            unused.append(name)
        else:
            options[target] = left[name]
    if options.get("do_sample"):
        options.setdefault("temperature", 1.0)  # what transformers takes
    return until, options, sorted(unused)


def cut_before(text: str, ends: Iterable[str]) -> str:
    """Return `text` up to the first of `ends` in it."""
    found = [text.find(end) for end in ends if end]
    return text[: min((place for place in found if place >= 0), default=len(text))]


def draw_seed(seed: int, ids: Sequence[int], repeat: int) -> int:
    """Derive the seed of one answer's draws from the evaluation's seed, its prompt and the number of its repeat."""
    digest = hashlib.sha256(json.dumps([seed, list(ids), repeat]).encode()).digest()
    return int.from_bytes(digest[:7], "big")
