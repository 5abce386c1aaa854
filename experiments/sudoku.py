"""Reinforcement learning on 4x4 Sudoku: fork, espo and diffu from one start, at equal generated tokens.

    python -m experiments.sudoku --output runs/sudoku          # within 90 minutes on two cores
    python -m experiments.sudoku --output runs/sudoku --short  # seconds; tiny models, one seed

It writes a table, a figure and a record into the folder; trainings that are finished there are not run again.

1. A small LLaDA and an autoregressive model of the same size learn the same easy puzzles with their solutions: few of
   their cells are empty. That LLaDA is the start of what follows; it solves some of the puzzles with many empty cells.
2. From that start, each objective trains on puzzles with many empty cells by rewards alone: the share of the empty
   cells that are right, and one more for a puzzle that is solved. Every training generates equally many tokens, with
   three seeds.
3. What is counted are test puzzles with many empty cells that are solved entirely, by greedy decoding with one token
   per pass. No solved grid of a test puzzle is one of a training puzzle (see `llada_training.puzzles`). `--choose`
   counts other puzzles of the training grids, by which settings may be chosen.

A row of ids is a start token, the 16 cells of the puzzle, an equals sign and the 16 cells of the solution. The settings
of the objectives are the published ones but for what a model of this size needs; docs/post-training.md says how they
were chosen.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast, PrinterCallback

from llada_core.records import EvaluationRecord
from llada_training import LLaDAGRPOConfig, LLaDAGRPOTrainer, sudoku_reward
from llada_training.puzzles import Sudoku, make_sudokus
from modeling_llada import LLaDAModelLM

from .common import (
    KINDS,
    Experiment,
    FitOptions,
    Interval,
    Measure,
    Shape,
    add_job_options,
    fit,
    is_diffusion,
    make_figure,
    make_model,
    make_parser,
    markdown_table,
    mean_interval,
    proportion_interval,
    run_jobs,
)

SIZE, NUM_CELLS = 4, 16
# Ids are places in this list; a digit's id is the digit.
TOKENS = ("0", "1", "2", "3", "4", "=", "<start>", "<end>", "<mask>")
EQUALS, START, END, MASK = (TOKENS.index(token) for token in ("=", "<start>", "<end>", "<mask>"))
PROMPT_LENGTH = NUM_CELLS + 2
# What each objective sets beside what all share; docs/post-training.md says why.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "fork": {"learning_rate": 3e-4, "fallback": "confident", "num_iterations": 1, "beta": 0.0, "epsilon": 0.2},
    "espo": {"learning_rate": 2e-4, "num_noise_samples": 4, "num_iterations": 2, "beta": 1e-2, "epsilon": 0.2},
    "diffu": {"learning_rate": 2e-4, "prompt_mask_rate": 0.15, "num_iterations": 2, "beta": 0.04, "epsilon": 0.5,
              "use_bias_correction_kl": False},
}  # fmt: skip
# Options that decide the starts.
START_OPTIONS = (
    "num_empty", "num_empty_learnt", "num_learnt", "num_tested", "judge", "shape", "fit", "fit_steps", "fit_batch",
)  # fmt: skip
# Name of what a record holds of the trainings: by objective and seed, generated tokens and the share solved then.
CURVES = "curves"
# Seeds of the puzzles: to learn, to choose settings by, to be rewarded for.
LEARNT, CHOOSING, REWARDED = range(3)


@dataclass(frozen=True)
class SudokuOptions:
    """Sizes of the experiment; the defaults are those of the full run.

    Attributes:
        num_empty: cells to be filled in of a puzzle that is rewarded or counted.
        num_empty_learnt: the same of a puzzle that is learnt.
        num_learnt: puzzles that the start and the autoregressive model learn.
        num_rewarded: puzzles for reinforcement learning.
        num_tested: puzzles that are counted.
        judge: the split that they are of: test, or train to choose settings.
        shape: width and blocks of the models.
        fit: the optimiser of the start.
        fit_steps, fit_batch: of its training.
        num_rounds: generations of each training.
        num_prompts, num_generations: puzzles of a round, and answers to each.
        temperature: of the answers.
        threshold: of the answers; tokens of at least this confidence are committed together.
        num_tests: times that puzzles are counted in a training, after the start.
        num_seeds: trainings of each objective.
    """

    num_empty: int = 10
    num_empty_learnt: int = 3
    num_learnt: int = 4000
    num_rewarded: int = 4000
    num_tested: int = 256
    judge: str = "test"
    shape: Shape = Shape(64, 3)  # noqa: RUF009 (frozen)
    fit: FitOptions = FitOptions(learning_rate=3e-3)  # noqa: RUF009
    fit_steps: int = 1500
    fit_batch: int = 64
    num_rounds: int = 200
    num_prompts: int = 32
    num_generations: int = 8
    temperature: float = 1.5
    threshold: float = 0.999
    num_tests: int = 6
    num_seeds: int = 3


SHORT = SudokuOptions(
    num_empty=4, num_empty_learnt=2, num_learnt=32, num_rewarded=16, num_tested=8, shape=Shape(32, 1),
    fit_steps=4, fit_batch=8, num_rounds=2, num_prompts=2, num_generations=2, num_tests=1, num_seeds=1,
)  # fmt: skip


# --- puzzles as ids ---------------------------------------------------------------------------------------------------


def prompt_of(sudoku: Sudoku) -> str:
    """The text before the solution."""
    return f"<start>{sudoku.puzzle}="


def row_of(sudoku: Sudoku) -> list[int]:
    """A puzzle and its solution as ids."""
    return [START, *map(int, sudoku.puzzle), EQUALS, *map(int, sudoku.solution)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each character."""
    tokenizer = Tokenizer(WordLevel({token: place for place, token in enumerate(TOKENS)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", mask_token="<mask>"
    )


# --- trainings --------------------------------------------------------------------------------------------------------


def train_start(kind: str, folder: str, options: SudokuOptions) -> dict[str, Any]:
    """Teach easy puzzles to a new model, and save it.

    Args:
        kind: one of `KINDS`.
        folder: where the model goes.
        options: of the experiment.

    Returns:
        `solved`: the share that it solves of the puzzles that are counted; `solved_easy`: of others, as easy as those
        that it learnt; `num_parameters`.
    """
    model = make_model(kind, options.shape, len(TOKENS), PROMPT_LENGTH + NUM_CELLS, MASK, END, seed=0)
    learnt = make_sudokus(options.num_learnt, SIZE, options.num_empty_learnt, "train", LEARNT)
    fit(
        model, [row_of(sudoku) for sudoku in learnt], options.fit_batch, options.fit_steps, 0, options.fit,
        {options.fit_steps}, lambda step: model.save_pretrained(folder), PROMPT_LENGTH,
    )  # fmt: skip
    # Read again, since the trainer leaves the model in bfloat16 autocast.
    model = type(model).from_pretrained(folder)
    easy = make_sudokus(options.num_tested, SIZE, options.num_empty_learnt, options.judge, CHOOSING)
    return {
        "solved": solved_share(model, judging_puzzles(options)),
        "solved_easy": solved_share(model, easy),
        "num_parameters": model.num_parameters(),
    }


def judging_puzzles(options: SudokuOptions) -> list[Sudoku]:
    """The puzzles that are counted."""
    return make_sudokus(options.num_tested, SIZE, options.num_empty, options.judge, CHOOSING)


def spread(num_steps: int, count: int) -> list[int]:
    """Up to `count` steps at equal distances; the last one is `num_steps`."""
    return sorted({max(1, num_steps * part // count) for part in range(1, count + 1)})


@torch.no_grad()
def solved_share(model: Any, sudokus: Sequence[Sudoku]) -> float:
    """Share of the puzzles that a model solves entirely by greedy decoding, one token per pass."""
    ids = torch.tensor([row_of(sudoku) for sudoku in sudokus])
    prompts = ids[:, :PROMPT_LENGTH]
    if is_diffusion(model):
        found = model.generate(prompts, max_new_tokens=NUM_CELLS, block_length=NUM_CELLS, stop_at_eos=False)
    else:
        mask = torch.ones_like(prompts)
        found = model.generate(prompts, attention_mask=mask, max_new_tokens=NUM_CELLS, do_sample=False)
    return (found[:, : ids.shape[1]] == ids[:, : found.shape[1]]).all(-1).double().mean().item()


def solved_reward(completions: Sequence[Any], puzzle: Sequence[str], solution: Sequence[str], **columns: Any) -> list:
    """1 for a puzzle that is solved entirely, else 0; a reward in TRL's signature."""
    return [float(share == 1.0) for share in sudoku_reward(completions, puzzle, solution)]


def reinforce(objective: str, seed: int, start: str, options: SudokuOptions) -> dict[str, Any]:
    """Train from the start by one objective.

    Returns:
        `curve`: generated tokens and the share of the test puzzles solved then; `rewards` and `passes` of the rounds.
    """
    model, settings = LLaDAModelLM.from_pretrained(start), OBJECTIVES[objective]
    sudokus = make_sudokus(options.num_rewarded, SIZE, options.num_empty, "train", REWARDED)
    tested = judging_puzzles(options)
    num_answers, num_iterations = options.num_prompts * options.num_generations, settings["num_iterations"]
    curve = [(0, solved_share(model, tested))]

    def test(step: int) -> None:
        curve.append((step // num_iterations * num_answers * NUM_CELLS, solved_share(model, tested)))

    data = [{"prompt": prompt_of(sudoku), "puzzle": sudoku.puzzle, "solution": sudoku.solution} for sudoku in sudokus]
    tests = [step * num_iterations for step in spread(options.num_rounds, options.num_tests)]
    with tempfile.TemporaryDirectory() as folder:
        config = LLaDAGRPOConfig(
            folder, objective=objective, seed=seed, max_steps=options.num_rounds * num_iterations,
            per_device_train_batch_size=num_answers, num_generations=options.num_generations,
            max_completion_length=NUM_CELLS, block_length=NUM_CELLS, temperature=options.temperature,
            threshold=options.threshold, generation_kwargs={"stop_at_eos": False}, warmup_steps=0.15,
            lr_scheduler_type="linear", adam_beta2=0.99, weight_decay=0.0, max_grad_norm=1.0,
            bf16=False, gradient_checkpointing=False, save_strategy="no",
            logging_steps=num_iterations, report_to="none", disable_tqdm=True, **settings,
        )  # fmt: skip
        trainer = LLaDAGRPOTrainer(
            model, [sudoku_reward, solved_reward], config, Dataset.from_list(data), processing_class=make_tokenizer(),
            callbacks=[Measure(tests, test)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if entry.get("reward") is not None]
    return {
        "curve": curve,
        "rewards": [entry["reward"] for entry in logged],
        "passes": [entry["rollout/passes"] for entry in logged],
        "fallback_share": [entry["rollout/fallback_share"] for entry in logged],
    }


# --- table and figure -------------------------------------------------------------------------------------------------


def summarize(
    starts: dict[str, Any], runs: dict[str, list[dict[str, Any]]], options: SudokuOptions
) -> dict[str, Interval]:
    """Shares of solved test puzzles, by what was trained.

    Intervals are over the test puzzles for the models that learnt from solutions, over the seeds for the others.
    """

    def share(value: float) -> Interval:
        return proportion_interval(round(value * options.num_tested), options.num_tested)

    results = {
        "autoregressive": share(starts["autoregressive"]["solved"]),
        "LLaDA, the start": share(starts["llada"]["solved"]),
    }
    return results | {
        objective: mean_interval([run["curve"][-1][1] for run in found]) for objective, found in runs.items()
    }


def make_table(results: dict[str, Interval]) -> str:
    """Solved puzzles in percent with 95 % confidence intervals, and the points gained over the start."""
    base = results["LLaDA, the start"].mean
    rows = []
    for name, found in results.items():
        width = "" if found.half_width is None else f" ± {found.half_width * 100:.1f}"
        gain = f"{(found.mean - base) * 100:+.1f}" if name in OBJECTIVES else ""
        rows.append([name, f"{found.mean * 100:.1f}{width}", gain])
    return markdown_table(["", "puzzles solved (%)", "points over the start"], rows)


def plot(record: EvaluationRecord) -> Any:
    """Draw solved puzzles over generated tokens: seeds as thin lines, their mean with its 95 % interval.

    Raises:
        ValueError: for a record without the curves of the seeds.
    """
    if CURVES not in record.remarks:
        raise ValueError(f"The record must hold `{CURVES}` among its remarks, got none; run the experiment again.")
    figure = make_figure((8, 4.6))
    axes = figure.subplots()
    for objective, curves in record.remarks[CURVES].items():
        tokens = [place for place, _ in curves[0]]
        points = [mean_interval([curve[index][1] for curve in curves]) for index in range(len(tokens))]
        means = [point.mean * 100 for point in points]
        widths = [(point.half_width or 0.0) * 100 for point in points]
        [line] = axes.plot(tokens, means, marker="o", markersize=3, label=objective)
        bounds = (
            [mean - width for mean, width in zip(means, widths)],
            [mean + width for mean, width in zip(means, widths)],
        )
        axes.fill_between(tokens, *bounds, color=line.get_color(), alpha=0.15)
        for curve in curves:
            axes.plot(tokens, [share * 100 for _, share in curve], color=line.get_color(), linewidth=0.6)
    solved = record.results["autoregressive"].value * 100
    axes.axhline(solved, color="k", ls=":", linewidth=1, label="autoregressive")
    axes.set(xlabel="generated tokens", ylabel="puzzles solved (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle("4x4 Sudoku: reinforcement learning from one start")
    return figure


# --- command ----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Run the experiment."""
    args = parse_arguments(arguments)
    options = choose_options(args)
    experiment = Experiment("sudoku", dataclasses.asdict(options) | {"objectives": OBJECTIVES})
    # More seeds may be added to those that are there, and the starts know nothing of reinforcement learning.
    settings = dataclasses.asdict(options) | {"num_seeds": None}
    start_settings = {name: settings[name] for name in START_OPTIONS}

    def train(work: Callable[..., Any], jobs: dict[str, tuple], name: str, settings: dict[str, Any]) -> dict[str, Any]:
        return run_jobs(work, jobs, settings, args.output / f"{name}.jsonl", args.workers, args.overwrite)

    folders = {kind: str(args.output / kind) for kind in KINDS}
    starts = train(
        train_start, {kind: (kind, folder, options) for kind, folder in folders.items()}, "starts", start_settings
    )
    runs = {}
    for objective, own in OBJECTIVES.items():
        jobs = {f"seed {seed}": (objective, seed, folders["llada"], options) for seed in range(options.num_seeds)}
        runs[objective] = list(train(reinforce, jobs, objective, settings | own).values())
    results = summarize(starts, runs, options)
    described = {
        "name": "trained from scratch",
        "num_parameters": {kind: starts[kind]["num_parameters"] for kind in KINDS},
    }
    remarks = {CURVES: {objective: [run["curve"] for run in found] for objective, found in runs.items()}}
    remarks["solved_easy"] = {kind: starts[kind]["solved_easy"] for kind in KINDS}
    experiment.write(args.output, make_table(results), results, described, plot, remarks)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    defaults, parser = SudokuOptions(), make_parser("sudoku", __doc__)
    add_job_options(parser)
    parser.add_argument("--short", action="store_true", help="tiny models and one seed, to see that all runs")
    parser.add_argument("--choose", action="store_true", help="count other puzzles than the test ones")
    parser.add_argument("--seeds", type=int, help=f"trainings of each objective; {defaults.num_seeds} if unset")
    parser.add_argument("--rounds", type=int, help=f"generations of each training; {defaults.num_rounds} if unset")
    return parser.parse_args(arguments)


def choose_options(args: argparse.Namespace) -> SudokuOptions:
    """The defaults, or those of the short run, with what the command line replaces."""
    given = {"num_seeds": args.seeds, "num_rounds": args.rounds}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"judge": "train"} if args.choose else {}
    return dataclasses.replace(SHORT if args.short else SudokuOptions(), **given)


if __name__ == "__main__":
    main()
