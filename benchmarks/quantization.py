"""Measure what 8 and 4 bits cost: quantised models against the same model in float32.

Held-out texts with half of their tokens masked give the divergence of the predictions, the texts themselves the bound
on their likelihood, and their beginnings prompts for greedy answers. Usage:

    pip install ".[quantization]"
    python benchmarks/quantization.py                                       # the table of docs/training.md
    python benchmarks/quantization.py --model DIR --texts 8 --length 16 --schemes bfloat16,nf4 --json result.json
"""

import argparse
import importlib.util
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quality_tasks import mask_half, read_lines
from report import command, machine, table, write_json
from torch import Tensor
from transformers import BitsAndBytesConfig, TorchAoConfig

from llada_checkpoints import BUNDLED_MODEL
from llada_core.loading import load_tokenizer
from llada_evaluation.likelihood import LikelihoodOptions, estimate_log_likelihoods
from modeling_llada import LLaDAModelLM

# Tokens of a text that are read, and those that become a prompt.
TEXT_LENGTH, PROMPT_LENGTH = 64, 16


class Scheme(NamedTuple):
    """A way to hold the weights: data type of the rest, package, and what makes the `quantization_config`."""

    dtype: torch.dtype
    package: str | None = None
    make_config: Callable[[], Any] = lambda: None


def torchao_config(name: str) -> Any:
    """One of torchao's configs, which need the package already when they are made."""
    from torchao import quantization

    return TorchAoConfig(getattr(quantization, name)())


def nf4_config() -> BitsAndBytesConfig:
    """4 bits as `llada train sft --load_in_4bit true` loads them."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


SCHEMES = {
    "float32": Scheme(torch.float32),
    "bfloat16": Scheme(torch.bfloat16),
    "int8-weights": Scheme(torch.float32, "torchao", lambda: torchao_config("Int8WeightOnlyConfig")),
    "int8-dynamic": Scheme(torch.float32, "torchao", lambda: torchao_config("Int8DynamicActivationInt8WeightConfig")),
    "llm-int8": Scheme(torch.float32, "bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "nf4": Scheme(torch.float32, "bitsandbytes", nf4_config),
}


def check_scheme(name: str) -> None:
    """Refuse an unknown scheme, and one whose package is not installed."""
    if name not in SCHEMES:
        raise SystemExit(f"`--schemes` must be a list of {', '.join(SCHEMES)}, got {name!r}.")
    scheme = SCHEMES[name]
    if scheme.package is not None and importlib.util.find_spec(scheme.package) is None:
        raise SystemExit(
            f"`{name}` needs {scheme.package}: pip install {scheme.package}, or leave it out of --schemes."
        )


def load(source: str, name: str) -> LLaDAModelLM:
    """Load a checkpoint by a scheme."""
    scheme = SCHEMES[name]
    options = {} if scheme.package is None else {"quantization_config": scheme.make_config()}
    return LLaDAModelLM.from_pretrained(source, dtype=scheme.dtype, **options).eval()


class Measures:
    """What is measured of every model, over the same texts and masks.

    Args:
        source: folder of the checkpoint, for its tokenizer.
        num_texts: held-out texts to take.
        length: tokens of a greedy answer.
    """

    def __init__(self, source: str, num_texts: int, length: int):
        tokenizer = load_tokenizer(source)
        self.length = length
        self.texts = [
            tokenizer(line["text"])["input_ids"][:TEXT_LENGTH] for line in read_lines("heldout.jsonl", num_texts)
        ]
        batch = tokenizer.pad({"input_ids": self.texts}, return_tensors="pt")
        self.attention_mask = batch["attention_mask"]
        self.is_masked = mask_half(self.attention_mask.bool(), seed=0)
        self.noisy = batch["input_ids"].masked_fill(self.is_masked, tokenizer.mask_token_id)
        prompts = [ids[:PROMPT_LENGTH] for ids in self.texts]
        self.prompts = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left")

    @torch.inference_mode()
    def log_probabilities(self, model: Any) -> Tensor:
        """What the model predicts for the masked tokens; float32 [masked, vocabulary]."""
        output = model(self.noisy, attention_mask=self.attention_mask, logits_positions=self.is_masked)
        return output.logits.float().log_softmax(-1)

    def bound(self, model: Any) -> float:
        """Upper bound on −log p of the texts, in nats per token."""
        options = LikelihoodOptions(num_samples=4)
        estimates = estimate_log_likelihoods(model, [([], ids) for ids in self.texts], options)
        return -sum(estimate.log_likelihood for estimate in estimates) / sum(map(len, self.texts))

    def answers(self, model: Any) -> Tensor:
        """Greedy answers to the prompts, int64 [texts, length]."""
        ids = model.generate(**self.prompts, max_new_tokens=self.length, temperature=0.0, stop_at_eos=False)
        return ids[:, -self.length :]


def size_of_file(model: Any) -> float:
    """Megabytes of the weights when saved. Before the first pass: bitsandbytes repacks NF4 weights on CPUs in it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return round(sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6, 1)


def compare(source: str, names: list[str], num_texts: int, length: int) -> list[dict[str, Any]]:
    """Measure the model by every scheme.

    Raises:
        SystemExit: for an unknown scheme, and a package that is not installed.
    """
    for name in names:
        check_scheme(name)
    measures = Measures(source, num_texts, length)
    exact = load(source, "float32")
    reference, answers = measures.log_probabilities(exact), measures.answers(exact)
    rows = []
    for name in names:
        model = load(source, name)
        megabytes = size_of_file(model)
        predicted, found = measures.log_probabilities(model), measures.answers(model)
        rows.append(
            {
                "scheme": name,
                "megabytes": megabytes,
                "same_best_token": round(float((predicted.argmax(-1) == reference.argmax(-1)).float().mean()), 4),
                "mean_kl": float(f"{(reference.exp() * (reference - predicted)).sum(-1).mean():.2g}"),
                "bound": round(measures.bound(model), 4),
                "same_greedy_tokens": round(float((found == answers).float().mean()), 4),
            }
        )
    return rows


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(BUNDLED_MODEL), help="folder of a checkpoint; the bundled model unless given"
    )
    parser.add_argument("--schemes", default=",".join(SCHEMES), help=f"list of {', '.join(SCHEMES)}")
    for name, default in (("texts", 24), ("length", 16), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="also write the result to this file")
    return parser.parse_args()


def main() -> None:
    """Compare, print a table and write JSON if asked."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    # Says at every call that inputs are cast to float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    about = machine()
    results = compare(args.model, args.schemes.split(","), args.texts, args.length)
    print(about)
    print(table(list(results[0]), [[str(value) for value in row.values()] for row in results]))
    write_json({"command": command(), "machine": about, "settings": vars(args), "results": results}, args.json)


if __name__ == "__main__":
    main()
