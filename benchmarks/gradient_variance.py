"""Measure how much the noise of a training step scatters its gradient and its loss, for every way to draw the noise.

The same few held-out texts are the batch of every step, so that the noise alone differs; every way takes two noisy
rows of each text, so that all cost the same. The variance of a gradient is the trace of its covariance, in units of
the squared norm of the mean gradient. Usage:

    python benchmarks/gradient_variance.py                     # the bundled model, minutes on two cores
    python benchmarks/gradient_variance.py --texts 8 --pairs 100 --json result.json
"""

import argparse
import itertools
import sys
import time
from typing import Any

import torch
from quality_tasks import read_lines
from report import command, machine, table, write_json
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llada_checkpoints import BUNDLED_MODEL
from llada_core.diffusion import NoisyBatch
from llada_training import LLaDACollator, draw_noise, pretraining_loss, score_masked, training_noise_levels
from llada_training.batch import padding_mask
from modeling_llada import LLaDAModelLM

# Options of the training configurations. The first of the ways, all False, is what the others are compared with.
OPTIONS = ("exact_count", "low_discrepancy", "complementary_masks")
NUM_NOISE_SAMPLES = 2

Way = tuple[bool, ...]


def make_batch(path: str, num_texts: int) -> dict[str, Tensor]:
    """The texts, tokenised and padded."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    texts = [line["text"] for line in read_lines("heldout.jsonl", num_texts)]
    examples = [{"input_ids": ids, "example_id": i} for i, ids in enumerate(tokenizer(texts)["input_ids"])]
    return LLaDACollator(tokenizer.pad_token_id)(examples)


def draw(batch: dict[str, Tensor], way: Way, step: int, mask_token_id: int) -> NoisyBatch:
    """The noisy rows of one step: two of every text."""
    exact_count, low_discrepancy, complementary = way
    ids = batch["example_id"]
    num_levels = NUM_NOISE_SAMPLES // 2 if complementary else NUM_NOISE_SAMPLES
    levels = training_noise_levels(ids, ids, 0, step, low_discrepancy, num_levels)
    return draw_noise(
        batch["input_ids"],
        batch["labels"],
        ids,
        levels,
        mask_token_id,
        seed=0,
        step=step,
        exact_count=exact_count,
        complementary=complementary,
    )


def step_loss(model: LLaDAModelLM, batch: dict[str, Tensor], noisy: NoisyBatch) -> Tensor:
    """The pre-training loss of the noisy rows, nats per token."""
    labels = batch["labels"].repeat(NUM_NOISE_SAMPLES, 1)
    mask = padding_mask(batch["lengths"].repeat(NUM_NOISE_SAMPLES), labels.shape[1])
    logits = model(noisy.input_ids, mask, logits_positions=noisy.is_masked).logits
    return pretraining_loss(score_masked(logits, labels, noisy.is_masked).token_losses, noisy, (labels >= 0).sum())


def measure(model: LLaDAModelLM, batch: dict[str, Tensor], way: Way, num_pairs: int) -> dict[str, Any]:
    """Variance of gradient and loss over pairs of steps, with standard errors, and the squared norm of the mean one."""
    losses, variances, products = [], [], []
    for pair in range(num_pairs):
        steps = [gradient(model, batch, way, step) for step in (2 * pair, 2 * pair + 1)]
        (first_loss, first), (second_loss, second) = steps
        losses += [first_loss, second_loss]
        # Two independent draws: half of their squared distance has the variance as its mean, their product the square
        # of the mean gradient. So no more than two gradients are held.
        variances.append((first - second).square().sum() / 2)
        products.append(first @ second)
    gradient_variance, gradient_error = mean_and_error(torch.stack(variances))
    deviations = torch.stack(losses) - torch.stack(losses).mean()
    loss_variance, loss_error = mean_and_error(deviations.square() * len(losses) / (len(losses) - 1))
    return {
        **dict(zip(OPTIONS, way)),
        "gradient_variance": gradient_variance,
        "gradient_variance_error": gradient_error,
        "squared_mean": mean_and_error(torch.stack(products))[0],
        "mean_loss": float(torch.stack(losses).mean()),
        "loss_variance": loss_variance,
        "loss_variance_error": loss_error,
    }


def gradient(model: LLaDAModelLM, batch: dict[str, Tensor], way: Way, step: int) -> tuple[Tensor, Tensor]:
    """The loss of one step, a scalar, and its gradient as one vector; float32 [parameters]."""
    loss = step_loss(model, batch, draw(batch, way, step, model.config.mask_token_id))
    return loss.detach(), torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def compare(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put gradients in units of the mean one, which all ways estimate together, and compare with the first way."""
    squared_mean = sum(result["squared_mean"] for result in results) / len(results)
    first = results[0]
    return [
        result
        | {
            "relative_gradient_variance": result["gradient_variance"] / squared_mean,
            "relative_gradient_variance_error": result["gradient_variance_error"] / squared_mean,
            "gradient_variance_ratio": result["gradient_variance"] / first["gradient_variance"],
            "loss_variance_ratio": result["loss_variance"] / first["loss_variance"],
        }
        for result in results
    ]


def label(result: dict[str, Any]) -> str:
    """The options in words."""
    return ", ".join(option for option in OPTIONS if result[option]) or "independent masks and levels"


def show(results: list[dict[str, Any]]) -> str:
    """The results as a table."""
    head = ["", "gradient variance", "of the first", "loss variance", "of the first", "mean loss"]
    rows = [
        [
            label(row),
            f"{row['relative_gradient_variance']:.2f} ± {row['relative_gradient_variance_error']:.2f}",
            f"{row['gradient_variance_ratio']:.2f}",
            f"{row['loss_variance']:.3f} ± {row['loss_variance_error']:.3f}",
            f"{row['loss_variance_ratio']:.2f}",
            f"{row['mean_loss']:.2f}",
        ]
        for row in results
    ]
    return table(head, rows)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="a LLaDA checkpoint; the bundled one if unset")
    for name, default in (("texts", 4), ("pairs", 48), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", help="also write the result to this file")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error(f"`--pairs` must be at least 2 for a standard error, got {args.pairs}.")
    return args


def main() -> None:
    """Measure every way, print a table and write JSON if asked."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    about = machine()
    model = LLaDAModelLM.from_pretrained(args.model, dtype=torch.float32).eval()
    batch = make_batch(args.model, args.texts)
    results = []
    for way in itertools.product((False, True), repeat=len(OPTIONS)):
        start = time.perf_counter()
        results.append(measure(model, batch, way, args.pairs))
        print(f"{label(results[-1])}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    results = compare(results)
    print(about)
    print(show(results))
    write_json({"command": command(), "machine": about, "settings": vars(args), "results": results}, args.json)


if __name__ == "__main__":
    main()
