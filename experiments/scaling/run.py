"""Train both kinds of model at several sizes on the same tokens, and measure each on held-out text as it learns."""

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..fitting import KINDS, FitOptions, Shape, fit, make_model
from ..scoring import score_rows
from .corpus import Corpus, make_corpus, read_texts, rounds
from .curves import training_flops


@dataclasses.dataclass(frozen=True)
class ScalingOptions:
    """What decides the result of the experiment.

    Attributes:
        texts: files of text (see `read_texts`).
        tokenizer: folder of the tokenizer.
        shapes: sizes of the models, each trained as either kind.
        length: tokens of a row.
        batch_size: rows of an optimizer step.
        num_tokens: tokens that every model is trained on.
        num_measurements: how often a model is measured: after all tokens, after half of them, a quarter, ….
        num_held_out: held-out rows that are scored; all if there are fewer.
        num_samples: noisy copies of each by which a LLaDA's bound is estimated.
        seed: of weights, order and noise.
        fit: the optimiser of every model. The learning rate stays constant after its warmup, so that a measurement
            half-way is that of a training of half the length.

    Raises:
        ValueError: for fewer tokens than one optimizer step takes.
    """

    texts: tuple[str, ...]
    tokenizer: str
    shapes: tuple[Shape, ...] = (Shape(96, 2), Shape(160, 3), Shape(256, 4))
    length: int = 64
    batch_size: int = 32
    num_tokens: int = 2_000_000
    num_measurements: int = 5
    num_held_out: int = 96
    num_samples: int = 8
    seed: int = 0
    fit: FitOptions = dataclasses.field(default_factory=lambda: FitOptions(final_share=1.0))

    def __post_init__(self) -> None:
        tokens_of_a_step = self.batch_size * self.length
        if self.num_tokens < tokens_of_a_step:
            raise ValueError(
                f"`num_tokens` must be at least those of one optimizer step ({tokens_of_a_step}), "
                f"got {self.num_tokens}."
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of every training."""
        return self.num_tokens // (self.batch_size * self.length)


class Job(NamedTuple):
    """One training."""

    kind: str
    shape: Shape


class Measurement(NamedTuple):
    """A model at one moment of its training.

    Attributes:
        kind: one of `KINDS`.
        num_parameters: without embedding and head.
        num_tokens: trained on so far.
        flops: 6 N D of these two.
        loss: held-out, nats per token: exact for an autoregressive model, an upper bound for a LLaDA.
        standard_error: of `loss` over the noise, the held-out rows being given; 0 where it is exact.
    """

    kind: str
    num_parameters: int
    num_tokens: int
    flops: float
    loss: float
    standard_error: float


def run_jobs(options: ScalingOptions, path: Path, num_workers: int, report: Callable[[str], None]) -> list[Measurement]:
    """Train every kind and size, several at a time, one thread each.

    Args:
        options: of the experiment.
        path: JSON file to write all measurements to.
        num_workers: processes.
        report: called with a line whenever a training has finished.
    """
    jobs = [Job(kind, shape) for shape in reversed(options.shapes) for kind in KINDS]
    measurements: list[Measurement] = []
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        start = time.perf_counter()
        for found in pool.map(partial(run_job, options=options), jobs):
            measurements += found
            report(f"{time.perf_counter() - start:.0f} s: {found[-1]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([m._asdict() for m in measurements], indent=1) + "\n", encoding="utf-8")
    return measurements


def run_job(job: Job, options: ScalingOptions) -> list[Measurement]:
    """Train one model and measure it along the way."""
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.tokenizer)
    corpus = make_corpus(read_texts([Path(path) for path in options.texts]), tokenizer, options.length)
    model = make_model(
        job.kind, job.shape, len(tokenizer), options.length, mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id, seed=options.seed,
    )  # fmt: skip
    measured_at = halvings(options.num_steps, options.num_measurements)
    measurements = []

    def after_step(step: int, loss: float) -> None:
        if step in measured_at:
            measurements.append(measure(model, job, corpus, step * options.batch_size * options.length, options))

    batches = rounds(corpus.training, options.batch_size, options.seed)
    fit(model, batches, options.num_steps, options.seed, options.fit, after_step)
    return measurements


def measure(model: Any, job: Job, corpus: Corpus, num_tokens: int, options: ScalingOptions) -> Measurement:
    """Score the held-out rows."""
    rows = corpus.held_out[: options.num_held_out].tolist()
    scores = score_rows(model, rows, options.num_samples)
    num_scored = sum(len(row) - 1 for row in rows)
    loss = -float(scores.values.sum()) / num_scored
    error = float(scores.standard_errors.square().sum().sqrt()) / num_scored
    num_parameters = job.shape.num_block_parameters
    flops = training_flops(num_parameters, num_tokens)
    return Measurement(job.kind, num_parameters, num_tokens, flops, loss, error)


def halvings(num_steps: int, count: int) -> list[int]:
    """Steps after which a model is measured, rising: all of them, half, a quarter, …, each at least 1."""
    return sorted({max(1, num_steps >> back) for back in range(count)})
