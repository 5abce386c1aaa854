"""Train the models of the reversal experiment and ask them, one job for each model and seed.

A finished job is a JSON file, so that an interrupted experiment goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..fitting import FitOptions, Shape, fit, is_diffusion, make_model
from .answers import ask, find_first_lines, infill
from .couplets import Couplet, load_couplets
from .tokens import (
    DIRECTIONS,
    MASK,
    PADDING,
    Characters,
    count_batches,
    reverse_text,
    shuffled_batches,
    split_couplets,
    training_rows,
)

# The models that are compared: kind, and whether its poems are written backwards.
MODELS = {
    "LLaDA": ("llada", False),
    "autoregressive": ("autoregressive", False),
    "autoregressive, reversed text": ("autoregressive", True),
}
# Which couplets are taught and tested is the same for all models and seeds.
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class ReversalOptions:
    """What decides the result of the experiment.

    Attributes:
        line_length: characters of a line, 5 or 7; couplets of the other length are left out.
        num_couplets: couplets to learn, from the beginning of the anthologies; all if there are fewer.
        taught_share: share of them about which both questions are part of the training.
        epochs: rounds through all rows.
        batch_size: rows of an optimizer step.
        num_seeds: models of each kind, with other weights, order and noise.
        num_checkpoints: how often each is asked, over the last tenth of the training.
        num_questions: tested couplets that are asked about in each direction; all if there are fewer.
        num_searches: tested couplets whose first line is looked for by likelihood.
        num_candidates: candidates of such a search.
        shape: sizes of every model.
        fit: the optimiser of every model.

    Raises:
        ValueError: for a share or a count out of range.
    """

    line_length: int = 5
    num_couplets: int = 1037
    taught_share: float = 0.5
    epochs: int = 120
    batch_size: int = 64
    num_seeds: int = 3
    num_checkpoints: int = 3
    num_questions: int = 500
    num_searches: int = 50
    num_candidates: int = 100
    shape: Shape = dataclasses.field(default_factory=lambda: Shape(width=128, num_layers=4))
    fit: FitOptions = dataclasses.field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        if not 0.0 < self.taught_share < 1.0:
            raise ValueError(
                f"`taught_share` must lie between 0 and 1, got {self.taught_share}: a model that is taught no question "
                "does not know the task, and some couplets must be left to ask about."
            )
        for name in ("num_couplets", "epochs", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


# Seconds, and enough to see the effect.
SHORT = ReversalOptions(
    num_couplets=60,
    epochs=100,
    batch_size=16,
    num_seeds=1,
    num_checkpoints=1,
    num_searches=10,
    shape=Shape(width=128, num_layers=2),
)


class Job(NamedTuple):
    """One training: a name of `MODELS` and a seed."""

    model: str
    seed: int


class Task(NamedTuple):
    """What one training learns and is asked.

    Attributes:
        characters: the ids.
        rows: what it learns.
        poems, taught, tested: couplets, in the direction in which the model reads.
    """

    characters: Characters
    rows: list[list[int]]
    poems: list[Couplet]
    taught: list[Couplet]
    tested: list[Couplet]


def run_jobs(options: ReversalOptions, folder: Path, num_workers: int, report: Callable[[str], None]) -> dict[Job, Any]:
    """Run every job that has no file yet, several at a time, one thread each.

    Args:
        options: of the experiment.
        folder: holds a JSON file for each finished job.
        num_workers: processes.
        report: called with a line whenever a job has finished.

    Returns:
        The outcome of each job (see `run_job`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [Job(model, seed) for seed in range(options.num_seeds) for model in MODELS]
    paths = {job: folder / f"{_file_stem(job, options)}.json" for job in jobs}
    missing = [job for job in jobs if not paths[job].exists()]
    work = partial(_run_and_write, options=options)
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        for job, outcome in zip(missing, pool.map(work, missing, [paths[job] for job in missing])):
            report(f"{job.model}, seed {job.seed}: {outcome['seconds']:.0f} s, {outcome['checkpoints'][-1]}")
    return {job: json.loads(path.read_text(encoding="utf-8")) for job, path in paths.items()}


def run_job(job: Job, options: ReversalOptions) -> dict[str, Any]:
    """Train one model and ask it.

    Returns:
        `checkpoints`: step, loss and share of right answers by kind of question, of each checkpoint; `taught`: the
        same for taught couplets, at the end; `first_line_found`; `num_parameters`, `num_tokens`, `seconds`.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    kind, is_reversed = MODELS[job.model]
    task = make_task(options, is_reversed)
    longest = max(map(len, task.rows))
    model = make_model(kind, options.shape, task.characters.vocab_size, longest, MASK, PADDING, job.seed)
    num_steps = options.epochs * count_batches(task.rows, options.batch_size)
    asked_at = checkpoint_steps(num_steps, options.num_checkpoints)
    checkpoints: list[dict[str, float]] = []

    def after_step(step: int, loss: float) -> None:
        if step in asked_at:
            questions = sample(task.tested, options.num_questions)
            checkpoints.append({"step": step, "loss": loss, **ask_all(model, task, questions, is_reversed)})

    fit(model, shuffled_batches(task.rows, options.batch_size, job.seed), num_steps, job.seed, options.fit, after_step)
    searched = sample(task.tested, options.num_searches)
    found = find_first_lines(model, task.characters, searched, task.poems, options.num_candidates)
    return {
        "checkpoints": checkpoints,
        "taught": ask_all(model, task, sample(task.taught, options.num_questions), is_reversed),
        "first_line_found": found,
        "num_parameters": model.num_parameters(),
        "num_tokens": options.epochs * sum(map(len, task.rows)),
        "seconds": time.perf_counter() - start,
    }


def make_task(options: ReversalOptions, is_reversed: bool) -> Task:
    """Choose the couplets; a model of reversed text gets all of them reversed."""
    poems = [couplet for couplet in load_couplets() if len(couplet.first) == options.line_length]
    poems = poems[: options.num_couplets]
    taught, tested = split_couplets(poems, options.taught_share, SPLIT_SEED)
    if is_reversed:
        poems, taught, tested = map(reverse_text, (poems, taught, tested))
    characters = Characters(poems)
    return Task(characters, training_rows(characters, poems, taught), poems, taught, tested)


def ask_all(model: Any, task: Task, couplets: Sequence[Couplet], is_reversed: bool) -> dict[str, float]:
    """Share of right answers by kind of question, named as of the text in its own direction.

    `next` and `previous` are asked of every model; `infill next` and `infill previous` of LLaDA.
    """
    other = {"next": "previous", "previous": "next"}
    names = {direction: other[direction] if is_reversed else direction for direction in DIRECTIONS}
    shares = {names[direction]: ask(model, task.characters, couplets, direction) for direction in DIRECTIONS}
    if is_diffusion(model):
        shares |= {
            f"infill {direction}": infill(model, task.characters, couplets, direction) for direction in DIRECTIONS
        }
    return dict(sorted(shares.items()))


def checkpoint_steps(num_steps: int, num_checkpoints: int) -> list[int]:
    """Steps after which a model is asked: evenly spread over the last tenth of the training, the last one included."""
    stride = max(1, num_steps // 10 // max(1, num_checkpoints - 1))
    return [num_steps - stride * back for back in reversed(range(num_checkpoints))]


def sample(couplets: Sequence[Couplet], count: int) -> list[Couplet]:
    """The same couplets at every call, at most `count`."""
    return random.Random(0).sample(list(couplets), min(count, len(couplets)))


def _run_and_write(job: Job, path: Path, options: ReversalOptions) -> dict[str, Any]:
    """Run a job where it is asked for, and write its file as soon as it is done."""
    outcome = run_job(job, options)
    path.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    return outcome


def _file_stem(job: Job, options: ReversalOptions) -> str:
    """A name that changes with the options, so that a file of other settings is never taken for this job's."""
    settings = json.dumps(dataclasses.asdict(options) | {"num_seeds": None}, sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return f"{job.model.lower().replace(', ', '-').replace(' ', '-')}-seed{job.seed}-{digest}"
