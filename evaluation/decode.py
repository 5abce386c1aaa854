"""One benchmark of decoding: how accurate answers are, and in how few passes, over a list of settings of `generate`.

Tokens per pass do not depend on the machine, tokens per second do. One number sums a list of settings up: the area
under accuracy against parallelism, in which an accuracy below the best one counts less.
"""

import dataclasses
import itertools
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llada_core.conversation import cut_at_stop
from llada_core.digests import json_digest
from llada_core.loading import Checkpoint
from llada_core.records import EvaluationRecord, Score, environment, utc_now
from llada_core.tokenization import encode_chat
from modeling_llada import LLaDAAnswer, generate_many

# The penalty of an accuracy below the best one, and the points below the first accuracy at which a curve ends; d3LLM.
ALPHA, MAX_LOSS = 3.0, 5.0
# How an answer is compared with the expected ones: case and an article before it do not matter.
_ARTICLE = r"(?:an? |the )?"
MATCHES = {
    "starts": r"\s*{article}{answers}(?!\w)",
    "contains": r".*(?<!\w){answers}(?!\w)",
    "equals": r"\s*{article}{answers}\W*\Z",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt, and the answers any of which is right."""

    prompt: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one setting gave.

    Attributes:
        name: the setting as it was given; "default" if it sets nothing.
        options: of `generate`.
        accuracy: share of right answers, in [0, 1].
        standard_error: of `accuracy`.
        num_tokens: of all answers, up to the end of each, which counts as a token.
        num_passes: of all answers; a pass with several rows counts for each.
        seconds: for all answers; the median of the repeats.
    """

    name: str
    options: dict[str, Any]
    accuracy: float
    standard_error: float
    num_tokens: int
    num_passes: int
    seconds: float

    @property
    def tokens_per_pass(self) -> float:
        """Parallelism: tokens that stay in the answer for each pass."""
        return self.num_tokens / self.num_passes

    @property
    def tokens_per_second(self) -> float:
        """Speed on this machine."""
        return self.num_tokens / self.seconds


def read_questions(path: str | Path, limit: int | None = None) -> list[Question]:
    """Read a task: JSON Lines of `prompt`, and `answer` or the list `answers`; other keys are ignored.

    Raises:
        ValueError: for a file without questions, and a line that is not one.
        OSError: for a file that cannot be read.
    """
    questions = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            answers = [fields["answer"]] if "answer" in fields else fields["answers"]
            is_valid = isinstance(fields["prompt"], str) and isinstance(answers, list) and len(answers) > 0
            if not (is_valid and all(isinstance(answer, str) and answer.strip() for answer in answers)):
                raise TypeError("`prompt` must be text, and `answers` a list of texts")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'Line {number} of `{path}` must be like {{"prompt": "2 + 2 =", "answers": ["4"]}}: {error}.'
            ) from None
        questions.append(Question(fields["prompt"], tuple(answers)))
    if not questions:
        raise ValueError(f"`{path}` holds no questions; write one per line.")
    return questions[:limit]


def is_right(text: str, answers: Iterable[str], match: str = "starts") -> bool:
    """Whether a text begins with one of the answers, contains it, or is nothing else, as `match` says."""
    plain = [re.sub(rf"^{_ARTICLE}", "", answer.strip(), flags=re.IGNORECASE) for answer in answers]
    pattern = MATCHES[match].format(article=_ARTICLE, answers=f"(?:{'|'.join(map(re.escape, plain))})")
    return re.match(pattern, text, flags=re.IGNORECASE | re.DOTALL) is not None


def measure(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    name: str,
    options: dict[str, Any],
    *,
    batch_size: int = 1,
    chat: bool = False,
    match: str = "starts",
    seed: int = 0,
    repeats: int = 1,
) -> Outcome:
    """Answer all questions under one setting.

    Args:
        checkpoint: the model.
        questions: the task.
        name: of the setting.
        options: of `generate_many`.
        batch_size: questions answered at once.
        chat: put each prompt as a user's turn.
        match: a key of `MATCHES`.
        seed: question n draws with seed + n.
        repeats: times that everything is answered, for the seconds.

    Raises:
        ValueError: as `generate_many`.
    """
    tokenizer = checkpoint.tokenizer
    prompts = [
        encode_chat(tokenizer, [{"role": "user", "content": question.prompt}])
        if chat
        else tokenizer(question.prompt)["input_ids"]
        for question in questions
    ]
    seconds: list[float] = []
    answers: list[LLaDAAnswer] = []
    for _ in range(repeats):
        begun = time.perf_counter()
        answers = list(
            generate_many(checkpoint.model, prompts, batch_size, checkpoint.options, seed, tokenizer, **options)
        )
        seconds.append(time.perf_counter() - begun)
    mask_id = checkpoint.model.config.mask_token_id
    right = []
    for answer in answers:
        text = tokenizer.decode(cut_at_stop(answer.ids, checkpoint.stop_ids, mask_id), skip_special_tokens=True)
        right.append(is_right(text, questions[answer.index].answers, match))
    share = sum(right) / len(right)
    return Outcome(
        name=name,
        options=options,
        accuracy=share,
        standard_error=math.sqrt(share * (1 - share) / len(right)),
        num_tokens=sum(len(answer.ids) for answer in answers),
        num_passes=sum(answer.num_forward_passes for answer in answers),
        seconds=statistics.median(seconds),
    )


def curve(outcomes: Iterable[Outcome]) -> list[tuple[float, float]]:
    """The points that count for the area: tokens per pass and accuracy in per cent, from the slowest setting on.

    A point more than `MAX_LOSS` below the accuracy of the slowest setting is left out.
    """
    points = sorted((outcome.tokens_per_pass, 100 * outcome.accuracy) for outcome in outcomes)
    return [point for point in points if point[1] >= points[0][1] - MAX_LOSS]


def area_under_parallelism(points: Sequence[tuple[float, float]], best: float | None = None) -> float:
    """The weighted area under accuracy against tokens per pass (AUP).

    r_1 y_1 + sum over i > 1 of (r_i - r_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2, where
    W(y) = min(exp(-3 (1 - y / best)), 1).

    Args:
        points: of `curve`: tokens per pass r, ascending, and accuracies y in per cent.
        best: highest accuracy of the task in per cent, of any model that is compared; None is the highest one here.

    Returns:
        In tokens per pass times per cent; 0 if nothing is right.

    Source: d3LLM (arXiv:2601.07568), Accuracy Under Parallelism.
    """
    best = max(accuracy for _, accuracy in points) if best is None else best
    if best == 0:
        return 0.0
    weighted = [y * min(math.exp(-ALPHA * (1 - y / best)), 1.0) for _, y in points]
    widths = [after[0] - before[0] for before, after in itertools.pairwise(points)]
    steps = [width * (left + right) / 2 for width, left, right in zip(widths, weighted, weighted[1:])]
    return points[0][0] * points[0][1] + sum(steps)


def benchmark_decoding(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    settings: dict[str, dict[str, Any]],
    task: str,
    *,
    best: float | None = None,
    seed: int = 0,
    revision: str = "main",
    report: Callable[[Outcome], None] = lambda outcome: None,
    **how: Any,
) -> tuple[list[Outcome], EvaluationRecord]:
    """Measure all settings.

    Args:
        checkpoint: the model.
        questions: the task.
        settings: name to options of `generate`.
        task: the task's name in the record.
        best: see `area_under_parallelism`.
        seed: see `measure`.
        revision: of a model from the Hub.
        report: told every outcome.
        how: the other arguments of `measure`.

    Returns:
        The outcomes in the order of the settings, and a record with their numbers and the area, `aup`.

    Raises:
        ValueError: as `generate_many`.
    """
    from .run import describe_model  # needs the harness, which nothing else here does

    started, begun = utc_now(), time.monotonic()
    measure(checkpoint, questions[:1], "first call", {}, batch_size=1, chat=how.get("chat", False))
    outcomes = []
    for name, options in settings.items():
        outcomes.append(measure(checkpoint, questions, name, options, seed=seed, **how))
        report(outcomes[-1])
    results = {"aup": Score(area_under_parallelism(curve(outcomes), best))}
    for outcome in outcomes:
        results[f"{outcome.name}: accuracy"] = Score(outcome.accuracy, outcome.standard_error)
        results[f"{outcome.name}: tokens per pass"] = Score(outcome.tokens_per_pass)
        results[f"{outcome.name}: tokens per second"] = Score(outcome.tokens_per_second)
    digest = json_digest([dataclasses.asdict(question) for question in questions])
    record = EvaluationRecord(
        name=f"decode {task}",
        model=describe_model(checkpoint.model.name_or_path, "llada", revision),
        settings={"settings": settings, "questions": digest, "best": best, **how},
        results=results,
        seed=seed,
        started=started,
        seconds=round(time.monotonic() - begun, 1),
        num_questions=len(questions),
        **environment(),
    )
    return outcomes, record


def draw_curve(outcomes: Sequence[Outcome], path: str | Path, title: str) -> Path:
    """Draw accuracy against tokens per pass; points that do not count for the area are hollow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    kept = curve(outcomes)
    axes.plot(*zip(*kept), "-", color="tab:blue", linewidth=1)
    for outcome in outcomes:
        x, y = outcome.tokens_per_pass, 100 * outcome.accuracy
        fill = "tab:blue" if (x, y) in kept else "none"
        axes.errorbar(
            x, y, 100 * outcome.standard_error, fmt="o", color="tab:blue", markerfacecolor=fill, linewidth=0.6
        )
        axes.annotate(outcome.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.margins(x=0.15)  # room for the names
    axes.set(xlabel="tokens per pass", ylabel="accuracy (%)", title=title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return Path(path)
