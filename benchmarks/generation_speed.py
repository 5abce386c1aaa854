"""Time generation against a plain loop that computes every logit at every step, as the released sampler does.

Both run on the same random weights, in turn, and must produce the same tokens. Usage:

    python benchmarks/generation_speed.py                    # the sizes quoted in the documentation
    python benchmarks/generation_speed.py --steps 32 --batch 4 --dtype bfloat16 --json result.json
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time

import torch
import transformers
from torch import Tensor

from modeling_llada import LLaDAConfig, LLaDAModelLM


def plain_generate(
    model: LLaDAModelLM, prompt: Tensor, length: int, steps: int, block_length: int, temperature: float
) -> Tensor:
    """Low-confidence remasking written down plainly: all logits, float64 probabilities, no early exit.

    Source: LLaDA (arXiv:2502.09992), Algorithm 5, with the choices of the released sampler (float64 softmax and
    Gumbel noise over the whole canvas). Greedy ids equal those of `LLaDAModelLM.generate`.
    """
    mask = model.config.mask_token_id
    canvas = torch.nn.functional.pad(prompt, (0, length), value=mask)
    num_blocks = length // block_length
    for block in range(num_blocks):
        end = prompt.shape[1] + (block + 1) * block_length
        for step in range(steps // num_blocks):
            is_masked = canvas == mask
            logits = model(canvas).logits
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
    return canvas


def make_model(args: argparse.Namespace) -> LLaDAModelLM:
    """A model of the asked size with random weights, the mask token never the best one."""
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=args.d_model,
        n_layers=args.layers,
        n_heads=args.heads,
        mlp_hidden_size=args.mlp,
        vocab_size=args.vocab,
        mask_token_id=args.vocab - 1,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LLaDAModelLM(config).to(args.device, getattr(torch, args.dtype)).eval()


@torch.no_grad()
def compare(args: argparse.Namespace) -> dict:
    """Run every candidate in turn, `--runs` times, after one untimed run each."""
    model = make_model(args)
    prompt = torch.randint(1, args.vocab - 2, (args.batch, args.prompt), device=args.device)
    common = {"steps": args.steps, "block_length": args.block, "temperature": args.temperature}
    candidates = {
        "plain loop": lambda: plain_generate(model, prompt, args.length, **common),
        "generate": lambda: model.generate(prompt, max_new_tokens=args.length, stop_at_eos=False, **common),
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    outputs = {name: run() for name, run in candidates.items()}
    for _ in range(args.runs):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(seconds["plain loop"])
    rows = {
        name: {
            "median_seconds": round(statistics.median(times), 4),
            "min_seconds": round(min(times), 4),
            "max_seconds": round(max(times), 4),
            "tokens_per_second": round(args.batch * args.length / statistics.median(times), 1),
            "times_faster": round(reference / statistics.median(times), 3),
            "equal_tokens": bool(torch.equal(outputs[name], outputs["plain loop"])),
        }
        for name, times in seconds.items()
    }
    return {"settings": vars(args), "machine": machine(), "results": rows}


def machine() -> dict:
    """What a reader needs to place the numbers."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Parse the sizes, compare, print a table and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name, default in (("prompt", 128), ("length", 128), ("steps", 128), ("block", 32), ("batch", 1), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("d-model", 512), ("layers", 8), ("heads", 8), ("mlp", 1536), ("vocab", 32768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="also write the result to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = compare(args)
    print(json.dumps(result["machine"]))
    print(f"{'':<12}{'median s':>10}{'min..max':>18}{'tokens/s':>10}{'faster':>8}  equal tokens")
    for name, row in result["results"].items():
        spread = f"{row['min_seconds']:.2f}..{row['max_seconds']:.2f}"
        print(
            f"{name:<12}{row['median_seconds']:>10.3f}{spread:>18}{row['tokens_per_second']:>10.1f}"
            f"{row['times_faster']:>7.2f}x  {row['equal_tokens']}"
        )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
