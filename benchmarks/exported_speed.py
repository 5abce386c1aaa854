"""Time generation with exported models against PyTorch, in the Optimum environment.

The bundled model and one with random weights are exported to a temporary folder, then everything generates in turn.
Usage:

    .venv-optimum/bin/python benchmarks/exported_speed.py                       # the table of docs/conversion.md
    .venv-optimum/bin/python benchmarks/exported_speed.py --models tiny --runs 3 --json result.json
"""

import argparse
import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from generation_speed import make_model, time_in_turn
from report import command, machine, table, write_json
from transformers import PreTrainedTokenizerFast

from llada_checkpoints import BUNDLED_MODEL
from llada_conversion import export_model, load_exported
from llada_core.tokenization import save_tokenizer
from modeling_llada import LLaDAModelLM

# Name -> runtime, weights, and what OpenVINO computes in.
EXPORTS = {
    "ONNX Runtime float32": ("onnx", "float32", "auto"),
    "ONNX Runtime int8": ("onnx", "int8", "auto"),
    "OpenVINO float32": ("openvino", "float32", "float32"),
    "OpenVINO default": ("openvino", "float32", "auto"),
    "OpenVINO int8": ("openvino", "int8", "auto"),
}
CACHES = ("none", "dual")
# 104 million parameters with the embedding and the head.
RANDOM_SIZES = {"d_model": 768, "layers": 11, "heads": 12, "mlp": 2048, "vocab": 8192}


def save_random_model(folder: Path) -> Path:
    """Save a model of `RANDOM_SIZES` with the bundled model's tokenizer."""
    model = make_model(**RANDOM_SIZES)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)
    model.config.mask_token_id = tokenizer.mask_token_id
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def load_all(source: Path, scratch: Path, num_threads: int) -> dict[str, Any]:
    """The model in PyTorch and in every runtime, by name."""
    plain = LLaDAModelLM.from_pretrained(source, dtype=torch.float32).eval()
    models: dict[str, Any] = {"PyTorch float32": plain, "PyTorch bfloat16": copy.deepcopy(plain).to(torch.bfloat16)}
    for name, (runtime, weights, dtype) in EXPORTS.items():
        folder = scratch / f"{runtime}-{weights}"
        if not folder.exists():
            export_model(source, folder, runtime, weights)
        models[name] = load_exported(folder, dtype, **thread_options(runtime, num_threads))
    return models


def thread_options(runtime: str, num_threads: int) -> dict[str, Any]:
    """What makes a runtime use this many threads."""
    if runtime == "openvino":
        return {"ov_config": {"INFERENCE_NUM_THREADS": num_threads}}
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = num_threads
    return {"session_options": options}


def compare(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one model in every runtime with every cache."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = Path(BUNDLED_MODEL) if name == "tiny" else save_random_model(folder / "random")
        models = load_all(source, folder, args.threads)
        prompt = torch.randint(10, 8000, (1, args.prompt), generator=torch.Generator().manual_seed(0))
        options = {"max_new_tokens": args.length, "block_length": args.block, "stop_at_eos": False}
        runs = {
            (key, cache): lambda model=model, cache=cache: model.generate(prompt, cache=cache, **options)
            for key, model in models.items()
            for cache in CACHES
        }
        answers = {key: run()[:, args.prompt :] for key, run in runs.items()}
        seconds: Any = time_in_turn(runs, args.runs, is_cuda=False)  # type: ignore[arg-type]
    return [
        {
            "model": name,
            "runtime": key,
            "cache": cache,
            "median_seconds": round(statistics.median(seconds[key, cache]), 4),
            "equal_tokens": round(float((answers[key, cache] == answers["PyTorch float32", cache]).float().mean()), 4),
        }
        for key, cache in runs
    ]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompt", 32), ("length", 64), ("block", 32), ("runs", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--models", default="tiny,random", help="list of tiny, random")
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def main() -> None:
    """Compare, print a table and write JSON if asked."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    about = machine()
    results = [row for name in args.models.split(",") for row in compare(name, args)]
    print(about)
    print(table(list(results[0]), [[str(value) for value in row.values()] for row in results]))
    write_json({"command": command(), "machine": about, "settings": vars(args), "results": results}, args.json)


if __name__ == "__main__":
    main()
