"""Measure time and peak memory of a step of preference training against the number of noise levels.

One way keeps the activations of all levels until the backward pass, the other scores first and runs each level again
for its gradient (`recompute_levels`, the default). Each case runs in a process of its own. Usage:

    python benchmarks/preference_memory.py                      # 1, 8 and 32 levels, minutes on two cores
    python benchmarks/preference_memory.py --levels 1,4 --json result.json
"""

import argparse
import contextlib
import copy
import json
import time
from typing import Any

import torch
import torch.nn.functional as F
from generation_speed import make_model
from process_memory import measure_in_process, peak, resident
from report import command, machine, table, write_json

from llada_training.preference import ElboHead

WAYS = {"all activations": False, "level by level": True}
BETA = 0.2
# Bytes: smaller than a layer's activations, so that freed ones do not count.
THRESHOLD = 2**15


def step(model: Any, reference: Any, ids: torch.Tensor, num_prompt: int) -> torch.Tensor:
    """Gradient of the sigmoid loss for pairs of answers, chosen ones first; returns the loss."""
    labels = ids.clone()
    labels[:, :num_prompt] = -100
    numbers = torch.arange(len(ids))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "noise_key": torch.stack([torch.zeros_like(numbers), torch.zeros_like(numbers), numbers], dim=-1),
        "fused_lm_head": True,
    }
    with torch.no_grad():
        reference_values = reference(**inputs).log_probs.sum(-1)
    chosen, rejected = (model(**inputs).log_probs.sum(-1) - reference_values).chunk(2)
    loss = -F.logsigmoid(BETA * (chosen - rejected)).mean()
    loss.backward()
    return loss.detach()


def measure(args: argparse.Namespace, way: str, num_levels: int) -> dict[str, Any]:
    """Memory of this process before one step, its peak after it, its seconds and the norm of its gradient."""
    torch.set_num_threads(args.threads)
    model = make_model(args.d_model, args.layers, args.heads, args.mlp, args.vocab).train()
    reference = copy.deepcopy(model).requires_grad_(False)
    for each in (model, reference):
        ElboHead(num_levels, False, WAYS[way], contextlib.nullcontext).install(each)
    ids = torch.randint(1, args.vocab - 2, (2 * args.pairs, args.tokens), generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before, start = resident(), time.perf_counter()
    step(model, reference, ids, args.tokens // 2)
    seconds = time.perf_counter() - start
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm().item()
    return {
        "way": way, "levels": num_levels, "before_mib": before, "peak_mib": peak(), "seconds": seconds,
        "gradient_norm": norm,
    }  # fmt: skip


def show(results: list[dict[str, Any]]) -> str:
    """The results as a table."""
    rows = [[row["way"], str(row["levels"]), f"{row['added_mib']:.0f}", f"{row['seconds']:.1f}"] for row in results]
    return table(["", "levels", "added MiB", "seconds"], rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", default="1,8,32", help="noise levels; a list")
    for name, default in (("pairs", 2), ("tokens", 128), ("vocab", 4096), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("d-model", 128), ("layers", 4), ("heads", 4), ("mlp", 352)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.levels = [int(number) for number in args.levels.split(",")]
    return args


def main() -> None:
    """Measure every case, print the table, write the JSON."""
    args = parse_arguments()
    if args.case is not None:
        print(json.dumps(measure(args, *json.loads(args.case))))
        return
    about, hint = machine(), "fewer `--pairs` or `--tokens`"
    results = [measure_in_process([way, levels], hint, THRESHOLD) for way in WAYS for levels in args.levels]
    print(about)
    print(show(results))
    write_json({"command": command(), "machine": about, "settings": vars(args), "results": results}, args.json)


if __name__ == "__main__":
    main()
