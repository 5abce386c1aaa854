"""How remasking, steps, block length and guidance change the answers of a LLaDA: the paper's ablations of sampling.

    python examples/llada_tiny/prepare_data.py           # these two make questions for the bundled model;
    python examples/llada_tiny/prepare_instructions.py   # or pass JSON lines with `question` and `answers`
    python -m experiments.sampling --questions runs/llada-tiny-data/phrasings.jsonl

Minutes on two cores. Every setting answers the same questions. It writes a table, a figure and a record.

Source: LLaDA (arXiv:2502.09992), section 3.4 and App. B.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llada_core.digests import checkpoint_hash
from llada_core.loading import load_checkpoint
from llada_core.records import EvaluationRecord
from llada_core.tokenization import encode_chat

from .common import Experiment, Interval, make_figure, make_parser, markdown_table, proportion_interval

# Tokens of an answer; the settings share them out.
ANSWER_LENGTH = 16
# Questions that go through the model together.
BATCH = 64
STEPS = (16, 8, 4, 2, 1)
BLOCK_LENGTHS = (16, 8, 4, 2)
REMASKING = ("low_confidence", "random")
GUIDANCE = (0.0, 0.5, 1.0, 2.0)
STUDIES = ("steps", "block_length", "cfg_scale")


class Question(NamedTuple):
    """A question and the answers that count as right."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """One way to sample.

    Attributes:
        study: what is varied, one of `STUDIES`.
        line: its curve in the figure: the remasking.
        options: of `generate`.
    """

    study: str
    line: str
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """The options in words; guidance of 0 is none."""
        return ", ".join(f"{name}={value}" for name, value in self.options.items() if value)


class Outcome(NamedTuple):
    """What a setting gave.

    Attributes:
        right: share of right answers.
        passes: mean number of forward passes of an answer.
        ends: share of answers that hold the end-of-text token.
    """

    right: Interval
    passes: float
    ends: float


def make_settings() -> list[Setting]:
    """Steps in one block, blocks at one token per step, guidance in one block at one token per step."""
    plain = {"block_length": ANSWER_LENGTH, "steps": ANSWER_LENGTH}
    values: tuple[Sequence[float], ...] = (STEPS, BLOCK_LENGTHS, GUIDANCE)
    return [
        Setting(study, remasking, {"remasking": remasking, **plain, study: value})
        for study, values_of_it in zip(STUDIES, values)
        for remasking in REMASKING
        for value in values_of_it
    ]


def read_questions(path: Path, count: int) -> list[Question]:
    """Draw questions, the same at every call.

    Raises:
        ValueError: if the file holds fewer.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) < count:
        raise ValueError(f"`count` must be at most the number of questions in {path} ({len(lines)}), got {count}.")
    return [Question(line["question"], tuple(line["answers"])) for line in random.Random(0).sample(lines, count)]


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of the answers as whole words; case does not matter."""
    pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, answers))})(?!\w)"
    return re.search(pattern, text, flags=re.IGNORECASE) is not None


def measure(model: Any, tokenizer: Any, questions: Sequence[Question], setting: Setting) -> Outcome:
    """Answer every question in a conversation of its own, greedily."""
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": question.question}]) for question in questions]
    num_right, num_ended, num_passes = 0, 0, 0
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer.pad({"input_ids": prompts[start : start + BATCH]}, padding_side="left", return_tensors="pt")
        output = model.generate(
            batch["input_ids"], batch["attention_mask"], generator=torch.Generator().manual_seed(start),
            max_new_tokens=ANSWER_LENGTH, return_dict_in_generate=True, **setting.options,
        )  # fmt: skip
        answers = output.sequences[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        num_right += sum(is_right(text, question.answers) for text, question in zip(texts, questions[start:]))
        num_ended += int((answers == tokenizer.eos_token_id).any(-1).sum())
        num_passes += int(output.num_forward_passes.sum())
    count = len(prompts)
    return Outcome(proportion_interval(num_right, count), num_passes / count, num_ended / count)


def make_table(results: dict[str, Outcome]) -> str:
    """The outcomes with 95 % confidence intervals over the questions."""
    rows = [
        [label, f"{found.passes:.1f}", f"{found.right.mean:.3f} ± {found.right.half_width:.3f}", f"{found.ends:.2f}"]
        for label, found in results.items()
    ]
    return markdown_table(["", "passes per answer", "right", "answers that end"], rows)


def plot(record: EvaluationRecord) -> Any:
    """Draw a panel for each study, a line for each remasking, with 95 % intervals over the questions."""
    figure, settings = make_figure((10.5, 3.6)), make_settings()
    for axes, study in zip(figure.subplots(1, len(STUDIES), sharey=True), STUDIES):
        for place, line in enumerate(REMASKING):
            chosen = [setting for setting in settings if (setting.study, setting.line) == (study, line)]
            scores = [record.results[setting.label] for setting in chosen]
            # Beside each other, so that no interval hides another.
            places = [number + 0.12 * (place - 0.5) for number in range(len(chosen))]
            errors = [1.96 * (score.standard_error or 0.0) for score in scores]
            axes.errorbar(places, [score.value for score in scores], errors, marker="o", label=line)
        axes.set_xticks(range(len(chosen)), [f"{setting.options[study]:g}" for setting in chosen])
        axes.set_xlabel(study)
        axes.grid(visible=False, axis="x")
    figure.axes[0].set_ylabel("share of right answers")
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].legend(title="remasking", loc="lower left", title_fontsize=8.5)
    asked = f"{record.settings['count']} questions, {record.settings['answer_length']} tokens, one token per pass"
    figure.axes[0].set_title(f"{record.model['name']}: {asked} unless named")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure every setting, print the table, write table, figure and record."""
    args = parse_arguments(arguments)
    settings, questions = make_settings(), read_questions(args.questions, args.count)
    about = {"questions": args.questions.name, "count": args.count, "answer_length": ANSWER_LENGTH}
    experiment = Experiment("sampling", about)
    checkpoint = load_checkpoint(args.model, "cpu", "float32")
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    results: dict[str, Outcome] = {}
    for setting in settings:
        # The plain setting belongs to all three studies.
        if setting.label in results:
            continue
        start = time.perf_counter()
        results[setting.label] = measure(model, tokenizer, questions, setting)
        print(f"{setting.label}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    folder = Path(model.config.name_or_path)
    described = {"name": folder.name, "sha256": checkpoint_hash(folder) if folder.is_dir() else None}
    shares = {label: found.right for label, found in results.items()}
    experiment.write(args.output, make_table(results), shares, described, plot)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("sampling", __doc__)
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with `question` and `answers`")
    parser.add_argument("--model", help="folder or Hub id; the bundled model if unset")
    parser.add_argument("--count", type=int, default=256, help="questions to ask")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
