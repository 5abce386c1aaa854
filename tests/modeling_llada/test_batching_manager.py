"""Laws of transformers' continuous batching: an answer is the one of `generate`, whatever happens around it."""

import asyncio
import copy
import ctypes
import gc
import inspect
import pickle
import queue
import threading
import time
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import CompileConfig, GenerationConfig, PreTrainedTokenizerFast
from transformers.generation.continuous_batching import ContinuousMixin, requests
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

import modeling_llada.batching_manager_llada as batching_manager_llada
from modeling_llada import LLaDABatchingManager, LLaDAGenerationConfig, LLaDAModelLM
from modeling_llada.batching_results_llada import BackgroundThreadStatus, BatchingStatistics
from modeling_llada.continuous_batching_llada import Budget
from tests.helpers import REFERENCE
from tests.modeling_llada.test_continuous_batching import BLOCKS, ENDING, EOS, MASK, OPTIONS, RAGGED, alone, label, row

needs_transformers_5 = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 has another interface"
)


@pytest.fixture
def manager(tiny_model) -> Iterator[LLaDABatchingManager]:
    with tiny_model.continuous_batching_context_manager() as running:
        yield running


def finished(manager: LLaDABatchingManager, *request_ids: str) -> list[Any]:
    """The last report of each request."""
    return [[*manager.request_id_iter(request_id)][-1] for request_id in request_ids]


# The interface


@needs_transformers_5
@pytest.mark.parametrize(
    "name",
    ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager",
     "destroy_cached_continuous_batching_manager"],
)  # fmt: skip
def test_the_entry_points_take_what_transformers_takes_in_its_order(name) -> None:
    check_arguments(getattr(ContinuousMixin, name), getattr(LLaDAModelLM, name))


PUBLIC = [name for name in vars(ContinuousBatchingManager) if name[0] != "_" or name in ("__init__", "__iter__")]
INTERNAL = ("switch_to_cb_friendly_attn",)  # there is no paged attention to switch to


@needs_transformers_5
@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in INTERNAL])
def test_the_manager_has_the_methods_of_transformers_with_their_arguments(name) -> None:
    check_arguments(getattr(ContinuousBatchingManager, name), getattr(LLaDABatchingManager, name))


def check_arguments(theirs: Any, ours: Any) -> None:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    theirs, ours = (
        [p for p in inspect.signature(f).parameters.values() if p.kind not in kinds] for f in (theirs, ours)
    )
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)] if p.name != "continuous_batching_config"] == [
        p.default for p in theirs if p.name != "continuous_batching_config"
    ]


def test_results_and_statuses_are_those_of_transformers(tiny_model) -> None:
    [result] = tiny_model.generate_batch(RAGGED[:1], **BLOCKS).values()
    assert isinstance(result, requests.GenerationOutput)
    assert result.status == requests.RequestStatus.FINISHED and result.is_finished()
    assert set(vars(requests.GenerationOutput("x"))) <= set(vars(result))
    assert result.prompt_ids == RAGGED[0] and result.error is None and result.logprobs == []
    began, ended = result.lifespan
    assert result.created_time <= began <= ended <= time.perf_counter()


def test_results_come_in_the_order_of_the_prompts_under_ids_that_count(tiny_model) -> None:
    results = tiny_model.generate_batch(RAGGED, **BLOCKS)
    assert list(results) == [f"req_{index}" for index in range(len(RAGGED))]
    assert [result.prompt_ids for result in results.values()] == RAGGED
    assert tiny_model.generate_batch([], **BLOCKS) == {}


# Answers


@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_every_answer_equals_the_one_generate_gives_for_the_prompt_alone(tiny_model, options) -> None:
    options = {**BLOCKS, **options}
    limit = SimpleNamespace(max_requests_per_batch=4)
    results = tiny_model.generate_batch(RAGGED, continuous_batching_config=limit, seed=3, **options)
    for index, result in enumerate(results.values()):
        expected = alone(tiny_model, RAGGED[index], 3 + index, **options)
        assert (result.generated_tokens, result.num_forward_passes) == expected
        assert result.finish_reason in ("stop", "length")


def test_requests_of_all_kinds_do_not_disturb_each_other(tiny_model, manager) -> None:
    kinds = [{**BLOCKS, **options} for options in OPTIONS]
    ids = [manager.add_request(RAGGED[n % 6], seed=n, **options) for n, options in enumerate(kinds)]
    for n, result in enumerate(finished(manager, *ids)):
        expected = alone(tiny_model, RAGGED[n % 6], n, **kinds[n])
        assert (result.generated_tokens, result.num_forward_passes) == expected, kinds[n]


def test_requests_that_differ_only_in_length_seed_and_stop_share_passes(tiny_model) -> None:
    sizes: list[int] = []
    hook = tiny_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    manager = tiny_model.init_continuous_batching()
    options = {"block_length": 4, "stop_at_eos": False, "temperature": 1.0}
    manager.add_request([5, 6], max_new_tokens=4, seed=1, **options)
    manager.add_request([5], max_new_tokens=8, seed=2, **options)
    manager.add_request([7], max_new_tokens=4, eos_token_id=[EOS], **options)
    manager.start()
    manager.stop()
    hook.remove()
    assert sizes == [3] * 4 + [1] * 4


def test_an_answer_does_not_depend_on_when_its_request_came(tiny_model, manager) -> None:
    options = {**BLOCKS, **ENDING, "temperature": 0.8, "cache": "dual"}
    ids = []
    for seed, prompt in enumerate(RAGGED):
        ids.append(manager.add_request(prompt, seed=seed, **options))
        time.sleep(0.01)
    for seed, result in enumerate(finished(manager, *ids)):
        assert result.generated_tokens == alone(tiny_model, RAGGED[seed], seed, **options)[0]


def test_copies_of_a_prompt_are_the_rows_of_generate(tiny_model) -> None:
    options = {**BLOCKS, "temperature": 1.0, "num_return_sequences": 3}
    results = tiny_model.generate_batch([RAGGED[3], RAGGED[1]], seed=5, **options)
    assert list(results)[:3] == ["req_0__child#0", "req_0__child#1", "req_0"]
    generators = [torch.Generator().manual_seed(5 + row) for row in range(6)]
    rows = tiny_model.generate(torch.tensor([RAGGED[3], RAGGED[1]]), generator=generators, **options)[:, 4:].tolist()
    order = ["req_0", "req_0__child#0", "req_0__child#1", "req_1", "req_1__child#0", "req_1__child#1"]
    assert [results[request_id].generated_tokens for request_id in order] == rows


def test_without_a_seed_the_answers_follow_torchs_own_generator(tiny_model) -> None:
    def answers() -> list[list[int]]:
        results = tiny_model.generate_batch(RAGGED[:3], temperature=1.0, **BLOCKS)
        return [result.generated_tokens for result in results.values()]

    torch.manual_seed(1)
    first, state = answers(), torch.get_rng_state()
    torch.manual_seed(1)
    assert answers() == first and torch.equal(torch.get_rng_state(), state)
    assert answers() != first
    tiny_model.generate_batch(RAGGED[:3], **BLOCKS)
    torch.manual_seed(1)
    answers()
    tiny_model.generate_batch(RAGGED[:3], **BLOCKS)  # draws nothing
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_of_the_config_is_the_first_requests(tiny_model) -> None:
    options = {**BLOCKS, "temperature": 1.0}
    results = tiny_model.generate_batch(RAGGED, continuous_batching_config=SimpleNamespace(seed=4), **options)
    for index, result in enumerate(results.values()):
        assert result.generated_tokens == alone(tiny_model, RAGGED[index], 4 + index, **options)[0]
    manager = tiny_model.init_continuous_batching(continuous_batching_config=SimpleNamespace(seed=4))
    ids = [manager.add_request(RAGGED[0], f"own {n}", **options) for n in range(2)]
    manager.start()
    manager.stop()
    expected = [alone(tiny_model, RAGGED[0], 4 + n, **options)[0] for n in range(2)]
    assert [manager.get_result(request_id).generated_tokens for request_id in ids] == expected


def test_options_come_from_the_request_then_its_config_then_the_managers_then_the_models(tiny_model) -> None:
    config = GenerationConfig(max_new_tokens=6, do_sample=False)
    options = {"block_length": 6, "stop_at_eos": False}
    with tiny_model.continuous_batching_context_manager(config) as manager:
        ids = [
            manager.add_request([5, 6], **options),
            manager.add_request([5, 6], max_new_tokens=3, **options),
            manager.add_request([5, 6], generation_config=GenerationConfig(max_new_tokens=4), **options),
        ]
        assert [len(result.generated_tokens) for result in finished(manager, *ids)] == [6, 3, 4]


def test_an_end_of_text_of_the_request_ends_it_and_a_negative_one_is_none(tiny_model, manager) -> None:
    full = alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]
    options = {**BLOCKS, "stop_at_eos": True, "pad_token_id": EOS}
    ids = [manager.add_request(RAGGED[0], eos_token_id=eos, **options) for eos in (full[8], [full[8]], -1)]
    [one, listed, none] = finished(manager, *ids)
    assert one.generated_tokens == listed.generated_tokens == full[: full.index(full[8]) + 1]
    assert one.finish_reason == "stop"
    assert none.generated_tokens == full and none.finish_reason == "length"


def test_a_stop_string_ends_its_own_request_only(tiny_model, manager, tokenizer) -> None:
    full = alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]
    stop = tokenizer.decode(full[7:9])
    options = {**BLOCKS, "tokenizer": tokenizer}
    stopped, whole = finished(
        manager,
        manager.add_request(RAGGED[0], stop_strings=[stop], **options),
        manager.add_request(RAGGED[0], **options),
    )
    expected = alone(tiny_model, RAGGED[0], 0, stop_strings=[stop], **options)[0]
    assert stopped.generated_tokens == expected and stopped.finish_reason == "stop"
    assert whole.generated_tokens == full


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(REFERENCE / "checkpoints" / "mha")


# Reports


def test_a_stream_reports_every_finished_block_with_the_answer_so_far(tiny_model, manager) -> None:
    request_id = manager.add_request(RAGGED[0], streaming=True, record_timestamps=True, **BLOCKS)
    reports = [*manager.request_id_iter(request_id)]
    full = alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]
    assert [report.generated_tokens for report in reports] == [full[:n] for n in (6, 12, 18, 21)]
    assert [report.num_forward_passes for report in reports] == [6, 12, 18, 21]
    assert [report.is_finished() for report in reports] == [False, False, False, True]
    assert [report.finish_reason for report in reports] == [None, None, None, "length"]
    assert len(reports[-1].timestamps) == 21 and reports[-1].timestamps == sorted(reports[-1].timestamps)
    assert len(reports[0].timestamps) == 6


def test_drafts_show_the_active_block_after_every_pass_as_generates_streamer_does(tiny_model, manager) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.drafts: list[list[int]] = []

        def put(self, ids: torch.Tensor) -> None: ...

        def put_draft(self, draft: torch.Tensor) -> None:
            self.drafts.append(draft[0].tolist())

        def end(self) -> None: ...

    streamer = Streamer()
    tiny_model.generate(torch.tensor([RAGGED[0]]), streamer=streamer, **BLOCKS)
    neighbour = manager.add_request(RAGGED[1], **BLOCKS)
    request_id = manager.add_request(RAGGED[0], drafts=True, **BLOCKS)
    drafts = [report.draft for report in manager.request_id_iter(request_id) if report.draft is not None]
    assert drafts == [draft[: min(6, len(draft))] for draft in streamer.drafts]
    assert MASK in drafts[0] and MASK not in drafts[5]
    assert finished(manager, neighbour)[0].generated_tokens == alone(tiny_model, RAGGED[1], 0, **BLOCKS)[0]


def test_a_callback_gets_every_report_in_the_managers_thread(tiny_model, manager) -> None:
    reports, threads = [], set()

    def callback(report: Any) -> None:
        reports.append(report)
        threads.add(threading.current_thread())

    manager.add_request(RAGGED[0], streaming=True, callback=callback, **BLOCKS)
    manager.stop()
    assert [len(report.generated_tokens) for report in reports] == [6, 12, 18, 21]
    assert threads and threading.current_thread() not in threads
    assert manager.get_result() is None


def test_a_request_whose_callback_raises_fails_alone(tiny_model, manager) -> None:
    reports = []

    def callback(report: Any) -> None:
        reports.append(report)
        if report.draft is not None:
            raise KeyError("careless")

    neighbour = manager.add_request(RAGGED[1], **BLOCKS)
    manager.add_request(RAGGED[0], drafts=True, callback=callback, **BLOCKS)
    assert finished(manager, neighbour)[0].generated_tokens == alone(tiny_model, RAGGED[1], 0, **BLOCKS)[0]
    manager.stop()
    assert [report.is_finished() for report in reports] == [False, True]
    assert "careless" in reports[-1].error and reports[-1].finish_reason == "error"


def test_a_handler_gets_the_reports_in_its_event_loop(tiny_model, manager) -> None:
    async def collect(registers_first: bool) -> list[Any]:
        reports, done = [], asyncio.Event()
        thread = threading.current_thread()

        def handler(report: Any) -> None:
            assert threading.current_thread() is thread
            reports.append(report)
            if report.is_finished():
                done.set()

        request_id = f"first {registers_first}"
        if registers_first:
            manager.register_result_handler(request_id, handler)
        manager.add_request(RAGGED[0], request_id, streaming=True, **BLOCKS)
        if not registers_first:
            time.sleep(0.05)  # reports may wait already
            manager.register_result_handler(request_id, handler)
        await asyncio.wait_for(done.wait(), 30)
        return reports

    for registers_first in (True, False):
        reports = asyncio.run(collect(registers_first))
        assert [len(report.generated_tokens) for report in reports] == [6, 12, 18, 21]
    assert not manager._handlers and not manager._reports
    with pytest.raises(RuntimeError, match="no running event loop"):
        manager.register_result_handler("x", print)


def test_a_request_whose_event_loop_is_closed_is_cancelled(tiny_model, manager) -> None:
    async def leave() -> None:
        manager.register_result_handler("left", lambda report: None)
        manager.add_request(RAGGED[0], "left", streaming=True, max_new_tokens=400, block_length=4, stop_at_eos=False)

    asyncio.run(leave())
    manager.stop()
    assert manager.statistics().num_cancelled == 1 and not manager._handlers


# Failing, leaving


BAD_PROMPTS = {
    "empty": ([], "`input_ids` must hold at least one token"),
    "outside": ([5, 512], "`input_ids` must lie in the vocabulary"),
    "masked": ([5, MASK], "`input_ids` holds the mask token"),
    "text": ("hello", "must be token ids, got text"),
    "no list": (7, "'int' object is not iterable"),
    "fractions": ([1.5], "must be whole numbers"),
}


def test_a_bad_prompt_fails_alone_with_its_error_in_the_result(tiny_model) -> None:
    prompts = [RAGGED[0], *(prompt for prompt, _ in BAD_PROMPTS.values()), RAGGED[1]]
    first, *bad, last = tiny_model.generate_batch(prompts, **BLOCKS).values()
    for result, (_, message) in zip(bad, BAD_PROMPTS.values()):
        assert result.status == requests.RequestStatus.FAILED and message in result.error
        assert result.finish_reason == "error" and result.generated_tokens == []
    assert first.generated_tokens == alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]
    assert last.generated_tokens == alone(tiny_model, RAGGED[1], 0, **BLOCKS)[0]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_no_prompt_raises_where_it_is_added(manager, prompt, message) -> None:
    assert message in finished(manager, manager.add_request(prompt, **BLOCKS))[0].error
    assert manager.statistics().num_failed == 1


BAD_OPTIONS = [
    ({"max_new_token": 3}, "Unknown generation option `max_new_token`; did you mean `max_new_tokens`"),
    ({"temperature": -1}, "`temperature` must be 0, or from"),
    ({"cache": "dual", "freeze_prompt": True}, "`freeze_prompt` has no meaning for `add_request`"),
    ({"max_time": 3}, "`max_time` has no meaning for `add_request`"),
    ({"stop_strings": "."}, "`stop_strings` needs the model's tokenizer"),
    ({"steps": 1}, r"`steps` must be at least the number of blocks \(4\), got 1"),
    ({"compile": True}, "`compile` holds for all requests of a manager, got True; pass it in the `generation_config`"),
    ({"pack_weights": False}, "`pack_weights` holds for all requests of a manager, got False"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=str)
def test_bad_options_raise_where_they_are_passed(tiny_model, manager, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        manager.add_request(RAGGED[0], **{**BLOCKS, **options})
    with pytest.raises(ValueError, match=message):
        tiny_model.generate_batch(RAGGED[:2], **{**BLOCKS, **options})
    assert manager.statistics() == BatchingStatistics()


def break_the_logits_of(model: LLaDAModelLM, token: int) -> Any:
    """A hook that makes the logits of rows with this token NaN."""

    def hook(module: Any, args: Any, kwargs: dict, output: Any) -> Any:
        rows = kwargs["logits_positions"].nonzero()[:, 0]
        is_broken = (kwargs["input_ids"] == token).any(-1)[rows]
        output.logits = output.logits.masked_fill(is_broken[:, None], torch.nan)
        return output

    return model.register_forward_hook(hook, with_kwargs=True)


def test_a_request_whose_logits_are_broken_fails_alone(tiny_model) -> None:
    hook = break_the_logits_of(tiny_model, 487)
    try:
        good, bad, other = tiny_model.generate_batch([RAGGED[0], [5, 487], RAGGED[1]], **BLOCKS).values()
    finally:
        hook.remove()
    assert "`logits` must be finite" in bad.error and bad.generated_tokens == []
    assert good.generated_tokens == alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]
    assert other.generated_tokens == alone(tiny_model, RAGGED[1], 0, **BLOCKS)[0]


def test_a_pass_that_fails_is_repeated_for_each_request_alone(tiny_model) -> None:
    def hook(module: Any, args: Any, kwargs: dict) -> None:
        if (kwargs["input_ids"] == 487).any() and (kwargs["input_ids"] != MASK).sum(-1).max() > 8:
            raise RuntimeError("out of memory")

    options = {**BLOCKS, "temperature": 1.0}
    handle = tiny_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        good, bad = tiny_model.generate_batch([RAGGED[0], [5, 487]], seed=0, **options).values()
    finally:
        handle.remove()
    assert bad.error == "out of memory" and bad.finish_reason == "error" and len(bad.generated_tokens) == 6
    assert good.generated_tokens == alone(tiny_model, RAGGED[0], 0, **options)[0]


class Gate:
    """Stops the model before each pass until it is opened, and counts the rows of every pass."""

    def __init__(self, model: LLaDAModelLM):
        self.sizes: list[int] = []
        self.permits = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)
        self.is_open = False
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, kwargs: dict) -> None:
        self.sizes.append(len(kwargs["input_ids"]))
        self.arrived.release()
        if not self.is_open:
            assert self.permits.acquire(timeout=30)

    def wait(self) -> None:
        """Wait until a pass is about to begin."""
        assert self.arrived.acquire(timeout=30)

    def open(self) -> None:
        self.is_open = True
        self.permits.release()


@pytest.fixture
def gate(tiny_model) -> Iterator[Gate]:
    gate = Gate(tiny_model)
    yield gate
    gate.open()
    gate.handle.remove()


def test_a_cancelled_request_leaves_at_the_end_of_the_pass(tiny_model, gate) -> None:
    manager = tiny_model.init_continuous_batching()
    leaves, stays = (manager.add_request(prompt, **BLOCKS) for prompt in RAGGED[:2])
    manager.start()
    gate.wait()
    manager.cancel_request(leaves)
    gate.open()
    manager.stop()
    assert gate.sizes == [2] + [1] * 20
    report = manager.get_result(leaves)
    assert report.status == requests.RequestStatus.FAILED and report.finish_reason == "cancelled"
    assert report.error == "The request was cancelled." and report.generated_tokens == []
    assert report.num_forward_passes == 1
    assert manager.get_result(stays).generated_tokens == alone(tiny_model, RAGGED[1], 0, **BLOCKS)[0]


def test_a_request_cancelled_before_its_first_block_is_never_run(tiny_model, gate) -> None:
    manager = tiny_model.init_continuous_batching(continuous_batching_config=SimpleNamespace(max_requests_per_batch=1))
    _, second = (manager.add_request(prompt, **BLOCKS) for prompt in RAGGED[:2])
    manager.start()
    gate.wait()
    manager.cancel_request(second)
    manager.cancel_request("unknown")
    gate.open()
    manager.stop()
    assert gate.sizes == [1] * 21
    report = manager.get_result(second)
    assert report.finish_reason == "cancelled" and report.lifespan[0] == -1
    assert manager.statistics() == BatchingStatistics(num_finished=1, num_cancelled=1, num_tokens=21, num_row_passes=21)


def test_a_row_that_has_ended_is_reported_while_its_neighbours_go_on(tiny_model, gate) -> None:
    manager = tiny_model.init_continuous_batching()
    options = {"block_length": 6, "stop_at_eos": False}
    quick = manager.add_request(RAGGED[0], max_new_tokens=6, steps=2, **options)
    slow = manager.add_request(RAGGED[1], max_new_tokens=6, steps=6, **options)
    manager.start()
    for _ in range(3):  # two passes are over when the third begins
        gate.wait()
        gate.permits.release()
    report = manager.get_result(quick, timeout=30)
    assert report.is_finished() and report.num_forward_passes == 2 and len(report.generated_tokens) == 6
    assert manager.statistics() == BatchingStatistics(num_running=1, num_finished=1, num_tokens=6, num_row_passes=2)
    gate.open()
    manager.stop()
    assert gate.sizes == [2] * 2 + [1] * 4
    assert manager.get_result(slow).generated_tokens == alone(tiny_model, RAGGED[1], 0, max_new_tokens=6, **options)[0]


def test_a_request_whose_text_cannot_be_read_fails_alone(tiny_model, manager) -> None:
    class Careless:
        def decode(self, *args: Any, **kwargs: Any) -> str:
            raise LookupError("no such token")

    options = {**BLOCKS, "tokenizer": Careless()}
    bad = manager.add_request(RAGGED[0], stop_strings=["x"], **options)
    good = manager.add_request(RAGGED[1], **options)
    bad, good = finished(manager, bad, good)
    assert bad.error == "no such token" and bad.finish_reason == "error"
    assert good.generated_tokens == alone(tiny_model, RAGGED[1], 0, **BLOCKS)[0]


def test_cancelling_a_request_cancels_its_copies(tiny_model, gate) -> None:
    manager = tiny_model.init_continuous_batching()
    manager.add_request(RAGGED[0], "all", num_return_sequences=3, temperature=1.0, **BLOCKS)
    manager.add_request(RAGGED[1], "one", num_return_sequences=2, temperature=1.0, **BLOCKS)
    manager.start()
    gate.wait()
    manager.cancel_request("all")
    manager.cancel_request("one__child#0")
    gate.open()
    manager.stop()
    ends = {report.request_id: report.finish_reason for report in iter(manager.get_result, None)}
    cancelled = ["all", "all__child#0", "all__child#1", "one__child#0"]
    assert ends == {**dict.fromkeys(cancelled, "cancelled"), "one": "length"}


# Admission


def test_a_budget_takes_the_oldest_rows_that_fit_and_always_the_first() -> None:
    rows = [row(5, 5, 9, 9), row(2, 2, 6, 6), row(30, 30, 34, 40), row(1, 1, 5, 5)]
    assert Budget().choose(rows, 100) == rows
    assert Budget(max_rows=2).choose(rows, 100) == rows[:2]
    assert Budget(max_columns=18).choose(rows, 100) == rows[:2]
    assert Budget(max_columns=17).choose(rows, 100) == rows[:1]
    # A row that does not fit is not overtaken by one that would.
    assert Budget(max_columns=40).choose(rows, 100) == rows[:2]
    assert Budget(max_columns=1).choose(rows[2:], 100) == rows[2:3]
    # 4 masked positions, 100 tokens, 4 bytes.
    assert Budget(max_logits_bytes=3200).choose(rows, 100) == rows[:2]
    assert Budget(max_logits_bytes=3199).choose(rows, 100) == rows[:1]
    guided = row(2, 2, 6, 6)
    guided.config.cfg_scale = 1.0
    assert Budget(max_logits_bytes=3200).choose([guided, rows[0]], 100) == [guided]


@pytest.mark.parametrize(("name", "value"), [("max_requests_per_batch", 2), ("max_batch_tokens", 68)])
def test_a_batch_keeps_to_its_limits_and_the_oldest_requests_go_first(tiny_model, gate, name, value) -> None:
    gate.is_open = True
    limit = SimpleNamespace(**{name: value})
    results = tiny_model.generate_batch(RAGGED, continuous_batching_config=limit, **BLOCKS)
    assert max(gate.sizes) == 2
    starts = [results[f"req_{index}"].lifespan[0] for index in (2, 0, 5, 1, 3, 4)]  # the longest first
    assert starts == sorted(starts)
    with pytest.raises(ValueError, match=f"`{name}` must be None or at least 1, got 0"):
        tiny_model.generate_batch(RAGGED, continuous_batching_config=SimpleNamespace(**{name: 0}), **BLOCKS)


def test_a_full_queue_is_named(tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(batching_manager_llada, "QUEUE_TIMEOUT", 0.05)
    manager = tiny_model.init_continuous_batching(continuous_batching_config=SimpleNamespace(max_queue_size=2))
    for prompt in RAGGED[:2]:
        manager.add_request(prompt, **BLOCKS)
    with pytest.raises(queue.Full, match="2 requests are waiting already"):
        manager.add_request(RAGGED[2], **BLOCKS)
    assert manager.statistics() == BatchingStatistics(num_waiting=2)
    with pytest.raises(ValueError, match="`request_id` must not be in use, got 'req_0'"):
        manager.add_request(RAGGED[2], "req_0", **BLOCKS)


def test_what_cannot_have_its_meaning_is_refused_by_name(tiny_model) -> None:
    with pytest.raises(ValueError, match="`return_logprobs` is not available here, got True"):
        tiny_model.init_continuous_batching(continuous_batching_config=SimpleNamespace(return_logprobs=True))
    with pytest.raises(ValueError, match="`scheduler_type` is not available here, got 'prefill_first'"):
        tiny_model.init_continuous_batching(continuous_batching_config=SimpleNamespace(scheduler_type="prefill_first"))


# The thread


def test_requests_may_come_before_the_start_and_the_rest_is_answered_before_the_stop(tiny_model) -> None:
    manager = tiny_model.init_continuous_batching()
    assert not manager.is_running() and manager.get_result() is None
    ids = manager.add_requests(RAGGED, **BLOCKS)
    manager.start()
    assert manager.is_running()
    manager.stop()
    assert not manager.is_running()
    assert {report.request_id for report in iter(manager.get_result, None)} == set(ids)
    assert manager.background_thread_status.local_status == BackgroundThreadStatus.STOPPED
    manager.start()
    assert finished(manager, manager.add_request(RAGGED[0], **BLOCKS))[0].error is None
    manager.stop()


def test_a_hard_stop_fails_what_is_left(tiny_model, gate) -> None:
    manager = tiny_model.init_continuous_batching(continuous_batching_config=SimpleNamespace(max_requests_per_batch=1))
    ids = manager.add_requests(RAGGED[:3], **BLOCKS)
    manager.start()
    gate.wait()
    manager.stop(block=False, hard_stop=True)
    assert manager.add_request(RAGGED[0], **BLOCKS) is None
    gate.open()
    manager.join(time.perf_counter(), 30)
    assert gate.sizes == [1]
    for report in [manager.get_result(request_id) for request_id in ids]:
        assert report.error == "The manager was stopped before the request was answered."


def test_a_stop_that_takes_too_long_is_not_waited_for(tiny_model, gate) -> None:
    manager = tiny_model.init_continuous_batching()
    manager.add_request(RAGGED[0], **BLOCKS)
    manager.start()
    gate.wait()
    manager.stop(timeout=0.01)
    assert manager.is_running()
    gate.open()
    manager.join(time.perf_counter())
    assert not manager.is_running()


def test_leaving_the_context_with_an_error_does_not_wait_for_the_answers(tiny_model, gate) -> None:
    managers = []

    def leave() -> None:
        with tiny_model.continuous_batching_context_manager() as manager:
            managers.append(manager)
            manager.add_requests(RAGGED, **BLOCKS)
            gate.wait()
            gate.open()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert len(gate.sizes) < 21 and managers[0].statistics().num_failed == len(RAGGED)


def test_a_thread_that_dies_fails_every_request_and_is_marked(tiny_model, gate) -> None:
    manager = tiny_model.init_continuous_batching(continuous_batching_config=SimpleNamespace(max_requests_per_batch=1))
    ids = manager.add_requests(RAGGED[:2], **BLOCKS)
    manager.start()
    gate.wait()
    thread = ctypes.c_ulong(manager._generation_thread.ident)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(SystemExit)) == 1
    gate.open()
    manager._generation_thread.join(30)
    assert not manager.is_running()
    assert isinstance(manager.background_thread_status.fatal_error, SystemExit)
    assert [manager.get_result(request_id).error for request_id in ids] == ["SystemExit()"] * 2
    assert manager.get_result() is None
    assert manager.add_request(RAGGED[0], **BLOCKS) is None
    with pytest.raises(RuntimeError, match="`pause` needs a running manager"), manager.pause():
        pass


def test_inside_a_pause_no_pass_is_made_and_the_model_may_change(tiny_model) -> None:
    model = copy.deepcopy(tiny_model)
    head = model.get_output_embeddings()
    with model.continuous_batching_context_manager() as manager:
        request_id = manager.add_request(RAGGED[0], streaming=True, **BLOCKS)
        reports = manager.request_id_iter(request_id)
        next(reports)
        with manager.pause():
            with torch.no_grad():
                head.weight[7] = 0.0
                head.weight[7, 0] = 1e3
                model.model.transformer.ln_f.weight[0] = 1.0
            forbid = model.generate(torch.tensor([[5]]), max_new_tokens=2, stop_at_eos=False, pack_weights=False)
            assert "forward" not in vars(head)
            num_before = manager.statistics().num_row_passes
            time.sleep(0.05)
            assert manager.statistics().num_row_passes == num_before
            with pytest.raises(RuntimeError, match="`stop` inside a `pause` of the same thread"):
                manager.stop()
        *_, last = reports
    assert forbid.shape == (1, 3)
    old = alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]
    assert last.generated_tokens[:6] == old[:6] and last.generated_tokens[6:] != old[6:]


def test_requests_of_many_threads_are_all_answered(tiny_model, manager) -> None:
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        options = {**BLOCKS, "temperature": 0.5 + number % 2}
        result = finished(manager, manager.add_request(RAGGED[number % 6], seed=number, **options))[0]
        answers[number] = result.generated_tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in answers.items():
        options = {**BLOCKS, "temperature": 0.5 + number % 2}
        assert answer == alone(tiny_model, RAGGED[number % 6], number, **options)[0]
    assert len(answers) == 12


def test_memory_does_not_grow_with_the_number_of_requests(tiny_model, manager) -> None:
    def ask(number: int) -> None:
        ids = [manager.add_request([5, 6], max_new_tokens=1, stop_at_eos=False, streaming=True) for _ in range(number)]
        manager.cancel_request(ids[0])
        manager.add_request([MASK])
        assert sum(report.is_finished() for report in iter(lambda: manager.get_result(timeout=0.5), None)) == number + 1

    def held() -> int:
        # Until its next rows the thread may keep those whose reports are out.
        finished(manager, manager.add_request([5, 6], max_new_tokens=1))
        time.sleep(0.2)
        gc.collect()
        # Threads that other tests left behind allocate too, in files of their own.
        ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/modeling_llada/*_llada.py")])
        return sum(trace.size for trace in ours.traces)

    ask(200)
    tracemalloc.start()
    ask(200)
    before = held()
    for _ in range(8):
        ask(200)
    after = held()
    tracemalloc.stop()
    assert after - before < 100_000  # 60 bytes a request
    assert not manager._requests and not manager._reports and not manager._handlers


# Callers


def test_a_kept_manager_serves_the_next_call_with_its_options(tiny_model) -> None:
    model = copy.copy(tiny_model)
    model.__dict__ = dict(tiny_model.__dict__)
    first = model.generate_batch(RAGGED[:1], persistent_manager=True, **BLOCKS)
    kept = model._cached_continuous_batching_manager
    second = model.generate_batch(
        RAGGED[:1], GenerationConfig(max_new_tokens=5), persistent_manager=True, stop_at_eos=False
    )
    assert model._cached_continuous_batching_manager is kept
    assert list(first) == ["req_0"] and list(second) == ["req_1"]
    assert [len(result.generated_tokens) for result in (*first.values(), *second.values())] == [21, 5]
    assert copy.deepcopy(model)._cached_continuous_batching_manager is None
    assert pickle.loads(pickle.dumps(model))._cached_continuous_batching_manager is None
    model.destroy_cached_continuous_batching_manager()
    assert not hasattr(model, "_cached_continuous_batching_manager") and not kept.is_running()


def test_a_copy_without_a_manager_makes_a_new_one(tiny_model) -> None:
    model = copy.copy(tiny_model)
    model.__dict__ = {**tiny_model.__dict__, "_cached_continuous_batching_manager": None}
    assert len(model.generate_batch(RAGGED[:1], **BLOCKS)) == 1
    model.destroy_cached_continuous_batching_manager()


def test_autocast_of_the_caller_holds_in_the_thread(tiny_model) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        [result] = tiny_model.generate_batch(RAGGED[:1], **BLOCKS).values()
        assert result.generated_tokens == alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]
    assert result.generated_tokens != alone(tiny_model, RAGGED[0], 0, **BLOCKS)[0]


def test_a_compiled_model_gives_the_same_answers(tiny_model) -> None:
    options = {"max_new_tokens": 4, "block_length": 2, "steps": 2, "stop_at_eos": False}
    config = LLaDAGenerationConfig(compile=True, compile_config=CompileConfig(backend="eager", mode=None), **options)
    compiled = tiny_model.generate_batch(RAGGED[:2], config)
    plain = tiny_model.generate_batch(RAGGED[:2], **options)
    assert [r.generated_tokens for r in compiled.values()] == [r.generated_tokens for r in plain.values()]


@needs_transformers_5
def test_the_call_of_trls_trainers_is_taken(tiny_model) -> None:
    """What TRL 1.16's GRPO and RLOO pass with `use_transformers_continuous_batching`."""
    from transformers.generation import ContinuousBatchingConfig

    config = GenerationConfig(
        max_new_tokens=8, do_sample=True, pad_token_id=EOS, bos_token_id=480, eos_token_id=EOS, temperature=0.9,
        top_p=0.95, top_k=20, min_p=None, repetition_penalty=1.1, cache_implementation=None,
    )  # fmt: skip
    model = copy.deepcopy(tiny_model).train()
    results = model.generate_batch(
        RAGGED,
        generation_config=config,
        continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=0.5),
        progress_bar=False,
    )
    completions = [output.generated_tokens for output in results.values()]
    assert len(completions) == len(RAGGED) and all(0 < len(ids) <= 8 for ids in completions)
    assert not model.training
