"""Laws of the generation managers' parts: texts cut at stops, work done in order, a death that everybody hears of."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from transformers.cli.serving.utils import CBWorkerDeadError

from llada_serving.managers import TextCutter, Worker


def cut(pieces: list[str], *stops: str) -> list[str]:
    cutter = TextCutter(stops)
    return [*map(cutter.feed, pieces), cutter.rest()]


@pytest.mark.parametrize(
    "pieces, stops, expected",
    [
        (["one", " two"], (), ["one", " two", ""]),
        (["one END two", "three"], ("END",), ["one ", "", ""]),
        (["one E", "ND two"], ("END",), ["one ", "", ""]),
        (["one E", "NTER"], ("END",), ["one ", "ENTER", ""]),
        (["one E"], ("END",), ["one ", "E"]),
        (["aab", "aac"], ("aac",), ["aab", "", ""]),
        (["ab", "c"], ("bc", "abcd"), ["", "a", ""]),
        (["xEND", "y"], ("ND", "EN"), ["x", "", ""]),
    ],
)
def test_a_text_ends_before_the_first_stop_however_it_arrives(pieces, stops, expected) -> None:
    assert cut(pieces, *stops) == expected


def test_work_is_done_in_order_and_its_errors_are_its_callers() -> None:
    async def run() -> tuple:
        worker, done = Worker(), []
        futures = [worker.call(lambda number=number: done.append(number) or number) for number in range(5)]
        failed = worker.call(lambda: 1 // 0)
        results = await asyncio.gather(*futures, failed, return_exceptions=True)
        return done, results, await worker.call(lambda: "after")

    done, results, after = asyncio.run(run())
    assert (done, results[:5], after) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], "after")
    assert isinstance(results[5], ZeroDivisionError)


def test_whoever_waits_when_the_worker_dies_is_told_and_so_is_whoever_comes_later() -> None:
    def die() -> None:
        raise SystemExit

    async def run() -> None:
        worker = Worker()
        waiting = [worker.call(die), worker.call(int)]
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, CBWorkerDeadError)
        with pytest.raises(CBWorkerDeadError, match=r"The worker has died \(SystemExit\(\)\); restart the server"):
            worker.call(int)

    asyncio.run(run())
