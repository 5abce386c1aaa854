"""Measure time and peak memory of the head and the loss in training: logits of all positions against masked ones only.

Both ways compute the same loss and the same gradients, forward and backward, in float32; the logits of all positions
are cut down to the masked ones before the loss. Only the head and the last norm are trained, and a single block
precedes them, so that little else is measured. Usage:

    python benchmarks/head_and_loss.py                     # vocabulary 126464, 8 x 256 positions: some minutes
    python benchmarks/head_and_loss.py --vocab 32000 --runs 5 --json result.json
"""

import argparse
import json
import statistics
import time
from operator import truediv
from typing import Any

import torch
from generation_speed import make_model
from process_memory import MIB, measure_in_process, peak, resident
from report import command, machine, table, write_json
from torch import Tensor

from llada_core.diffusion import NoisyBatch
from llada_training import draw_noise, pretraining_loss, score_masked
from modeling_llada import LLaDAModelLM

ALL, MASKED = "all positions", "masked ones"
MODES = (ALL, MASKED)


def make_case(args: argparse.Namespace) -> tuple[LLaDAModelLM, Tensor]:
    """The model, whose body takes no gradient, and clean ids; int64 [batch, length]."""
    torch.set_num_threads(args.threads)
    model = make_model(args.d_model, 1, 2, args.d_model // 4, args.vocab).train().requires_grad_(False)
    model.get_output_embeddings().requires_grad_(True)
    model.model.transformer.ln_f.requires_grad_(True)
    return model, torch.randint(1, args.vocab - 2, (args.batch, args.length))


def mask_share(model: LLaDAModelLM, ids: Tensor, share: float) -> NoisyBatch:
    """The same share of every row masked."""
    numbers, levels = torch.arange(len(ids)), torch.full((len(ids),), share)
    return draw_noise(ids, ids, numbers, levels, model.config.mask_token_id, seed=0, step=0, exact_count=True)


def run(model: LLaDAModelLM, ids: Tensor, share: float, mode: str) -> Tensor:
    """One training step without the update; the loss."""
    model.zero_grad()
    noisy = mask_share(model, ids, share)
    if mode == ALL:
        logits = model(noisy.input_ids).logits[noisy.is_masked]
    else:
        logits = model(noisy.input_ids, logits_positions=noisy.is_masked).logits
    token_losses = score_masked(logits, ids, noisy.is_masked).token_losses
    del logits
    loss = pretraining_loss(token_losses, noisy, ids.numel())
    loss.backward()
    return loss.detach()


def measure_memory(args: argparse.Namespace, mode: str, share: float) -> dict[str, Any]:
    """Memory of this process before one step, and its peak after it."""
    model, ids = make_case(args)
    before = resident()
    loss = run(model, ids, share, mode)
    return {"mode": mode, "share": share, "loss": loss.item(), "before_mib": before, "peak_mib": peak()}


def measure_times(args: argparse.Namespace, cases: list[tuple[str, float]]) -> list[list[float]]:
    """Seconds of every case, in turn, so that a change in the machine's load meets all of them."""
    model, ids = make_case(args)
    seconds: list[list[float]] = [[] for _ in cases]
    for number in range(args.runs + 1):
        for index, (mode, share) in enumerate(cases):
            start = time.perf_counter()
            run(model, ids, share, mode)
            if number > 0:  # the first round warms up
                seconds[index].append(time.perf_counter() - start)
    return seconds


def compare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times less time and memory each row takes than the logits of all positions at the same share."""
    plain = {row["share"]: row for row in results if row["mode"] == ALL}
    return [
        row
        | {
            # Of each round, whose runs are neighbours in time, then the median.
            "times_faster": statistics.median(map(truediv, plain[row["share"]]["seconds"], row["seconds"])),
            "times_less_memory": plain[row["share"]]["added_mib"] / row["added_mib"],
        }
        for row in results
    ]


def show(results: list[dict[str, Any]]) -> str:
    """The results as a table."""
    head = ["logits of", "masked", "logits MiB", "added MiB", "less memory", "seconds", "faster"]
    rows = [
        [
            row["mode"],
            f"{row['share']:g}",
            f"{row['logits_mib']:.0f}",
            f"{row['added_mib']:.0f}",
            f"{row['times_less_memory']:.2f} x",
            f"{row['median_seconds']:.2f}",
            f"{row['times_faster']:.2f} x",
        ]
        for row in results
    ]
    return table(head, rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="1,0.5,0.25", help="masked shares of the positions, in (0, 1]; a list")
    for name, default in (("batch", 8), ("length", 256), ("d-model", 256), ("vocab", 126464)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("runs", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.shares = [float(share) for share in args.shares.split(",")]
    if not all(0 < share <= 1 for share in args.shares):
        parser.error(f"`--shares` must lie in (0, 1], got {args.shares}.")
    return args


def main() -> None:
    """Measure memory in processes of their own, then times in turn; print a table and write JSON if asked."""
    args = parse_arguments()
    if args.case is not None:
        print(json.dumps(measure_memory(args, *json.loads(args.case))))
        return
    about = machine()
    cases = [(mode, share) for share in args.shares for mode in MODES]
    results = [measure_in_process(list(case), "a smaller `--batch` or `--vocab`") for case in cases]
    for row, seconds in zip(results, measure_times(args, cases)):
        num_scored = args.batch * args.length * (row["share"] if row["mode"] == MASKED else 1.0)
        row["logits_mib"] = num_scored * args.vocab * 4 / MIB
        row |= {"median_seconds": statistics.median(seconds), "seconds": seconds}
    results = compare(results)
    print(about)
    print(show(results))
    write_json({"command": command(), "machine": about, "settings": vars(args), "results": results}, args.json)


if __name__ == "__main__":
    main()
