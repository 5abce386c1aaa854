"""Laws of generation for any small model, prompt and options."""

from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from modeling_llada import LLaDAConfig, LLaDAModelLM, generate_many

from .profiles import cases, watchdog

# The one error of a call whose options fit together: a model may leave no token to choose.
NOTHING_LEFT = "`logits` must be finite, with a token other than the mask to choose"


def words(embedding_size: int, mask: int) -> st.SearchStrategy[int]:
    """Any id but the mask's."""
    return st.integers(0, embedding_size - 2).map(lambda token: token + (token >= mask))


@st.composite
def configs(draw: Any, dtype: str = "float64") -> LLaDAConfig:
    """A model of one or two blocks over 3 to 100 tokens, whose mask, EOS and padding are any of them."""
    num_heads = draw(st.integers(1, 6))
    vocab_size = draw(st.integers(3, 100))
    embedding_size = vocab_size + draw(st.integers(0, 5))
    mask = draw(st.integers(0, embedding_size - 1))
    others = words(embedding_size, mask)
    return LLaDAConfig(
        d_model=num_heads * draw(st.sampled_from([2, 4, 8])),
        n_layers=draw(st.integers(1, 2)),
        n_heads=num_heads,
        n_kv_heads=draw(st.sampled_from([n for n in range(1, num_heads + 1) if num_heads % n == 0])),
        mlp_hidden_size=draw(st.integers(1, 16)),
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        max_sequence_length=draw(st.integers(8, 40)),
        weight_tying=draw(st.booleans()),
        init_fn="normal",
        init_std=draw(st.sampled_from([0.02, 0.3, 1.0])),
        mask_token_id=mask,
        eos_token_id=draw(others | st.lists(others, min_size=1, max_size=3)),
        pad_token_id=draw(others),
        attn_implementation=draw(st.sampled_from(["sdpa", "eager"])),
        dtype=dtype,
    )


def make_model(config: LLaDAConfig, seed: int) -> LLaDAModelLM:
    torch.manual_seed(seed)
    return LLaDAModelLM(config).to(config.dtype).eval()


@st.composite
def texts(draw: Any, config: LLaDAConfig, with_masks: bool = False) -> list[list[int]]:
    """One to three rows of one to six tokens; with masks, each row has at least one, and one other token."""
    mask = config.mask_token_id
    row = st.lists(words(config.embedding_size, mask), min_size=1, max_size=6)
    rows = draw(st.lists(row, min_size=1, max_size=3))
    if with_masks:
        rows = [draw(st.permutations(row + [mask] * draw(st.integers(1, 4)))) for row in rows]
    return rows


@st.composite
def decoding_options(draw: Any, config: LLaDAConfig) -> dict[str, Any]:
    """Options of both `generate` and `infill` that fit together."""
    chosen: dict[str, Any] = {"return_dict_in_generate": True}

    def sometimes(name: str, values: st.SearchStrategy) -> None:
        if draw(st.booleans()):
            chosen[name] = draw(values)

    sometimes("temperature", st.floats(-6, 6).map(lambda power: 10.0**power))
    sometimes("do_sample", st.just(False))
    sometimes("top_p", st.floats(0, 1, exclude_min=True))
    sometimes("top_k", st.integers(1, 120))
    sometimes("remasking", st.sampled_from(["low_confidence", "margin", "entropy", "random"]))
    rules = {
        "threshold": st.floats(0, 1, exclude_min=True),
        "factor": st.floats(0, 3, exclude_min=True),
        "frechet": st.floats(0, 1, exclude_max=True),
        "entropy_bound": st.floats(0, 5),
    }
    rule = draw(st.sampled_from([None, *rules]))
    if rule is not None:
        chosen[rule] = draw(rules[rule])
    sometimes("remask_rate", st.floats(0, 0.9))
    sometimes("cfg_scale", st.floats(0, 4))
    sometimes("cache", st.sampled_from(["prefix", "dual"]))
    if "cache" in chosen:
        sometimes("refresh_interval", st.integers(1, 4))
    sometimes("confidence_eos_eot_inf", st.just(True))
    sometimes("logits_eos_inf", st.just(True))
    sometimes("eot_token_id", st.integers(0, config.embedding_size - 1))
    chosen.setdefault("eot_token_id", 0)
    return chosen


@st.composite
def calls(draw: Any, dtype: str = "float64") -> tuple[LLaDAConfig, list[list[int]], dict[str, Any]]:
    """A model, prompts, and options of `generate`."""
    config = draw(configs(dtype))
    rows = draw(texts(config))
    options = draw(decoding_options(config))
    longest = max(map(len, rows))
    length, block_length = draw(st.integers(1, 10)), draw(st.integers(1, 12))
    options["block_length"] = block_length
    if draw(st.integers(0, 3)):
        options["max_new_tokens"] = length
        if draw(st.booleans()):
            options["steps"] = draw(st.integers(-(-length // block_length), 16))
        if draw(st.booleans()):
            options["suffix_window"] = draw(st.integers(0, 12))
    else:
        options |= {"max_new_tokens": None, "max_length": longest + length}
    if draw(st.booleans()):
        options["stop_at_eos"] = False
    if "cache" in options and draw(st.booleans()):
        options["freeze_prompt"] = True
    return config, rows, options


def pad(rows: list[list[int]], config: LLaDAConfig, side: str) -> tuple[Tensor, Tensor | None]:
    """Pad rows to one length; without padding there is no attention mask."""
    length = max(map(len, rows))
    ids, valid = [], []
    for row in rows:
        padding = [config.pad_token_id] * (length - len(row))
        ids.append(padding + row if side == "left" else row + padding)
        valid.append([0] * len(padding) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(padding))
    mask = torch.tensor(valid)
    return torch.tensor(ids), None if mask.all() else mask


def generators(num_rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(num_rows)]


def run(model: LLaDAModelLM, method: str, rows: list[list[int]], options: dict, side: str, draws: Any = None) -> Any:
    """Call `generate` or `infill` on padded rows; None where a model leaves no token to choose."""
    ids, attention_mask = pad(rows, model.config, side)
    draws = generators(len(rows)) if draws is None else draws
    try:
        with watchdog():
            return getattr(model, method)(ids, attention_mask=attention_mask, generator=draws, **options)
    except ValueError as error:
        if NOTHING_LEFT not in str(error):
            raise
        event("nothing left to choose")
        return None


class Recorder:
    """A streamer that keeps what it is told."""

    def __init__(self):
        self.pieces, self.drafts, self.ended = [], [], False

    def put(self, piece: Tensor) -> None:
        self.pieces.append(piece.clone())

    def put_draft(self, draft: Tensor) -> None:
        self.drafts.append(draft.clone())

    def end(self) -> None:
        self.ended = True


def own_answer(ids: list[int], config: LLaDAConfig, stops: bool) -> list[int]:
    """The answer up to its first end-of-text token."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    cut = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids)) if stops else len(ids)
    return ids[:cut]


def answers_of(output: Any, start: int, config: LLaDAConfig, options: dict[str, Any]) -> list[list[int]]:
    stops = options.get("stop_at_eos", True)
    return [own_answer(row, config, stops) for row in output.sequences[:, start:].tolist()]


SIDES = st.sampled_from(["left", "right"])


@cases(40)
@given(calls(), SIDES, st.integers(0, 99))
def test_every_row_is_what_it_is_alone_and_among_many(call, side: str, seed: int) -> None:
    config, rows, options = call
    model = make_model(config, seed)
    if options["max_new_tokens"] is None:
        rows = [row for row in rows if len(row) == len(rows[0])]  # an open length counts the padding
    output = run(model, "generate", rows, options, side)
    if output is None:
        return
    start = max(map(len, rows))
    check_answer(output, pad(rows, config, side)[0], config, options)
    answers = answers_of(output, start, config, options)
    passes = output.num_forward_passes.tolist()
    for index, row in enumerate(rows):
        alone = run(model, "generate", [row], options, side, draws=[torch.Generator().manual_seed(index)])
        assert answers_of(alone, len(row), config, options) == [answers[index]]
        assert alone.num_forward_passes.tolist() == [passes[index]]
    if "freeze_prompt" not in options:
        with watchdog():
            many = sorted(generate_many(model, rows, 2, seeds=0, **options), key=lambda answer: answer.index)
        assert [answer.ids for answer in many] == answers
        assert [answer.num_forward_passes for answer in many] == passes


def check_answer(output: Any, prompt: Tensor, config: LLaDAConfig, options: dict[str, Any]) -> None:
    """The prompt is as it was, no mask is left, padding follows an end, and `steps` bounds the passes."""
    start = prompt.shape[1]
    assert torch.equal(output.sequences[:, :start], prompt)
    answer = output.sequences[:, start:]
    assert not (answer == config.mask_token_id).any()
    room = options["max_new_tokens"] or options["max_length"] - start
    assert 1 <= answer.shape[1] <= room
    if options.get("stop_at_eos", True):
        for row, own in zip(answer.tolist(), answers_of(output, start, config, options)):
            assert row == own + [config.pad_token_id] * (len(row) - len(own))
    assert (output.num_forward_passes >= 1).all()
    assert (output.num_forward_passes <= (options.get("steps") or room)).all()


@cases(30)
@given(calls(), SIDES, st.integers(0, 99))
def test_a_cache_that_is_always_refreshed_is_none(call, side: str, seed: int) -> None:
    config, rows, options = call
    model = make_model(config, seed)
    for name in ("cache", "refresh_interval", "freeze_prompt"):
        options.pop(name, None)
    plain = run(model, "generate", rows, options, side)
    for cache in ("prefix", "dual"):
        cached = run(model, "generate", rows, options | {"cache": cache, "refresh_interval": 1}, side)
        assert (plain is None) is (cached is None)
        if plain is not None:
            assert torch.equal(plain.sequences, cached.sequences)
            assert torch.equal(plain.num_forward_passes, cached.num_forward_passes)


@cases(30)
@given(calls("float32"), SIDES, st.integers(0, 99))
def test_history_and_streamer_tell_what_becomes_the_result(call, side: str, seed: int) -> None:
    config, rows, options = call
    recorder = Recorder()
    options |= {"output_history": True, "streamer": recorder}
    model = make_model(config, seed)
    output = run(model, "generate", rows, options, side)
    if output is None:
        return
    prompt, _ = pad(rows, config, side)
    del options["streamer"]
    check_answer(output, prompt, config, options)
    start, length = prompt.shape[1], output.sequences.shape[1]
    assert torch.equal(output.history[-1][:, :length], output.sequences)
    assert torch.equal(output.history[0][:, :start], prompt)
    assert (output.history[0][:, start:] == config.mask_token_id).all()
    if not options.get("remask_rate"):
        for before, after in zip(output.history, output.history[1:]):
            is_padding = after == config.pad_token_id
            assert ((before == config.mask_token_id) | (before == after) | is_padding)[:, start:].all()
    # One row may be told without its dimension.
    pieces = [piece.reshape(len(rows), -1) for piece in recorder.pieces]
    told = torch.cat(pieces, dim=1)[:, :length]
    assert recorder.ended and torch.equal(pieces[0], prompt)
    assert torch.equal(told, output.sequences[:, : told.shape[1]])
    assert (output.sequences[:, told.shape[1] :] == config.pad_token_id).all()
    assert len(recorder.drafts) == len(output.history) - 1


@st.composite
def infillings(draw: Any) -> tuple[LLaDAConfig, list[list[int]], dict[str, Any]]:
    config = draw(configs())
    rows = draw(texts(config, with_masks=True))
    options = draw(decoding_options(config))
    if draw(st.booleans()):
        options["block_length"] = draw(st.integers(1, 12))
    if draw(st.booleans()):
        options["steps"] = draw(st.integers(max(map(len, rows)), 20))
    return config, rows, options


@cases(40)
@given(infillings(), SIDES, st.integers(0, 99))
def test_infilling_fills_the_masks_and_nothing_else(call, side: str, seed: int) -> None:
    config, rows, options = call
    model = make_model(config, seed)
    output = run(model, "infill", rows, options, side)
    if output is None:
        return
    ids, _ = pad(rows, config, side)
    assert not (output.sequences == config.mask_token_id).any()
    is_word = ids != config.mask_token_id
    assert torch.equal(output.sequences[is_word], ids[is_word])
    # Blocks, steps and draws are counted in columns of the batch; without them a row is what it is alone.
    counted = ("block_length", "steps", "temperature", "remask_rate", "cache")
    if any(name in options for name in counted) or options.get("remasking") == "random":
        return
    for row, filled in zip(rows, output.sequences):
        alone = run(model, "infill", [row], options, side)
        valid = filled[-len(row) :] if side == "left" else filled[: len(row)]
        assert torch.equal(alone.sequences[0], valid)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.integers(-3, 101),
    st.floats(),
    st.sampled_from(["none", "dual", "prefix", "random", "margin", "entropy", "low_confidence", "", "x"]),
    st.lists(st.integers(-2, 101), max_size=2),
    st.dictionaries(st.sampled_from(["a", "mask"]), st.integers(), max_size=1),
    st.just(()),
)


@pytest.fixture(scope="module")
def small_model() -> LLaDAModelLM:
    ids = {"vocab_size": 9, "mask_token_id": 8, "eos_token_id": 0, "pad_token_id": 0, "dtype": "float32"}
    sizes = {"d_model": 4, "n_layers": 1, "n_heads": 1, "mlp_hidden_size": 4, "max_sequence_length": 16}
    return make_model(LLaDAConfig(**sizes, **ids), seed=0)


OPTION_NAMES = (
    "max_new_tokens", "gen_length", "max_length", "steps", "block_length", "temperature", "top_p", "top_k", "do_sample",
    "remasking", "threshold", "factor", "frechet", "entropy_bound", "remask_rate", "cfg_scale", "pack_weights", "cache",
    "refresh_interval", "freeze_prompt", "suffix_window", "stop_at_eos", "logits_eos_inf", "confidence_eos_eot_inf",
    "return_dict_in_generate", "output_history", "eos_token_id", "eot_token_id", "mask_token_id", "pad_token_id",
    "bos_token_id", "use_cache", "num_beams", "tokenizer",
)  # fmt: skip


@cases(200)
@given(options=st.dictionaries(st.sampled_from(OPTION_NAMES), JUNK, min_size=1, max_size=3))
def test_any_value_of_an_option_generates_or_is_a_value_error(small_model, options: dict[str, Any]) -> None:
    few = {} if {"max_new_tokens", "gen_length", "max_length"} & options.keys() else {"max_new_tokens": 5}
    is_long = max((v for v in options.values() if isinstance(v, int)), default=0) > 200
    if is_long and {"max_new_tokens", "gen_length", "max_length"} & options.keys():
        few = {"threshold": None} if "threshold" in options else {}
        options = {name: min(value, 200) if isinstance(value, int) else value for name, value in options.items()}
    with watchdog():
        try:
            small_model.generate(torch.tensor([[3, 4]]), **few, **options)
        except ValueError:
            event("refused")


@cases(200)
@given(
    ids=st.one_of(
        st.lists(st.lists(st.integers(-2, 10) | st.floats() | st.none() | st.booleans(), max_size=3), max_size=3), JUNK
    ),
    attention_mask=st.none() | st.lists(st.lists(st.integers(0, 1) | JUNK, max_size=3), max_size=3) | JUNK,
    method=st.sampled_from(["generate", "infill"]),
)
def test_any_input_generates_or_is_a_value_error(small_model, ids: Any, attention_mask: Any, method: str) -> None:
    options = {"max_new_tokens": 3} if method == "generate" else {}
    with watchdog():
        try:
            getattr(small_model, method)(ids, attention_mask=attention_mask, **options)
        except ValueError:
            event("refused")
