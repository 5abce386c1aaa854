"""Time a layer of LLaDA-MoE with each way that transformers has to run its experts, and compare their results.

The ways take turns on the same random layer and tokens, so that one run compares them. Needs transformers 5. Usage:

    python benchmarks/experts_speed.py                         # a quarter of the released width, a minute on two cores
    python benchmarks/experts_speed.py --width 2048 --hidden 1024 --tokens 1024 --dtype bfloat16 --json result.json
"""

import argparse
import statistics
import time
from typing import Any

import torch
from report import command, machine, table, write_json
from torch import Tensor

from modeling_llada import LLaDAMoEConfig
from modeling_llada.modeling_llada_moe import LLaDAMoELayer

WAYS = ("eager", "grouped_mm", "batched_mm")
NUM_EXPERTS, NUM_CHOSEN = 64, 8  # as released


def make_layer(args: argparse.Namespace) -> LLaDAMoELayer:
    """A layer with random weights."""
    config = LLaDAMoEConfig(
        hidden_size=args.width,
        expert_intermediate_size=args.hidden,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=NUM_CHOSEN,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    torch.manual_seed(0)
    layer = LLaDAMoELayer(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return layer.to(getattr(torch, args.dtype))


def run(layer: LLaDAMoELayer, tokens: Tensor, way: str, trains: bool) -> tuple[Tensor, float]:
    """The output, or with `trains` the gradient of the experts' last matrices, and the seconds it took."""
    layer.experts.config._experts_implementation = way
    layer.zero_grad()
    start = time.perf_counter()
    with torch.set_grad_enabled(trains):
        output = layer(tokens)
        if trains:
            output.float().square().sum().backward()
    seconds = time.perf_counter() - start
    return (layer.experts.down_proj.grad if trains else output).clone(), seconds


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of each way, and how far its result is from that of one expert after the other."""
    layer = make_layer(args)
    tokens = torch.randn(1, args.tokens, args.width, dtype=getattr(torch, args.dtype))
    rows = []
    for trains in (False, True):
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        results = {way: run(layer, tokens, way, trains)[0] for way in WAYS}
        for _ in range(args.runs):
            for way in WAYS:
                seconds[way].append(run(layer, tokens, way, trains)[1])
        scale = results["eager"].abs().max()
        rows += [
            {
                "pass": "forward and backward" if trains else "forward",
                "experts": way,
                "ms": round(1000 * statistics.median(seconds[way]), 1),
                "largest_difference": float(f"{(results[way] - results['eager']).abs().max() / scale:.1e}"),
            }
            for way in WAYS
        ]
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 512), ("hidden", 256), ("tokens", 256), ("runs", 9), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", help="also write the result to this file")
    args = parser.parse_args()
    if min(args.width, args.hidden, args.tokens, args.runs, args.threads) < 1 or args.width % 16:
        parser.error("sizes must be at least 1, and `--width` a multiple of 16.")
    torch.set_num_threads(args.threads)
    place = machine()
    rows = measure(args)
    cells = [[row["pass"], row["experts"], f"{row['ms']}", f"{row['largest_difference']:.0e}"] for row in rows]
    print(f"{command()}\n{place}\n")
    print(table(["pass", "experts", "ms", "largest difference"], cells))
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    write_json({"command": command(), "machine": place, "settings": settings, "results": rows}, args.json)


if __name__ == "__main__":
    main()
