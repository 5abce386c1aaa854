"""What the noise of VRPO is worth: the variance of its estimates, and a preference task next to naive DPO.

    python -m experiments.preferences --output runs/preferences      # 12 trainings; --short: two, in seconds

A small LLaDA learns to answer a row of digits with the same digits in any order. Then it is shown pairs of such
answers, of which the one with fewer inversions is preferred. Every way to train (`ARMS`) starts from the same model
and sees the same pairs. Measured on prompts that it has not seen: the share of pairs whose better answer gained more
against the reference, by a bound with far more noise levels than in training; and, after the training, the variance of
the bound and of the log ratio for each way to draw the noise. Trainings that are done are kept: the same call goes on
after a kill.

Source: VRPO in LLaDA 1.5 (arXiv:2505.19223), sections 3 and 4.
"""

import argparse
import dataclasses
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from llada_core.diffusion import NoisyBatch
from llada_core.records import EvaluationRecord
from llada_training import (
    LLaDADPOConfig,
    LLaDADPOTrainer,
    draw_noise,
    draw_noises,
    elbo_log_probability,
    training_noise_levels,
)
from modeling_llada import LLaDAModelLM

from .common import (
    Experiment,
    FitOptions,
    Interval,
    Shape,
    add_job_options,
    fit,
    make_figure,
    make_model,
    make_parser,
    markdown_table,
    mean_interval,
    run_jobs,
)

NUM_DIGITS = 10
ARROW, MASK, EOS = range(NUM_DIGITS, NUM_DIGITS + 3)
VOCAB_SIZE = NUM_DIGITS + 3
# Of the pairs that are held out; the trainings' seeds count from 0.
HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class Options:
    """Sizes of the experiment.

    Attributes:
        length: digits of a prompt, and of its answers.
        base_steps, base_batch: of the training that all arms start from.
        steps, batch: of the preferences; the batch in pairs.
        learning_rate, beta: of the preferences.
        num_measures: times the accuracy is measured, evenly over the steps, beside the end of the training.
        num_held_out: pairs of held-out prompts.
        num_score_levels: noise levels of a measurement.
        num_seeds: trainings of each arm.
        num_repeats: draws of each estimate whose variance is measured.
        counts: passes of these estimates.
    """

    length: int = 8
    shape: tuple[int, int] = (64, 3)
    base_steps: int = 3000
    base_batch: int = 64
    steps: int = 200
    batch: int = 16
    learning_rate: float = 1e-4
    beta: float = 0.2
    num_measures: int = 5
    num_held_out: int = 256
    num_score_levels: int = 32
    num_seeds: int = 3
    num_repeats: int = 48
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)


SHORT = Options(
    length=4, shape=(32, 1), base_steps=10, base_batch=8, steps=2, batch=2, num_measures=1, num_held_out=4,
    num_score_levels=2, num_seeds=1, num_repeats=4, counts=(1, 2),
)  # fmt: skip


class NaiveTrainer(LLaDADPOTrainer):
    """Draws other noise for the reference."""

    reference_shares_noise = False


# Trainer and noise levels of each way to train. Naive DPO is n = 1 with independent noise.
ARMS: dict[str, tuple[type[LLaDADPOTrainer], int]] = {
    "VRPO: 8 levels, shared": (LLaDADPOTrainer, 8),
    "8 levels, independent": (NaiveTrainer, 8),
    "1 level, shared": (LLaDADPOTrainer, 1),
    "naive: 1 level, independent": (NaiveTrainer, 1),
}
VRPO = next(iter(ARMS))
# Where a record has the accuracies of each seed at each measured step.
BY_SEED = "accuracies by seed"


# --- the task ---------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A prompt's digits and two orders of them, of which the first has fewer inversions."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def num_inversions(digits: Sequence[int]) -> int:
    """Pairs of digits of which the larger one comes first."""
    return sum(left > right for place, left in enumerate(digits) for right in digits[place + 1 :])


def draw_pairs(count: int, length: int, seed: int, without: Sequence[Pair] = ()) -> list[Pair]:
    """Pairs of answers to `count` different prompts, none of which is a prompt of `without`."""
    generator, pairs = random.Random(seed), {}
    taken = {tuple(pair.prompt) for pair in without}
    while len(pairs) < count:
        prompt = generator.choices(range(NUM_DIGITS), k=length)
        if tuple(prompt) in taken:
            continue
        answers = sorted((generator.sample(prompt, length) for _ in range(2)), key=num_inversions)
        if num_inversions(answers[0]) < num_inversions(answers[1]):
            pairs[tuple(prompt)] = Pair(prompt, *answers)
    return list(pairs.values())


def row_of(prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
    """Token ids: prompt, arrow, answer, EOS."""
    return [*prompt, ARROW, *answer, EOS]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words: ten digits, an arrow, mask and EOS."""
    words = [*map(str, range(NUM_DIGITS)), ">", "<mask>", "<eos>"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"mask_token": "<mask>", "eos_token": "<eos>", "pad_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def as_dataset(pairs: Sequence[Pair]) -> Dataset:
    """The pairs as texts, in TRL's columns."""
    texts = [[" ".join(map(str, digits)) for digits in pair] for pair in pairs]
    return Dataset.from_list(
        [{"prompt": f"{prompt} >", "chosen": f" {good}", "rejected": f" {bad}"} for prompt, good, bad in texts]
    )


# --- training ---------------------------------------------------------------------------------------------------------


def train_base(folder: Path, options: Options) -> None:
    """Train the model that all arms start from, unless the folder has it."""
    if (folder / "config.json").exists():
        return
    generator = random.Random(0)
    rows = []
    for _ in range(options.base_steps * options.base_batch):
        prompt = generator.choices(range(NUM_DIGITS), k=options.length)
        rows.append(row_of(prompt, generator.sample(prompt, options.length)))
    model = make_model("llada", Shape(*options.shape), VOCAB_SIZE, 2 * options.length + 2, MASK, EOS, seed=0)
    fit(model, rows, options.base_batch, options.base_steps, 0, FitOptions())
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    partial.rename(folder)


def train(arm: str, seed: int, options: Options, folder: str) -> dict[str, Any]:
    """Train one arm.

    Returns:
        `steps` and `accuracies` on held-out pairs; of `VRPO` also `variances`, see `measure_variances`.
    """
    trainer_class, num_levels = ARMS[arm]
    base = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = LLaDAModelLM.from_pretrained(folder, dtype=torch.float32)
    held_out = draw_pairs(options.num_held_out, options.length, HELD_OUT_SEED)
    pairs = draw_pairs(options.steps * options.batch, options.length, seed, without=held_out)
    config = LLaDADPOConfig(
        f"{folder}-{seed}", max_steps=options.steps, per_device_train_batch_size=options.batch, seed=seed,
        num_noise_samples=num_levels, learning_rate=options.learning_rate, beta=options.beta,
        warmup_steps=0.1, bf16=False, gradient_checkpointing=False, recompute_levels=False, save_strategy="no",
        report_to="none", disable_tqdm=True, logging_steps=options.steps,
    )  # fmt: skip
    measured: list[tuple[int, float]] = []
    measures = _Measure(
        max(1, options.steps // options.num_measures),
        lambda step: measured.append((step, accuracy(model, base, held_out, options.num_score_levels))),
    )
    trainer = trainer_class(
        model, args=config, train_dataset=as_dataset(pairs), processing_class=make_tokenizer(), callbacks=[measures]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    result: dict[str, Any] = {"steps": [step for step, _ in measured], "accuracies": [found for _, found in measured]}
    if arm == VRPO:
        result["variances"] = measure_variances(model.eval(), base, held_out, options)
    return result


class _Measure(TrainerCallback):
    """Calls a function after every few steps, with the model in evaluation mode."""

    def __init__(self, interval: int, measure: Callable[[int], None]):
        self.interval, self.measure = interval, measure

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        if state.global_step % self.interval == 0 or state.global_step == state.max_steps:
            model.eval()
            self.measure(state.global_step)
            model.train()


# --- measures ---------------------------------------------------------------------------------------------------------


def make_batch(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and numbers of the answers, chosen ones first; int64 [2 * pairs, seq] twice, int64 [2 * pairs]."""
    rows = [row_of(p.prompt, p.chosen) for p in pairs] + [row_of(p.prompt, p.rejected) for p in pairs]
    ids = torch.tensor(rows)
    labels = ids.clone()
    labels[:, : len(pairs[0].prompt) + 1] = -100
    return ids, labels, torch.arange(len(ids))


@torch.no_grad()
def bounds(model: Any, noises: Sequence[NoisyBatch], labels: Tensor) -> Tensor:
    """Bound of each row by each noisy batch; [passes, rows]."""
    run = type(model).forward  # the trainer's head may stand on the instance

    def logits_at(noisy_ids: Tensor, is_masked: Tensor) -> Tensor:
        return run(model, noisy_ids, logits_positions=is_masked).logits

    return torch.stack([elbo_log_probability(logits_at, [noisy], labels) for noisy in noises])


def accuracy(model: Any, reference: Any, pairs: Sequence[Pair], num_levels: int) -> float:
    """Share of pairs whose chosen answer gained more log-probability against the reference than the other one."""
    ids, labels, numbers = make_batch(pairs)
    noises = draw_noises(ids, labels, numbers, MASK, num_levels, seed=1, step=0)
    gains = (bounds(model, noises, labels) - bounds(reference, noises, labels)).mean(0)
    chosen, rejected = gains.chunk(2)
    return (chosen > rejected).float().mean().item()


def measure_variances(model: Any, reference: Any, pairs: Sequence[Pair], options: Options) -> dict[str, list[float]]:
    """Variance of the estimates of one answer, over draws of the noise, averaged over answers.

    Returns:
        For each way to draw noise, and for each number of passes in `options.counts`: the variance of the bound; and
        for `log ratio, …` that of the log ratio to the reference, with levels drawn independently of each other.
    """
    ids, labels, numbers = make_batch(pairs[:32])
    found: dict[str, list[float]] = {}
    for count in options.counts:
        for name, draw in _ways(ids, labels, numbers).items():
            values = [bounds(model, draw(count, step), labels).mean(0) for step in range(options.num_repeats)]
            found.setdefault(name, []).append(_variance(values))
        shared, independent = [], []
        for step in range(options.num_repeats):
            ours, others = (_independent_levels(ids, labels, numbers, count, 2 * step + shift) for shift in (0, 1))
            policy = bounds(model, ours, labels).mean(0)
            shared.append(policy - bounds(reference, ours, labels).mean(0))
            independent.append(policy - bounds(reference, others, labels).mean(0))
        found.setdefault("log ratio, shared noise", []).append(_variance(shared))
        found.setdefault("log ratio, independent noise", []).append(_variance(independent))
    return found


def _variance(values: list[Tensor]) -> float:
    return torch.stack(values).var(0).mean().item()


def _ways(ids: Tensor, labels: Tensor, numbers: Tensor) -> dict[str, Callable[[int, int], list[NoisyBatch]]]:
    """Ways to draw n noisy batches at a step, all with exact counts."""
    return {
        "n levels, one mask each": lambda n, step: _independent_levels(ids, labels, numbers, n, step),
        "one level, n masks": lambda n, step: _one_level(ids, labels, numbers, n, step),
        "n stratified levels, one mask each": lambda n, step: draw_noises(ids, labels, numbers, MASK, n, 0, step),
    }


def _independent_levels(ids: Tensor, labels: Tensor, numbers: Tensor, n: int, step: int) -> list[NoisyBatch]:
    levels = training_noise_levels(numbers, numbers, 0, step, num_draws=n)
    return _draw(ids, labels, numbers, levels, step)


def _one_level(ids: Tensor, labels: Tensor, numbers: Tensor, n: int, step: int) -> list[NoisyBatch]:
    return _draw(ids, labels, numbers, training_noise_levels(numbers, numbers, 0, step).repeat(n), step)


def _draw(ids: Tensor, labels: Tensor, numbers: Tensor, levels: Tensor, step: int) -> list[NoisyBatch]:
    noisy = draw_noise(ids, labels, numbers, levels, MASK, 0, step, exact_count=True)
    return [NoisyBatch(*each) for each in zip(*(values.split(len(ids)) for values in noisy))]


# --- results ----------------------------------------------------------------------------------------------------------


def summarize(results: dict[str, dict[str, Any]], options: Options) -> dict[str, list[Interval]]:
    """Held-out accuracies of each arm at each measured step, over the seeds."""
    return {
        arm: [
            mean_interval(column)
            for column in zip(*(results[f"{arm}, seed {seed}"]["accuracies"] for seed in range(options.num_seeds)))
        ]
        for arm in ARMS
    }


def mean_variances(results: dict[str, dict[str, Any]], options: Options) -> dict[str, list[float]]:
    """Variances of each way at each number of passes, averaged over the seeds."""
    found = [results[f"{VRPO}, seed {seed}"]["variances"] for seed in range(options.num_seeds)]
    return {name: [statistics.fmean(column) for column in zip(*(each[name] for each in found))] for name in found[0]}


def make_table(accuracies: dict[str, list[Interval]], variances: dict[str, list[float]], counts: Sequence[int]) -> str:
    """The accuracies at the end with their 95 % intervals, and the variances."""

    def shown(interval: Interval) -> str:
        return f"{interval.mean:.3f}" + (f" ± {interval.half_width:.3f}" if interval.half_width is not None else "")

    first = markdown_table(["", "held-out accuracy"], [[arm, shown(found[-1])] for arm, found in accuracies.items()])
    rows = [[name, *(f"{value:.3f}" for value in values)] for name, values in variances.items()]
    return f"{first}\n\n" + markdown_table(["variance", *(f"n = {count}" for count in counts)], rows)


def plot(record: EvaluationRecord) -> Any:
    """Draw accuracy over steps, the mean with a point for each seed, and variance over passes with the line 1/n.

    Raises:
        ValueError: for a record without the accuracies of the seeds.
    """
    if BY_SEED not in record.remarks:
        raise ValueError(f"The record must hold `{BY_SEED}` among its remarks, got none; run the experiment again.")
    counts, variances = record.settings["counts"], record.remarks["variances"]
    figure = make_figure((10.5, 4))
    left, right = figure.subplots(1, 2)
    for arm, runs in record.remarks[BY_SEED].items():
        steps, columns = record.remarks["steps"], list(zip(*runs))
        [line] = left.plot(steps, [statistics.fmean(column) for column in columns], label=arm)
        for step, column in zip(steps, columns):
            left.plot([step] * len(column), column, "o", markersize=3, color=line.get_color())
    left.set(xlabel="step", ylabel="held-out accuracy", title="Accuracy, a point for each seed")
    for name, values in variances.items():
        right.plot(counts, values, marker="o", label=name)
    start = variances["n levels, one mask each"][0]
    right.plot(counts, [start / count for count in counts], "k--", linewidth=1, label="1/n")
    right.set(xlabel="passes n", ylabel="variance, nats²", title="Variance of the estimates")
    right.set(xscale="log", yscale="log")
    for axes in (left, right):
        axes.legend()
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Train every arm, measure, write table, figure and record."""
    args = parse_arguments(arguments)
    options = dataclasses.replace(
        SHORT if args.short else Options(), **({"num_seeds": args.seeds} if args.seeds else {})
    )
    settings = dataclasses.asdict(options) | {"counts": list(options.counts), "shape": list(options.shape)}
    experiment = Experiment("preferences", settings)
    args.output.mkdir(parents=True, exist_ok=True)
    base = args.output / ("base-short" if args.short else "base")
    train_base(base, options)
    jobs = {f"{arm}, seed {seed}": (arm, seed, options, str(base)) for seed in range(options.num_seeds) for arm in ARMS}
    # More seeds may be added to those that are there.
    fixed = settings | {"num_seeds": None}
    results = run_jobs(train, jobs, fixed, args.output / "trainings.jsonl", args.workers, args.overwrite)
    accuracies, variances = summarize(results, options), mean_variances(results, options)
    scores = {arm: found[-1] for arm, found in accuracies.items()}
    scores |= {
        f"variance: {name}, n = {count}": Interval(value)
        for name, values in variances.items()
        for count, value in zip(options.counts, values)
    }
    described = {"name": "trained from scratch", "num_parameters": LLaDAModelLM.from_pretrained(base).num_parameters()}
    remarks = {
        "steps": results[f"{VRPO}, seed 0"]["steps"],
        BY_SEED: {
            arm: [results[f"{arm}, seed {seed}"]["accuracies"] for seed in range(options.num_seeds)] for arm in ARMS
        },
        "variances": variances,
    }
    experiment.write(args.output, make_table(accuracies, variances, options.counts), scores, described, plot, remarks)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("preferences", __doc__)
    add_job_options(parser)
    parser.add_argument("--short", action="store_true", help="tiny models and one seed, to see that all runs")
    parser.add_argument("--seeds", type=int, help=f"trainings of each arm; {Options().num_seeds} if unset")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
