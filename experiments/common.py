"""What the experiments share: two kinds of model of one shape, their training and scores, jobs, intervals, records.

Everything runs on the CPU, one thread for each training.

Shape legend: N rows, T tokens of a row; all rows of a training or of a call are equally long.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from llada_core.records import EvaluationRecord, Score, environment, utc_now, write_record
from llada_core.resume import RecordFile
from llada_evaluation import LikelihoodOptions, estimate_log_likelihoods
from llada_training import LLaDAPretrainingConfig, LLaDAPretrainingTrainer
from modeling_llada import LLaDAConfig, LLaDAModelLM

KINDS = ("llada", "autoregressive")
HEAD_WIDTH = 32
ROPE_THETA = 10000.0
# Rows that an autoregressive model scores together.
SCORE_BATCH = 128
# How often a training logs its loss.
NUM_LOGS = 20
# The label of a token that is given and never predicted.
IGNORED = -100
STYLE_SHEET = Path(__file__).with_name("style.mplstyle")
# The colour of each of `KINDS` in every figure, two of the style sheet's.
COLORS = {"llada": "#D55E00", "autoregressive": "#0072B2"}


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: width of the residual stream, a multiple of 32, and number of blocks."""

    width: int
    num_layers: int

    @property
    def mlp_width(self) -> int:
        """Width of the feed-forward layer: about 8/3 of the residual stream's, a multiple of 16."""
        return self.width * 8 // 3 // 16 * 16

    @property
    def num_block_parameters(self) -> int:
        """Parameters of all blocks and norms: those that are neither embedding nor head."""
        block = 4 * self.width**2 + 3 * self.width * self.mlp_width + 2 * self.width
        return self.num_layers * block + self.width


def make_model(kind: str, shape: Shape, vocab_size: int, max_length: int, mask_id: int, pad_id: int, seed: int) -> Any:
    """A new model of one of `KINDS`: the same blocks and tied embeddings, attending both ways or to the left.

    Both draw their matrices with standard deviation 1/sqrt(d_in) or, for Llama, 1/sqrt(width), as its rule has one.

    Raises:
        ValueError: for another kind.
    """
    torch.manual_seed(seed)
    num_heads = shape.width // HEAD_WIDTH
    shared: dict[str, Any] = {"vocab_size": vocab_size, "pad_token_id": pad_id, "rms_norm_eps": 1e-5}
    shared |= {"rope_theta": ROPE_THETA, "attn_implementation": "eager"}
    if kind == "llada":
        shared |= {"d_model": shape.width, "n_layers": shape.num_layers, "n_heads": num_heads, "weight_tying": True}
        shared |= {"mlp_hidden_size": shape.mlp_width, "max_sequence_length": max_length}
        return LLaDAModelLM(LLaDAConfig(mask_token_id=mask_id, eos_token_id=pad_id, **shared))
    if kind == "autoregressive":
        shared |= {"hidden_size": shape.width, "num_hidden_layers": shape.num_layers, "tie_word_embeddings": True}
        shared |= {"num_attention_heads": num_heads, "intermediate_size": shape.mlp_width}
        shared |= {"max_position_embeddings": max_length, "initializer_range": shape.width**-0.5}
        return LlamaForCausalLM(LlamaConfig(bos_token_id=None, eos_token_id=None, **shared))
    raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")


def is_diffusion(model: Any) -> bool:
    """Whether a model is a LLaDA."""
    return model.config.model_type == "llada"


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitOptions:
    """The optimiser, the same for every model: AdamW, linear warmup, cosine to a tenth, clipped gradients."""

    learning_rate: float = 2e-3
    warmup_share: float = 0.05
    final_share: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    max_gradient_norm: float = 1.0

    def rate(self, step: int, num_steps: int) -> float:
        """The share of the learning rate at a step, in 0..num_steps-1."""
        warmup = min(1.0, (step + 1) / max(1.0, self.warmup_share * num_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        return warmup * (self.final_share + (1.0 - self.final_share) * cosine)


def fit(
    model: Any,
    rows: Sequence[list[int]],
    batch_size: int,
    num_steps: int,
    seed: int,
    options: FitOptions,
    measure_at: Collection[int] = (),
    measure: Callable[[int], None] = lambda step: None,
    num_given: int = 1,
) -> list[float]:
    """Train in place by transformers' `Trainer`, in bfloat16 autocast; a LLaDA by `LLaDAPretrainingTrainer`.

    LLaDA masks exact counts (Eq. 6) and spreads the noise levels of a step evenly. The first tokens of a row are given:
    they are never masked, and never predicted. Every pass through the rows has another order, which depends on the seed
    alone, so that both kinds of model see the same.

    Args:
        model: as `make_model` makes it.
        rows: ids; N lists of T.
        batch_size: rows of an optimizer step.
        num_steps: optimizer steps.
        seed: of order and noise.
        options: of the optimiser.
        measure_at: numbers of finished steps after which the model is measured.
        measure: called with that number; the model is in evaluation mode.
        num_given: tokens at the start of a row that are given, at least 1.

    Returns:
        The mean losses, nats per token, of `NUM_LOGS` equal parts of the training, fewer if it is shorter.
    """
    given = [IGNORED] * num_given
    dataset = [{"input_ids": row, "labels": given + row[num_given:], "example_id": n} for n, row in enumerate(rows)]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: options.rate(step, num_steps))
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder, "max_steps": num_steps, "per_device_train_batch_size": batch_size, "seed": seed,
            "max_grad_norm": options.max_gradient_norm, "bf16": True, "use_cpu": True, "save_strategy": "no",
            "logging_steps": max(1, num_steps // NUM_LOGS), "report_to": "none", "disable_tqdm": True,
        }  # fmt: skip
        common = {
            "train_dataset": dataset, "optimizers": (optimizer, schedule), "callbacks": [Measure(measure_at, measure)]
        }  # fmt: skip
        trainer: Trainer
        if is_diffusion(model):
            noise = {"exact_count": True, "low_discrepancy": True, "random_length_probability": 0.0}
            trainer = LLaDAPretrainingTrainer(model, LLaDAPretrainingConfig(**arguments, **noise), **common)
        else:
            trainer = Trainer(model, TrainingArguments(**arguments), default_data_collator, **common)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Measure(TrainerCallback):
    """Calls a function after some steps, with their number; the model is in evaluation mode."""

    def __init__(self, steps: Collection[int], measure: Callable[[int], None]):
        self.steps, self.measure = steps, measure

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        if state.global_step in self.steps:
            model.eval()
            self.measure(state.global_step)
            model.train()


# --- scores -----------------------------------------------------------------------------------------------------------


class RowScores(NamedTuple):
    """Log-probability of each row given its first token.

    Attributes:
        values: nats; float32 [N]. Of a LLaDA a lower bound, estimated without bias.
        standard_errors: of the estimates, nats; float32 [N]. 0 of an autoregressive model, which is exact.
    """

    values: Tensor
    standard_errors: Tensor


@torch.no_grad()
def score_rows(model: Any, rows: Sequence[list[int]], num_samples: int) -> RowScores:
    """Score rows of ids.

    Args:
        model: LLaDA (Eq. 6) or autoregressive (the chain rule).
        rows: ids; N lists of T, at least 2.
        num_samples: noisy copies of each row for a LLaDA, at least 2.
    """
    if is_diffusion(model):
        pairs = [(row[:1], row[1:]) for row in rows]
        estimates = estimate_log_likelihoods(model, pairs, LikelihoodOptions(num_samples=num_samples))
        values = torch.tensor([estimate.log_likelihood for estimate in estimates])
        return RowScores(values, torch.tensor([estimate.standard_error for estimate in estimates]))
    scores = []
    for ids in torch.tensor(rows).split(SCORE_BATCH):
        logits = model(ids[:, :-1], use_cache=False).logits.float()
        scores.append(-F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").sum(-1))
    return RowScores(torch.cat(scores), torch.zeros(len(rows)))


# --- jobs -------------------------------------------------------------------------------------------------------------


def run_jobs(
    work: Callable[..., Any],
    jobs: Mapping[str, tuple],
    settings: dict[str, Any],
    path: Path,
    num_workers: int,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Call a function for every job that has no result yet, several at a time.

    Args:
        work: a function of a module; returns JSON values.
        jobs: name to arguments.
        settings: all that decides the results; JSON values. Results of other settings are refused.
        path: JSON lines of the results, see `RecordFile`; the same call goes on from them after a kill.
        num_workers: processes; with 1 the jobs run in this one.
        overwrite: begin anew.

    Returns:
        The result of each job, in their order.
    """
    start, file, settings = time.perf_counter(), RecordFile(path), {"options": settings}
    found = {} if overwrite else file.find(settings)
    results = {name: record["result"] for name, record in found.items()}
    file.start(settings, overwrite)

    def keep(name: str, result: Any) -> None:
        results[name] = result
        file.write({"key": name, "result": result})
        print(f"{name}: done after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    missing = {name: arguments for name, arguments in jobs.items() if name not in results}
    if num_workers == 1:
        for name, arguments in missing.items():
            keep(name, work(*arguments))
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, torch.set_num_threads, initargs=(1,)) as pool:
            names = {pool.submit(work, *arguments): name for name, arguments in missing.items()}
            for future in as_completed(names):
                keep(names[future], future.result())
    file.close()
    return {name: results[name] for name in jobs}


# --- what is said about the numbers -----------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A mean over independent values: runs, or questions.

    Attributes:
        mean: of the values.
        standard_error: of the mean; None if it is unknown, as that of one run.
        half_width: of the 95 % confidence interval; None likewise.
    """

    mean: float
    standard_error: float | None = None
    half_width: float | None = None


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean with its 95 % confidence interval by Student's t, for independent values of about normal distribution.

    Raises:
        ValueError: if there are no values.
    """
    from scipy.stats import t

    if not values:
        raise ValueError("`values` must hold at least one number, got none.")
    if len(values) == 1:
        return Interval(values[0])
    error = statistics.stdev(values) / len(values) ** 0.5
    return Interval(statistics.fmean(values), error, float(t.ppf(0.975, len(values) - 1)) * error)


def proportion_interval(num_right: int, count: int) -> Interval:
    """Share of `count` independent questions, with the normal approximation of its 95 % confidence interval."""
    share = num_right / count
    error = (share * (1.0 - share) / count) ** 0.5
    return Interval(share, error, 1.96 * error)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def make_figure(size: tuple[float, float]) -> Any:
    """An empty figure of matplotlib in the experiments' style, drawn without a display; sizes in inches.

    The style sheet then holds for all that this process draws: axes read it when they are made, not when it is set.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style.use(STYLE_SHEET)
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all experiments have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("runs") / name, help="folder to write")
    return parser


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """The options of experiments that run `run_jobs`."""
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trainings at a time, one core each")
    parser.add_argument(
        "--force", "--overwrite", dest="overwrite", action="store_true", help="train anew, whatever the folder holds"
    )


@dataclass(frozen=True)
class Experiment:
    """A run of an experiment, from its making on; the outcome is written with what is needed to repeat it.

    Attributes:
        name: of the experiment and of its table's file.
        settings: every option that decides the result; JSON values.
        seed: of all randomness; the first one, if there are several.
        started: when, as a record spells it.
    """

    name: str
    settings: dict[str, Any]
    seed: int = 0
    started: str = field(default_factory=utc_now)
    _clock: float = field(default_factory=time.perf_counter)

    def write(
        self,
        folder: Path,
        table: str,
        results: Mapping[str, Interval],
        model: dict[str, Any],
        figure: Any,
        remarks: dict[str, Any] | None = None,
    ) -> None:
        """Write table and figure as `<name>.md` and `<name>.png`, results and circumstances as a record.

        Args:
            folder: where to, made if it is missing.
            table: Markdown.
            results: the numbers of the record.
            model: what the record says of it.
            figure: of matplotlib, or a function that draws it from the record, as `experiments.redraw` does again.
            remarks: what the record holds besides, such as all that the figure shows; JSON values.
        """
        scores = {name: Score(interval.mean, interval.standard_error) for name, interval in results.items()}
        run: dict[str, Any] = {"settings": self.settings, "seed": self.seed, "started": self.started, **environment()}
        run |= {"seconds": round(time.perf_counter() - self._clock, 1), "remarks": remarks or {}}
        record = EvaluationRecord(name=self.name, model=model, results=scores, **run)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(table + "\n", encoding="utf-8")
        (figure(record) if callable(figure) else figure).savefig(folder / f"{self.name}.png")
        write_record(folder, record)
        print(table)
