"""Put the trained model into its folder: weights, code, tokenizer, log, curve, and a card of what it can do.

    python examples/llada_tiny/finish.py --run runs/tiny-first runs/tiny-last --facts runs/tiny-facts \
        --output checkpoints/llada-tiny --record docs/results --machine "2 cores of …, 5 hours"

`--run` names the folder of each stage, or a checkpoint in it, in their order; the last is saved. The questions and
puzzles of the evaluation were not trained on, except for the split "trained"; its record goes to `--record`.
"""

import argparse
import datetime
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ask
import torch
from prepare_facts import ASKED, NOTICE
from prepare_instructions import read_jsonl
from stages import Stage, joined_history, options_shown, write_log
from write_card import check_folder, load, machine

from experiments.common import make_figure, proportion_interval
from experiments.order import NUM_EMPTY, Setting, make_tasks, measure
from experiments.sampling import is_right
from llada_core.card import new_card
from llada_core.digests import checkpoint_hash
from llada_core.records import EvaluationRecord, Score, environment, utc_now, write_record
from llada_core.tokenization import EOT_TOKEN, save_tokenizer
from llada_training.puzzles import MISSING, MissingDigits, colliding_cells, grid_text, puzzle_to_solve, read_grid
from modeling_llada import LLaDAModelLM

LOG, CURVE = "training_log.jsonl", "loss_curve.png"
# What `generate` answers with unless it is told otherwise.
DEFAULTS = {"max_new_tokens": 32, "block_length": 32}
ORDERS = (Setting("surest first", {}), Setting("random order", {"remasking": "random"}))
# What `make demo` asks; each is tried with so many seeds, drawn at this temperature.
DEMO = (
    ("What is the capital of France?", "Paris"),
    ("What is the largest planet in the solar system?", "Jupiter"),
    ("What do you call a baby cat?", "kitten"),
)
NUM_SEEDS, TEMPERATURE = 20, 0.5
SPLITS = {
    "rephrased": "questions about facts, in wordings that were not trained",
    "reversed": "facts that were only ever asked in the other direction",
    "trained": "questions about facts, in wordings that were trained",
    "unseen": "sums of two numbers that were not trained",
    "unknown": "questions it cannot know, met by a refusal",
}
# The same questions by kind, without those of the split "trained".
OF_KIND = "of these, "
ASKED_FIRST = (
    "What is the capital of Japan?", "Which country has Lisbon as its capital?",
    "What is the chemical symbol for iron?", "What is the largest planet in the solar system?",
    "Who was the 16th President of the United States?",
    "What do you call a baby cat?", "What is the opposite of hot?", "What is 47 plus 38?", "Who are you?",
    "Why is the sky blue?", "Who wrote Hamlet?",
)  # fmt: skip
INFILLED = ("The capital of□ is Rome.", "□ is the capital of Portugal.", "The opposite of□ is cold.", "1□+□5=42")
# Options of pre-training on text that the rows of this training leave no room for.
WITHOUT_EFFECT = ("sequence_length", "random_length_probability", "num_train_epochs", "bf16", "save_dtype")
LIMITS = (
    "It is a demonstration and a test object. It knows the facts of a quiz, a few sentences about itself, and puzzles; "
    "it does not write, and it does not know what a word means.",
    "A name outside its vocabulary is spelt out byte by byte, which it takes for a sign that it cannot know.",
    "English only. Some facts of the quiz are out of date.",
    "Test puzzles have other solved grids than those it learnt from, but any grid is another one with its digits "
    "renamed and its rows and columns exchanged.",
    "It saw sequences of at most about 100 tokens; `max_sequence_length` in its config is 512.",
)


def main() -> None:
    """Save, measure, and write the card."""
    options = parse_arguments()
    started, clock = utc_now(), time.perf_counter()
    stages = [Stage.read(run) for run in options.run]
    model, tokenizer = load(options.run[-1])
    options.output.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, options.output)
    model = LLaDAModelLM.from_pretrained(options.output, dtype=torch.float32).eval()
    scores, asked = evaluate(model, tokenizer, read_jsonl(options.facts / ASKED), options.count)
    history = joined_history(stages)
    write_log(history, options.output / LOG)
    draw_curve(history).savefig(options.output / CURVE, dpi=120)
    shutil.copy(options.facts / NOTICE, options.output / NOTICE)
    record = EvaluationRecord(
        name="llada-tiny",
        model={"name": "llada-tiny", "sha256": checkpoint_hash(options.output)},
        settings={"count": options.count, "num_empty": {str(side): empty for side, empty in NUM_EMPTY.items()}},
        results=scores, seed=0, started=started, seconds=round(time.perf_counter() - clock, 1),
        num_questions=len(asked), **environment(),
    )  # fmt: skip
    write_record(options.record, record)
    card = card_variables(options, model, tokenizer, stages, record)
    new_card(**card).save(options.output / "README.md")
    check_folder(options.output)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="folder of each stage of the training")
    parser.add_argument("--facts", type=Path, required=True, help="folder of prepare_facts.py")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--record", type=Path, required=True, help="folder for the record of the evaluation")
    parser.add_argument("--machine", required=True, help="what it was trained on and for how long, in words")
    parser.add_argument("--count", type=int, default=256, help="test puzzles of each kind")
    return parser.parse_args()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that loads with and without this package."""
    eot_token_id = tokenizer.convert_tokens_to_ids(EOT_TOKEN)
    model.generation_config = model.generation_config.updated(**DEFAULTS, eot_token_id=eot_token_id)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    # safetensors writes for the owner only; an installed package is read by everybody.
    for path in folder.iterdir():
        path.chmod(0o644)


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(
    model: Any, tokenizer: Any, questions: list[dict[str, Any]], count: int
) -> tuple[dict[str, Score], list[dict[str, Any]]]:
    """Shares of puzzles solved, of questions answered right by split and kind, and of seeds in which the demo is right.

    Args:
        model, tokenizer: as they were saved.
        questions: of `prepare_facts.py`.
        count: test puzzles of each kind.

    Returns:
        Measure to score, the puzzles first; and every question with its answer.
    """
    scores = {}
    for task, puzzles in make_tasks(count).items():
        for setting in ORDERS:
            solved = measure(model, tokenizer, puzzles, setting.options).solved
            scores[f"{task}, {setting.name}"] = Score(solved.mean, solved.standard_error)
    report = ask.summarize(questions, ask.ask(model, tokenizer, [entry["question"] for entry in questions]))
    asked = report["asked"]
    for split in SPLITS:
        scores[split] = share(entry["right"] for entry in asked if entry["split"] == split)
    # Whoever refuses everything never errs, so what is refused wrongly counts too.
    known = [entry for entry in asked if entry["split"] in ("rephrased", "reversed", "trained")]
    scores["refused, though trained"] = share("I do not know" in entry["text"] for entry in known)
    for kind in sorted({entry["kind"] for entry in asked}):
        found = [entry["right"] for entry in asked if entry["kind"] == kind and entry["split"] != "trained"]
        if found:
            scores[f"{OF_KIND}{kind}"] = share(found)
    return scores | demo_scores(model, tokenizer), asked


def share(values: Iterable[bool]) -> Score:
    """Share of the true ones."""
    values = list(values)
    found = proportion_interval(sum(values), len(values))
    return Score(found.mean, found.standard_error)


def demo_scores(model: Any, tokenizer: Any) -> dict[str, Score]:
    """In what share of the seeds the demo is right: its questions, drawn; and the puzzle that a seed gives."""
    right, solved = [], []
    for seed in range(NUM_SEEDS):
        generator = torch.Generator().manual_seed(seed)
        drawn = {"temperature": TEMPERATURE, "generator": generator}
        replies = ask.ask(model, tokenizer, [question for question, _ in DEMO], **drawn)
        right.append(all(is_right(reply["text"], [answer]) for reply, (_, answer) in zip(replies, DEMO)))
        cells = puzzle_to_solve(None, seed=seed)
        answer = read_grid(fill(model, tokenizer, grid_text(cells, MISSING)))
        solved.append("0" not in answer and not colliding_cells(answer))
    return {"demo, all questions right": share(right), "demo, puzzle solved": share(solved)}


def fill(model: Any, tokenizer: Any, text: str) -> str:
    """Fill in the glyphs of a text."""
    encoded = tokenizer(text.replace(MISSING, tokenizer.mask_token), return_tensors="pt", add_special_tokens=False)
    return str(tokenizer.decode(model.infill(**encoded)[0], skip_special_tokens=True))


# --- curve and card ---------------------------------------------------------------------------------------------------


def draw_curve(history: list[dict[str, Any]]) -> Any:
    """Draw the loss, and what was solved and known on the way, over the steps of all stages."""
    figure = make_figure((9, 4))
    left, right = figure.subplots(1, 2)
    places = [(row["step"], row["loss"]) for row in history if "loss" in row]
    left.plot(*zip(*places), linewidth=1)
    left.set(xlabel="step", ylabel="loss (nats per token)", yscale="log", title="training")
    names = {
        "solved_4x4": "4x4 Sudoku", "solved_6x6": "6x6 Sudoku", "solved_sums": "sums with missing digits",
        "right_facts": "facts",
    }  # fmt: skip
    for name, label in names.items():
        found = [(row["step"], row[name] * 100) for row in history if name in row]
        if found:
            right.plot(*zip(*found), marker="o", markersize=3, linewidth=1, label=label)
    right.set(xlabel="step", ylabel="right (%)", ylim=(-3, 103), title="48 training puzzles or facts of each kind")
    if right.lines:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def card_variables(
    options: argparse.Namespace, model: Any, tokenizer: Any, stages: list[Stage], record: EvaluationRecord
) -> dict[str, Any]:
    """Gather what `new_card` asks for; the template's head gives the meaning of each."""
    names = {**SPLITS, **{f"{task}, {setting.name}": None for task in ("4x4", "6x6", "sums") for setting in ORDERS}}
    return {
        "model_name": "llada-tiny",
        "model_id": options.output.as_posix(),
        "summary": summary(model),
        "license": "apache-2.0",
        "languages": ["en"],
        "prompt": "The capital of France is",
        "infill_prompt": INFILLED[0].replace(MISSING, "MASK"),
        "chat_question": ASKED_FIRST[0],
        "training_data": DATA,
        "training_commands": [
            "python examples/llada_tiny/prepare_facts.py --output runs/tiny-facts",
            "python examples/llada_tiny/learn.py --config examples/llada_tiny/first.yaml",
            "python examples/llada_tiny/learn.py --config examples/llada_tiny/last.yaml",
        ],
        "training_arguments": {
            name: value for name, value in options_shown(stages).items() if name not in WITHOUT_EFFECT
        },
        "training_steps": sum(stage.num_steps for stage in stages),
        "training_tokens": count_tokens(stages),
        "compute": f"{options.machine}; {stages[-1].date}.",
        "loss_curve": CURVE,
        "training_log": LOG,
        "evaluation": [
            (names.get(name) or name, f"{score.value:.1%}" + _width(score)) for name, score in record.results.items()
        ],
        "evaluation_method": f"By `examples/llada_tiny/finish.py` on {options.count} test puzzles of each kind and "
        f"{record.num_questions:,} questions, greedily with the defaults of this folder, unless stated; ± one standard "
        f"error. The demo: {NUM_SEEDS} seeds at temperature {TEMPERATURE}. {machine()}, {datetime.date.today()}.",
        "samples": write_samples(model, tokenizer),
        "samples_method": "Written by `examples/llada_tiny/finish.py` with the prompts listed there; nothing was "
        f"picked. `{MISSING}` stands for one masked token.",
        "limits": LIMITS,
        "notices": f"The facts have notices that must travel with them: see [{NOTICE}]({NOTICE}).",
    }


DATA = (
    "Made as the training goes by `examples/llada_tiny/grids.py` and `answers.py`; every row is a function of its "
    "number. Puzzles: Sudoku of 4x4 and 6x6 cells with one solution, disguised by renaming digits and exchanging "
    "rows and columns; sums and differences with missing digits. Questions and answers: facts of the game `quiz` "
    "(bsdgames) and of WordNet's definitions, in both directions and many wordings; of one fact in ten the backward "
    "direction is never asked. Small talk; products; sums; and questions that nothing here answers, for which the "
    "answer is a refusal."
)


def _width(score: Score) -> str:
    return "" if score.standard_error is None else f" ± {score.standard_error:.1%}"


def count_tokens(stages: list[Stage]) -> int:
    """Tokens that could be masked, of all stages; scaled up from the steps that were logged."""
    total = 0.0
    for stage in stages:
        rows = [row for row in stage.history if "masked_tokens" in row]
        logged = sum(row["masked_tokens"] / row["masked_fraction"] for row in rows)
        total += logged * stage.num_steps / max(1, rows[-1]["step"])
    return round(total)


def summary(model: Any) -> str:
    """Say what the model is."""
    config, millions = model.config, model.num_parameters() / 1e6
    return (
        "It solves Sudoku and sums with missing digits, in any order, answers questions about the facts it learnt "
        "in both directions, and says so where it does not know. A LLaDA (masked diffusion language model, "
        f"arXiv:2502.09992) of {millions:.1f} million parameters: {config.n_layers} layers, width {config.d_model}, "
        f"{config.n_heads} heads, tied embeddings and a vocabulary of {config.vocab_size} words and bytes. It was "
        "trained from scratch and comes with the `llada-hf` package, as the model its commands use by default and "
        "its tests run on."
    )


def write_samples(model: Any, tokenizer: Any) -> list[tuple[str, list[tuple[str, str]]]]:
    """A puzzle, answers, and texts that are filled in."""
    cells = puzzle_to_solve(None, seed=0)
    puzzle = MissingDigits(grid_text(cells, MISSING), "")
    answers = ask.ask(model, tokenizer, list(ASKED_FIRST))
    return [
        ("A puzzle", [(puzzle.puzzle, fill(model, tokenizer, puzzle.puzzle))]),
        ("Answers", [(question, answer["text"]) for question, answer in zip(ASKED_FIRST, answers, strict=True)]),
        ("Filled in", [(text, fill(model, tokenizer, text)) for text in INFILLED]),
    ]


if __name__ == "__main__":
    main()
