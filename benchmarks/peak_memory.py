"""Measure the peak memory of generation against a plain loop that keeps the logits of every position.

Each case runs in a process of its own, whose peak resident memory the operating system reports. The model is narrow
and the vocabulary large, so that logits dominate, as they do beside a quantised or sharded large model. Usage:

    python benchmarks/peak_memory.py                       # vocabulary 126464, batch 4, up to 512 tokens
    python benchmarks/peak_memory.py --tokens 128,256 --batch 2 --json result.json
"""

import argparse
import json
from typing import Any

import torch
from generation_speed import make_model, plain_generate
from process_memory import MIB, measure_in_process, peak, resident
from report import command, machine, table, write_json

PLAIN = "plain loop"
MODES = (PLAIN, "none", "dual")
# Two blocks of one pass each: every further pass needs as much or less.
NUM_BLOCKS = 2


def logits_sizes(batch: int, tokens: int, block: int, vocab: int) -> dict[str, float]:
    """Float32 logits of all positions and of the largest number of scored ones, in MiB."""
    return {"all_logits_mib": batch * tokens * vocab * 4 / MIB, "scored_logits_mib": batch * block * vocab * 4 / MIB}


@torch.no_grad()
def measure(args: argparse.Namespace, mode: str, tokens: int, block: int) -> dict[str, Any]:
    """Memory of this process before one generation, and its peak after it (or while the model was built)."""
    torch.set_num_threads(args.threads)
    model = make_model(args.d_model, args.layers, args.heads, args.mlp, args.vocab)
    length = NUM_BLOCKS * block
    prompt = torch.randint(1, args.vocab - 2, (args.batch, tokens - length))
    common = {"steps": NUM_BLOCKS, "block_length": block, "temperature": args.temperature}

    def run(prompt: torch.Tensor) -> None:
        if mode == PLAIN:
            plain_generate(model, prompt, length, **common)
        else:
            model.generate(prompt, max_new_tokens=length, stop_at_eos=False, cache=mode, **common)

    before = resident()
    run(prompt)
    sizes = logits_sizes(args.batch, tokens, block, args.vocab)
    return {"mode": mode, "tokens": tokens, "block": block, "before_mib": before, "peak_mib": peak(), **sizes}


def make_cases(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Every mode at every length, then once more the longest with half of the block."""
    cases = [(mode, tokens, args.block) for mode in MODES for tokens in args.tokens]
    return [*cases, *((mode, args.tokens[-1], args.block // 2) for mode in MODES if mode != PLAIN)]


def show(results: list[dict[str, Any]]) -> str:
    """The results as a table, in MiB."""
    head = ["", "tokens", "block", "all logits", "scored logits", "before", "peak", "added", "added / scored"]
    columns = ("all_logits_mib", "scored_logits_mib", "before_mib", "peak_mib", "added_mib")
    rows = [
        [
            row["mode"] if row["mode"] == PLAIN else f'cache="{row["mode"]}"',
            str(row["tokens"]),
            str(row["block"]),
            *(f"{row[column]:.0f}" for column in columns),
            f"{row['added_per_scored_logits']:.1f}",
        ]
        for row in results
    ]
    return table(head, rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="256,512", help="prompt and answer, in tokens per row; a list")
    for name, default in (("batch", 4), ("block", 32), ("vocab", 126464), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("d-model", 64), ("layers", 2), ("heads", 2), ("mlp", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.tokens = [int(tokens) for tokens in args.tokens.split(",")]
    if min(args.tokens) <= NUM_BLOCKS * args.block:
        parser.error(f"`--tokens` must exceed {NUM_BLOCKS} blocks ({NUM_BLOCKS * args.block}), got {min(args.tokens)}.")
    return args


def main() -> None:
    """Measure every case, print a table in MiB and write JSON if asked."""
    args = parse_arguments()
    if args.case is not None:
        print(json.dumps(measure(args, *json.loads(args.case))))
        return
    about = machine()
    results = [measure_in_process(list(case), "fewer `--tokens`") for case in make_cases(args)]
    for row in results:
        row["added_per_scored_logits"] = row["added_mib"] / row["scored_logits_mib"]
    print(about)
    print(show(results))
    write_json({"command": command(), "machine": about, "settings": vars(args), "results": results}, args.json)


if __name__ == "__main__":
    main()
