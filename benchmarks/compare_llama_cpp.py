"""Compare the bundled model in llama.cpp with PyTorch: tokens, logits, greedy decoding, speed.

The model is exported to GGUF files in a temporary folder. llama.cpp loads each of them, takes non-causal attention from
the file, and must split texts into the same tokens, compute the same logits for a chat prompt with masks behind it, and
find the same answer when a plain loop unmasks the most confident token first. Usage:

    pip install llama-cpp-python        # builds llama.cpp: needs a C++ compiler and CMake
    python benchmarks/compare_llama_cpp.py                                  # the table of docs/conversion.md
    python benchmarks/compare_llama_cpp.py --weights f32 --length 32 --threads 2 --json result.json
"""

import argparse
import ctypes
import logging
import statistics
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from generation_speed import plain_generate, time_in_turn
from quality_tasks import read_lines
from report import command, machine, table, write_json
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llada_checkpoints import BUNDLED_MODEL
from llada_conversion import export_gguf
from modeling_llada import LLaDAModelLM

QUESTION = "What is the capital of France?"
# Beside the held-out texts, what a splitting rule may get wrong.
PROBES = [
    "the cat's toys, don't",
    "1234 and  5 or\n 6",
    "a\u00a0b \u3000 c\t\td  ",
    "<|mdm_mask|> in a text",
    "naïve 東京 🐈",
]


class LlamaCppModel:
    """A GGUF file in llama.cpp, called like a LLaDA of one row without padding: `model(ids).logits`.

    Args:
        path: the file.
        config: the LLaDA's config.
        num_threads: threads of llama.cpp.

    Raises:
        ValueError: if llama.cpp cannot load the file or compute.
    """

    def __init__(self, path: Path, config: Any, num_threads: int):
        self.api = import_llama_cpp()
        self.config = config
        self.model = self.api.llama_model_load_from_file(str(path).encode(), self.api.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp cannot load `{path}`; update llama-cpp-python.")
        options = self.api.llama_context_default_params()
        # Attention in both directions takes the whole text at once.
        options.n_ctx = options.n_batch = options.n_ubatch = config.max_sequence_length
        options.n_threads = options.n_threads_batch = num_threads
        # The fused attention rounds keys and values to 16 bits.
        options.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = self.api.llama_init_from_model(self.model, options)

    def __call__(self, input_ids: Tensor) -> Any:
        """Logits of every position; float32 [1, length, embedding_size], for int64 [1, length]."""
        (ids,) = input_ids.tolist()
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for index, token_id in enumerate(ids):
            batch.token[index], batch.pos[index], batch.logits[index] = token_id, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            raise ValueError(f"`llama_decode` failed with status {status} for {len(ids)} tokens; pass fewer.")
        numbers = self.api.llama_get_logits(self.context)
        size = len(ids) * self.config.embedding_size
        flat = ctypes.cast(numbers, ctypes.POINTER(ctypes.c_float * size)).contents
        return SimpleNamespace(logits=torch.frombuffer(flat, dtype=torch.float32).clone().reshape(1, len(ids), -1))

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text as llama.cpp splits it, with special tokens recognised and added."""
        data = text.encode()
        ids = (self.api.llama_token * (len(data) + 8))()
        vocabulary = self.api.llama_model_get_vocab(self.model)
        count = self.api.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, True)
        return list(ids[:count])

    def close(self) -> None:
        """Free the memory of llama.cpp."""
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def import_llama_cpp() -> ModuleType:
    """llama-cpp-python, silenced.

    Raises:
        SystemExit: if it is not installed.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise SystemExit(
            "llama-cpp-python is not installed: pip install llama-cpp-python (it builds llama.cpp, which needs a C++ "
            "compiler and CMake, and takes minutes to an hour)."
        ) from error
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    llama_cpp.llama_backend_init()
    return llama_cpp


def chat_prompt(tokenizer: Any) -> Tensor:
    """The ids of a question in the chat template; int64 [1, length]."""
    messages = [{"role": "user", "content": QUESTION}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return encoded["input_ids"]


def compare_logits(model: Any, other: Any, prompt: Tensor, num_masks: int) -> dict[str, float]:
    """How far `other`'s logits are from `model`'s for the prompt with masks behind it.

    Returns:
        The largest difference of a logit, the largest logit, and the share of positions with the same best token.
    """
    canvas = torch.nn.functional.pad(prompt, (0, num_masks), value=model.config.mask_token_id)
    with torch.inference_mode():
        expected, got = model(canvas).logits.float(), other(canvas).logits.float()
    return {
        "largest_difference": float(f"{(expected - got).abs().max():.2g}"),
        "largest_logit": round(float(expected.abs().max()), 2),
        "same_best_token": round(float((expected.argmax(-1) == got.argmax(-1)).float().mean()), 4),
    }


def unmask_greedily(model: Any, prompt: Tensor, length: int) -> Tensor:
    """Answer in one block, the most confident token first; prompt and answer, int64 [1, prompt + length]."""
    return plain_generate(model, prompt, length, steps=length, block_length=length, temperature=0.0)[0]


def generate(model: LLaDAModelLM, prompt: Tensor, length: int) -> Tensor:
    """The same by `LLaDAModelLM.generate`."""
    return model.generate(prompt, max_new_tokens=length, block_length=length, temperature=0.0, stop_at_eos=False)


def time_passes(model: LLaDAModelLM, other: Any, prompt: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of a pass over prompt and answer: all logits in both, and as `generate` makes it."""
    canvas = torch.nn.functional.pad(prompt, (0, args.length), value=model.config.mask_token_id)
    runs: Any = {
        "llama_cpp_ms": lambda: other(canvas),
        "pytorch_ms": lambda: model(canvas),
        "generate_ms": lambda: generate(model, prompt, args.length),
    }
    with torch.inference_mode():
        for run in runs.values():
            run()
        seconds = time_in_turn(runs, args.runs, is_cuda=False)
    seconds["generate_ms"] = [one / args.length for one in seconds["generate_ms"]]
    return {name: round(1000 * statistics.median(times), 2) for name, times in seconds.items()}


def compare_file(weights: str, model: LLaDAModelLM, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Export with these weights and compare everything."""
    prompt = chat_prompt(tokenizer)
    texts = [*PROBES, *(line["text"] for line in read_lines("heldout.jsonl", args.texts))]
    with tempfile.TemporaryDirectory() as folder:
        path = export_gguf(BUNDLED_MODEL, Path(folder) / "model.gguf", weights=weights)
        other = LlamaCppModel(path, model.config, args.threads)
        answer, expected = (
            find(one, prompt, args.length) for find, one in ((unmask_greedily, other), (generate, model))
        )
        row = {
            "weights": weights,
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "texts": len(texts),
            "same_tokens": sum(other.tokenize(text) == tokenizer(text)["input_ids"] for text in texts),
            **compare_logits(model, other, prompt, args.masks),
            "same_answer": torch.equal(answer, expected),
            **time_passes(model, other, prompt, args),
        }
        other.close()
    return row


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="f32,f16,q8_0", help="list of f32, f16, q8_0")
    for name, default in (("masks", 10), ("length", 32), ("texts", 96), ("runs", 15), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def main() -> None:
    """Compare, print a table and write JSON if asked."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    about, version = machine(), import_llama_cpp().__version__
    model = LLaDAModelLM.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_MODEL)
    results = [compare_file(weights, model, tokenizer, args) for weights in args.weights.split(",")]
    print(about, f"llama-cpp-python {version}")
    print(table(list(results[0]), [[str(value) for value in row.values()] for row in results]))
    result = {"command": command(), "machine": about, "llama_cpp_python": version, "settings": vars(args)}
    write_json({**result, "results": results}, args.json)


if __name__ == "__main__":
    main()
