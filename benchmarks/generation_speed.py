"""Time the options of generation against a plain loop that computes every logit at every step.

All run on the same random weights, in turn. An option that is exact must produce the plain loop's tokens. Usage:

    python benchmarks/generation_speed.py                    # the sizes quoted in docs/decoding.md
    python benchmarks/generation_speed.py --steps 32 --batch 4 --dtype bfloat16 --json result.json
    python benchmarks/generation_speed.py --options none,dual,dual+freeze_prompt,dual+suffix_window --compile
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from report import command, machine, table, write_json
from torch import Tensor

from modeling_llada import LLaDAConfig, LLaDAModelLM

# What a part of an option's name stands for; "+" joins parts.
PARTS: dict[str, dict[str, Any]] = {
    "none": {},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "freeze_prompt": {"freeze_prompt": True},
    "suffix_window": {"suffix_window": 32},
    "compile": {"compile": True},
    "unpacked": {"pack_weights": False},
}
DEFAULT_OPTIONS = "none,prefix,dual"
PLAIN = "plain loop"

# Maps nothing to the tokens and the number of forward passes.
Run = Callable[[], tuple[Tensor, int]]


def plain_generate(
    model: LLaDAModelLM, prompt: Tensor, length: int, steps: int, block_length: int, temperature: float
) -> tuple[Tensor, int]:
    """Low-confidence remasking written down plainly: all logits, float64 probabilities, no early exit.

    Returns:
        Prompt and answer, int64 [batch, prompt + length]; the number of forward passes. Greedy ids equal those of
        `LLaDAModelLM.generate`.

    Source: LLaDA (arXiv:2502.09992), Algorithm 5, with the choices of the released sampler (float64 softmax and
    Gumbel noise over the whole canvas).
    """
    mask = model.config.mask_token_id
    canvas = torch.nn.functional.pad(prompt, (0, length), value=mask)
    num_blocks = length // block_length
    num_passes = 0
    for block in range(num_blocks):
        end = prompt.shape[1] + (block + 1) * block_length
        for step in range(steps // num_blocks):
            is_masked = canvas == mask
            logits = model(canvas).logits
            num_passes += 1
            noisy = logits
            if temperature > 0:
                noise = (-torch.rand_like(logits, dtype=torch.float64).log()) ** temperature
                noisy = logits.double().exp() / noise
            candidates = noisy.argmax(-1)
            probability = logits.double().softmax(-1).gather(-1, candidates[..., None])[..., 0]
            confidence = probability.masked_fill(~is_masked, -torch.inf)
            confidence[:, end:] = -torch.inf
            for row in range(canvas.shape[0]):
                remaining = int(is_masked[row, :end].sum())
                count = -(-remaining // (steps // num_blocks - step))
                chosen = confidence[row].topk(count).indices
                canvas[row, chosen] = candidates[row, chosen]
    return canvas, num_passes


def make_model(
    d_model: int, layers: int, heads: int, mlp: int, vocab: int, device: str = "cpu", dtype: str = "float32"
) -> LLaDAModelLM:
    """A model with random weights, the mask token never the best one: the plain loop would write it."""
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=d_model,
        n_layers=layers,
        n_heads=heads,
        mlp_hidden_size=mlp,
        vocab_size=vocab,
        mask_token_id=vocab - 1,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LLaDAModelLM(config).to(device, getattr(torch, dtype)).eval()
    model.get_output_embeddings().weight.data[config.mask_token_id] = 0.0
    return model


def options_named(name: str) -> dict[str, Any]:
    """The options of `generate` that a name such as `dual+freeze_prompt` stands for.

    Raises:
        ValueError: for an unknown part.
    """
    options: dict[str, Any] = {}
    for part in name.split("+"):
        if part not in PARTS:
            raise ValueError(f"`--options` takes {', '.join(PARTS)}, joined by +, got {part!r}.")
        options |= PARTS[part]
    return options


def is_exact(options: dict[str, Any], temperature: float) -> bool:
    """Whether the tokens must equal the plain loop's; with a temperature the two draw in different ways."""
    return temperature == 0 and "cache" not in options and "suffix_window" not in options


def make_runs(model: LLaDAModelLM, prompt: Tensor, args: argparse.Namespace, names: list[str]) -> dict[str, Run]:
    """What is to be timed, by name, the plain loop first."""
    common = {"steps": args.steps, "block_length": args.block, "temperature": args.temperature}

    def run_generate(options: dict[str, Any]) -> tuple[Tensor, int]:
        output = model.generate(
            prompt,
            max_new_tokens=args.length,
            stop_at_eos=False,
            return_dict_in_generate=True,
            **common,
            **options,
        )
        return output.sequences, int(output.num_forward_passes.max())

    runs: dict[str, Run] = {PLAIN: lambda: plain_generate(model, prompt, args.length, **common)}
    for name in names:
        runs[name] = functools.partial(run_generate, options_named(name))
    return runs


def time_in_turn(runs: dict[str, Run], num_rounds: int, is_cuda: bool) -> dict[str, list[float]]:
    """Seconds of every run in every round: each round runs all of them once, so that a slow minute hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        for name, run in runs.items():
            if is_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if is_cuda:
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything once untimed, for the tokens and the compilation, then `--runs` timed rounds."""
    about = machine()
    model = make_model(args.d_model, args.layers, args.heads, args.mlp, args.vocab, args.device, args.dtype)
    prompt = torch.randint(1, args.vocab - 2, (args.batch, args.prompt), device=args.device)
    names = args.options.split(",")
    if args.compile:
        names += [f"{name}+compile" for name in names]
    runs = make_runs(model, prompt, args, names)
    outputs = {name: run() for name, run in runs.items()}
    seconds = time_in_turn(runs, args.runs, args.device == "cuda")
    reference = statistics.median(seconds[PLAIN])
    results = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        tokens, num_passes = outputs[name]
        exact = name == PLAIN or is_exact(options_named(name), args.temperature)
        results[name] = {
            "median_seconds": round(median, 4),
            "min_seconds": round(min(times), 4),
            "max_seconds": round(max(times), 4),
            "tokens_per_second": round(args.batch * args.length / median, 1),
            "times_faster": round(reference / median, 3),
            "forward_passes": num_passes,
            "equal_tokens": bool(torch.equal(tokens, outputs[PLAIN][0])) if exact else None,
        }
    return {"command": command(), "machine": about, "settings": vars(args), "results": results}


def show(results: dict[str, dict[str, Any]]) -> str:
    """The results as a table; the last column is empty where the tokens need not be equal."""
    head = ["", "median s", "min..max", "tokens/s", "times faster", "passes", "equal tokens"]
    equal = {True: "yes", False: "NO", None: ""}
    rows = [
        [
            name,
            f"{row['median_seconds']:.3f}",
            f"{row['min_seconds']:.3f}..{row['max_seconds']:.3f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['times_faster']:.2f}",
            str(row["forward_passes"]),
            equal[row["equal_tokens"]],
        ]
        for name, row in results.items()
    ]
    return table(head, rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the plain loop wants whole blocks and whole steps in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompt", 128), ("length", 128), ("steps", 128), ("block", 32), ("batch", 1), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("d-model", 512), ("layers", 8), ("heads", 8), ("mlp", 1536), ("vocab", 32768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--options", default=DEFAULT_OPTIONS, help=f"list of {', '.join(PARTS)}, joined by +")
    parser.add_argument("--compile", action="store_true", help="run every option compiled too")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="also write the result to this file")
    args = parser.parse_args()
    if args.length % args.block or args.steps % (args.length // args.block):
        parser.error("`--length` must be a multiple of `--block`, and `--steps` of the number of blocks.")
    try:
        for name in args.options.split(","):
            options_named(name)
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    """Compare, print a table and write JSON if asked."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    result = compare(args)
    print(result["machine"])
    print(show(result["results"]))
    write_json(result, args.json)


if __name__ == "__main__":
    main()
