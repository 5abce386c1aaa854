"""Serve the same requests one at a time, in static batches and by continuous batching; soak and flood the server.

Requests come at random (Poisson) with prompts and answers of mixed lengths, at the same times for every way. At
"concurrency" c, 0.7 c requests come on average in the time that one takes alone, so that one at a time falls behind
from c = 2 on. A static batch takes all requests that wait, up to `--batch`, and its answers are done together.
"continuous, padded" is continuous batching without passes of their own for narrow rows. The ways take turns in every
round, so that other programs disturb all of them; the table has the medians of the rounds. Usage:

    python benchmarks/serving.py                                        # the bundled model
    python benchmarks/serving.py --model random-104m --requests 16 --concurrency 1,16 --json result.json
    python benchmarks/serving.py --passes                               # how much batching can give at most
    python benchmarks/serving.py --soak 5000                            # through HTTP; some leave, some send rubbish
    python benchmarks/serving.py --flood 10000                          # all at once, to a process of `llada serve`
"""

import argparse
import asyncio
import json
import queue
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from process_memory import resident
from report import command, machine, table, write_json

from llada_core.loading import Checkpoint, load_checkpoint
from modeling_llada import LLaDAConfig, LLaDAModelLM, continuous_batching_llada

PROMPT_LENGTHS, ANSWER_LENGTHS, BLOCK = (8, 16, 32, 64), (16, 32, 64), 16
LOAD = 0.7
# Of a soak: the share of clients that leave early, and of bad requests.
LEAVING, BAD = 0.10, 0.05
# Connections of a flood at once: fewer than the files that a process may open.
CONNECTIONS = 512
# Rows and columns of the passes that are timed.
PASSES = ((1, 32), (1, 64), (1, 128), (4, 64), (16, 64), (16, 128))
OPTIONS: dict[str, Any] = {"block_length": BLOCK, "stop_at_eos": False, "suffix_window": 0}


@dataclass
class Asked:
    """A request: when it comes, in seconds from the start, its prompt and the length of its answer."""

    at: float
    prompt: list[int]
    length: int
    done_at: float = 0.0


class OneAtATime:
    """Answers by `generate`, in a thread, in the order in which they are asked for."""

    num_rows = 1

    def __init__(self, model: Any):
        self.model, self.waiting = model, queue.Queue[Asked | None]()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def submit(self, request: Asked) -> None:
        """Ask; `done_at` of the request is set when it is answered."""
        self.waiting.put(request)

    def finish(self) -> None:
        """Wait for all answers."""
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (request := self.waiting.get()) is not None:
            batch, is_last = [request], False
            while len(batch) < self.num_rows and not self.waiting.empty():
                following = self.waiting.get()
                if following is None:
                    is_last = True
                    break
                batch.append(following)
            answer(self.model, batch)
            for each in batch:
                each.done_at = time.perf_counter()
            if is_last:
                return


class StaticBatches(OneAtATime):
    """Answers together what waits; a batch lasts as long as its longest answer."""

    def __init__(self, model: Any, num_rows: int):
        self.num_rows = num_rows
        super().__init__(model)


class Continuous:
    """Answers by the model's continuous batching."""

    def __init__(self, model: Any, num_rows: int):
        from transformers import ContinuousBatchingConfig

        config = ContinuousBatchingConfig(max_requests_per_batch=num_rows)
        self.manager = model.init_continuous_batching(continuous_batching_config=config)
        self.manager.start()

    def submit(self, request: Asked) -> None:
        """Ask; `done_at` of the request is set when it is answered."""

        def report(output: Any) -> None:
            if output.error is not None:
                raise RuntimeError(output.error)
            request.done_at = time.perf_counter()

        self.manager.add_request(request.prompt, max_new_tokens=request.length, callback=report, **OPTIONS)

    def finish(self) -> None:
        """Wait for all answers."""
        self.manager.stop(block=True)


class Padded(Continuous):
    """Continuous batching in which all rows share passes, whatever their widths."""

    def __init__(self, model: Any, num_rows: int):
        self.widths = mock.patch.object(continuous_batching_llada, "PASS_COLUMNS", 2**40)
        self.widths.start()
        super().__init__(model, num_rows)

    def finish(self) -> None:
        """Wait for all answers."""
        super().finish()
        self.widths.stop()


def answer(model: Any, batch: list[Asked]) -> None:
    """Answer requests together, padded on the left."""
    longest = max(len(request.prompt) for request in batch)
    padded = [[0] * (longest - len(request.prompt)) + request.prompt for request in batch]
    mask = [[0] * (longest - len(request.prompt)) + [1] * len(request.prompt) for request in batch]
    length = max(request.length for request in batch)
    model.generate(torch.tensor(padded), attention_mask=torch.tensor(mask), max_new_tokens=length, **OPTIONS)


def draw_requests(count: int, rate: float, vocab_size: int, seed: int) -> list[Asked]:
    """Requests at a mean of `rate` per second."""
    draws, now, requests = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draws.expovariate(rate)
        prompt = [draws.randrange(10, vocab_size - 10) for _ in range(draws.choice(PROMPT_LENGTHS))]
        requests.append(Asked(now, prompt, draws.choice(ANSWER_LENGTHS)))
    return requests


def measure(way: Any, requests: list[Asked]) -> dict[str, float]:
    """Ask at the given times; requests per second up to the last answer, seconds of waiting, and processor time.

    The processor's seconds say what the way costs even where other programs take part of the machine.
    """
    began, began_cpu = time.perf_counter(), time.process_time()
    for request in requests:
        time.sleep(max(0.0, began + request.at - time.perf_counter()))
        way.submit(request)
    way.finish()
    latencies = sorted(request.done_at - began - request.at for request in requests)
    elapsed = max(request.done_at for request in requests) - began
    return {
        "requests_per_second": len(requests) / elapsed,
        "cpu_s_per_request": (time.process_time() - began_cpu) / len(requests),
        "p50_s": statistics.median(latencies),
        "p95_s": latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
    }


def compare(model: Any, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every way at every concurrency, each result once it is there."""
    vocab_size = model.config.vocab_size
    samples = draw_requests(6, 1.0, vocab_size, seed=1)
    answer(model, samples[:1])
    began = time.perf_counter()
    for request in samples:
        answer(model, [request])
    alone = (time.perf_counter() - began) / len(samples)
    ways: dict[str, Callable[[], Any]] = {
        "one at a time": lambda: OneAtATime(model),
        "static batches": lambda: StaticBatches(model, arguments.batch),
        "continuous": lambda: Continuous(model, arguments.batch),
        "continuous, padded": lambda: Padded(model, arguments.batch),
    }
    for concurrency in arguments.concurrency:
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for number in range(arguments.rounds):
            for name, make in ways.items():
                requests = draw_requests(arguments.requests, LOAD * concurrency / alone, vocab_size, seed=number)
                rounds[name].append(measure(make(), requests))
                print(concurrency, name, *(f"{value:.3g}" for value in rounds[name][-1].values()), flush=True)
        for name, measured in rounds.items():
            medians = {field: statistics.median(one[field] for one in measured) for field in measured[0]}
            throughputs = [one["requests_per_second"] for one in measured]
            yield {"concurrency": concurrency, "way": name, **medians, "rounds_requests_per_second": throughputs}


def time_passes(model: Any, num_rounds: int) -> dict[str, Any]:
    """Time passes of some rows and columns, and bound what batching can give.

    The processor's time of a pass is close to `fixed + columns * each`, whether the columns are of one row or of many.
    A row of w columns alone takes fixed + w * each, and in a pass with 15 others at least fixed / 16 + w * each.
    """
    draws, steps = random.Random(0), 8
    settled = model.prepare_options(None, {**OPTIONS, "max_new_tokens": BLOCK, "steps": steps})
    milliseconds: dict[tuple[int, int], list[float]] = {size: [] for size in PASSES}
    with torch.no_grad(), model.prepacked_weights(None):
        for _ in range(num_rounds + 1):
            for rows, width in PASSES:
                prompts = [[draws.randrange(10, 8000) for _ in range(width - BLOCK)] for _ in range(rows)]
                made = [continuous_batching_llada.make_row(model, 0, prompt, settled) for prompt in prompts]
                began = time.process_time()
                continuous_batching_llada.denoise_group(model, made)
                milliseconds[rows, width].append((time.process_time() - began) / steps * 1e3)
    # The first round warms up. The least time is the one that other programs disturbed least.
    least = {size: min(times[1:]) for size, times in milliseconds.items()}
    columns = torch.tensor([[1.0, rows * width] for rows, width in PASSES], dtype=torch.float64)
    times = torch.tensor(list(least.values()), dtype=torch.float64)
    fitted = torch.linalg.lstsq(columns / times[:, None], torch.ones_like(times)[:, None])  # the least relative errors
    fixed, each = fitted.solution[:, 0].tolist()
    mean = statistics.mean(PROMPT_LENGTHS) + sum(
        start + BLOCK for length in ANSWER_LENGTHS for start in range(0, length, BLOCK)
    ) / sum(length // BLOCK for length in ANSWER_LENGTHS)
    return {
        "cpu_ms": {f"{rows} x {width}": round(time_, 2) for (rows, width), time_ in least.items()},
        "fixed_ms": fixed,
        "column_ms": each,
        "fixed_in_columns": fixed / each,
        "mean_columns": mean,
        "bound_at_16": (fixed + mean * each) / (fixed / 16 + mean * each),
    }


def make_model(name: str) -> Any:
    """The bundled model, or one of 104 million parameters with random weights."""
    if name == "llada-tiny":
        return load_checkpoint(device="cpu", dtype="float32").model
    torch.manual_seed(0)
    sizes = {"d_model": 768, "n_layers": 12, "n_heads": 12, "mlp_hidden_size": 2048, "vocab_size": 25_000}
    ids = {"mask_token_id": 24_999, "eos_token_id": 0, "pad_token_id": 0, "max_sequence_length": 1024}
    return LLaDAModelLM(LLaDAConfig(**sizes, **ids, weight_tying=True, init_fn="normal")).eval()


async def soak(url: str, count: int, num_clients: int) -> dict[str, int]:
    """Send many short requests through HTTP; how many were answered, refused as they should be, and left."""
    address, draws, numbers = urllib.parse.urlsplit(url), random.Random(0), iter(range(count))
    seen = {"answered": 0, "refused": 0, "left": 0, "lost": 0}

    async def send(body: dict[str, Any], leaves: bool) -> str:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            data = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}"
            writer.write(f"{head}\r\n\r\n".encode() + data)
            await writer.drain()
            if leaves:
                await asyncio.sleep(draws.random() * 0.05)
                return "left"
            text = await asyncio.wait_for(reader.read(), 300)
            if b'"finish_reason": "length"' in text or b'"finish_reason":"length"' in text:
                return "answered"
            return "refused" if text.startswith(b"HTTP/1.1 400") and "threshold" in body else "lost"
        finally:
            writer.close()

    async def client() -> None:
        for number in numbers:
            body: dict[str, Any] = {"messages": [{"role": "user", "content": f"Number {number}?"}], "max_tokens": 2}
            kind = draws.random()
            if kind < BAD:
                body["threshold"] = -1
            body |= {
                "stream": draws.random() < 0.5,
                "temperature": 1,
                "seed": number,
                "logit_bias": {"0": -100, "5": -100},
            }
            seen[await send(body, leaves=BAD <= kind < BAD + LEAVING)] += 1

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return seen


def soak_server(checkpoint: Checkpoint, count: int) -> dict[str, Any]:
    """The soak in tenths, with the process's memory after each."""
    from llada_serving import Server, ServerConfig

    megabytes, total = [], {"answered": 0, "refused": 0, "left": 0, "lost": 0}
    with Server(checkpoint, ServerConfig(port=0)) as server:
        for _ in range(10):
            for name, number in asyncio.run(soak(server.url, count // 10, num_clients=16)).items():
                total[name] += number
            megabytes.append(round(resident(), 1))
            print(total, f"{megabytes[-1]} MiB", flush=True)
        time.sleep(1)
        left_over = len(server.jobs)
    return {**total, "left_over": left_over, "memory_MiB": megabytes}


async def flood(url: str, count: int) -> dict[str, Any]:
    """Send requests as fast as they can be sent; how many had which status, and whether each was told why."""
    address, numbers, seen = urllib.parse.urlsplit(url), iter(range(count)), Counter[str]()

    async def client() -> None:
        for number in numbers:
            body = json.dumps({"prompt": f"Number {number}", "max_tokens": 1}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
            try:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                writer.write(f"{head}\r\n\r\n".encode() + body)
                text = await asyncio.wait_for(reader.read(), 300)
                writer.close()
            except (OSError, TimeoutError):
                text = b""
            status = text[9:12].decode()
            is_told = b'"choices"' in text if status == "200" else b"try again later" in text
            seen[status if is_told else f"{status or 'nothing'}, not told"] += 1

    await asyncio.gather(*(client() for _ in range(min(CONNECTIONS, count))))
    return dict(seen)


def flood_server(count: int) -> dict[str, Any]:
    """The flood against a process of its own, which must answer afterwards as before."""
    start = [sys.executable, "-m", "llada_cli", "serve", "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = (process.stdout.readline() if process.stdout else "").split(" at ")[1].partition("/v1")[0]
            asyncio.run(flood(url, 20))
            before, began = resident(process.pid), time.perf_counter()
            seen = asyncio.run(flood(url, count))
            seconds, after = time.perf_counter() - began, resident(process.pid)
            last = asyncio.run(flood(url, 1))
        finally:
            process.send_signal(signal.SIGINT)
    memory = {"memory_MiB_before": round(before, 1), "memory_MiB_after": round(after, 1)}
    return {
        "statuses": seen,
        "seconds": round(seconds, 1),
        **memory,
        "afterwards": last,
        "exit_code": process.returncode,
    }


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=["llada-tiny", "random-104m"], default="llada-tiny")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument(
        "--concurrency", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 16, 64]
    )
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="of all ways")
    parser.add_argument("--passes", action="store_true", help="time passes in place of the comparison")
    parser.add_argument("--flood", type=int, help="requests of a flood, in place of the comparison")
    parser.add_argument("--soak", type=int, help="requests of a soak through HTTP, in place of the comparison")
    parser.add_argument("--json", help="write the results here")
    return parser.parse_args()


def main() -> None:
    """Run, print a table, write JSON."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {"command": command(), "machine": machine(), "settings": vars(arguments)}
    if arguments.soak is not None:
        result["soak"] = soak_server(load_checkpoint(device="cpu", dtype="float32"), arguments.soak)
    elif arguments.flood is not None:
        result["flood"] = flood_server(arguments.flood)
        print(result["flood"])
    elif arguments.passes:
        result["passes"] = time_passes(make_model(arguments.model), arguments.rounds)
        print(result["passes"])
    else:
        result["results"] = []
        for row in compare(make_model(arguments.model), arguments):
            result["results"].append(row)
            write_json(result, arguments.json)  # a run takes minutes
        head = ["concurrency, way", "requests/s", "CPU (s) each", "p50 (s)", "p95 (s)"]
        rows = [
            [
                f"{row['concurrency']}, {row['way']}",
                *(f"{row[name]:.2f}" for name in ("requests_per_second", "cpu_s_per_request", "p50_s", "p95_s")),
            ]
            for row in result["results"]
        ]
        print(table(head, rows))
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
