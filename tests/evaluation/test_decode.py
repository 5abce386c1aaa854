"""Laws of the benchmark of decoding: what is right, which area counts, and that a record holds what was measured."""

import json
import math

import pytest

from llada_core.loading import Checkpoint, load_checkpoint
from llada_core.records import read_record, write_record
from llada_evaluation.decode import (
    Outcome,
    area_under_parallelism,
    benchmark_decoding,
    curve,
    draw_curve,
    is_right,
    read_questions,
)
from tests.helpers import REFERENCE


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(REFERENCE / "checkpoints" / "mha", device="cpu")


def outcome(tokens_per_pass: float, accuracy: float) -> Outcome:
    return Outcome(str(tokens_per_pass), {}, accuracy, 0.0, int(100 * tokens_per_pass), 100, 2.0)


@pytest.mark.parametrize(
    ("text", "match", "expected"),
    [
        (" Paris.", "starts", True),
        ("The paris of the north", "starts", True),
        ("Parisian", "starts", False),
        ("It is Paris, I think", "starts", False),
        ("It is\nParis, I think", "contains", True),
        ("unParis", "contains", False),
        ("Paris!\n", "equals", True),
        ("Paris and Rome", "equals", False),
    ],
)
def test_an_answer_is_right_by_its_beginning_anywhere_or_as_a_whole(text, match, expected) -> None:
    assert is_right(text, ("Lyon", "the Paris"), match) is expected


def test_at_one_accuracy_the_area_is_tokens_per_pass_times_per_cent() -> None:
    assert area_under_parallelism([(1.0, 80.0), (3.0, 80.0), (4.0, 80.0)]) == pytest.approx(4 * 80)


def test_a_lower_accuracy_counts_less_by_the_formula_of_d3llm() -> None:
    below = 76 * math.exp(-3 * (1 - 76 / 80))
    assert area_under_parallelism([(1.0, 80.0), (3.0, 76.0)]) == pytest.approx(80 + 2 * (80 + below) / 2)
    # Beside a better model, all of it counts less but the first point.
    both = 80 * math.exp(-3 * (1 - 80 / 90)) + 76 * math.exp(-3 * (1 - 76 / 90))
    assert area_under_parallelism([(1.0, 80.0), (3.0, 76.0)], best=90.0) == pytest.approx(80 + both)
    assert area_under_parallelism([(1.0, 0.0)]) == 0.0


def test_points_more_than_five_below_the_slowest_setting_do_not_count() -> None:
    points = curve([outcome(4.0, 0.7), outcome(1.0, 0.8), outcome(2.0, 0.74), outcome(3.0, 0.76)])
    assert points == [(1.0, pytest.approx(80)), (3.0, pytest.approx(76))]


def test_a_record_holds_every_setting_and_the_passes_are_those_of_generation(checkpoint, tmp_path) -> None:
    questions = tmp_path / "sums.jsonl"
    lines = [{"prompt": "the house", "answers": ["a", "b"]}, {"prompt": "one two three", "answer": "four"}]
    questions.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    shared = {"max_new_tokens": 8, "block_length": 4, "stop_at_eos": False}
    settings = {"default": shared, "steps=4": {**shared, "steps": 4}, "speculate=2": {**shared, "speculate": 2}}
    outcomes, record = benchmark_decoding(
        checkpoint, read_questions(questions), settings, "sums", match="contains", batch_size=2, repeats=2
    )
    assert [(one.name, one.num_tokens) for one in outcomes] == [(name, 16) for name in settings]
    assert [one.num_passes for one in outcomes[:2]] == [16, 8] and outcomes[2].num_passes <= 16
    assert outcomes[2].accuracy == outcomes[0].accuracy
    assert [one.tokens_per_pass for one in outcomes[:2]] == [1.0, 2.0]
    found = read_record(write_record(tmp_path, record))
    assert found.results["steps=4: tokens per pass"].value == 2.0
    assert found.results["aup"].value == area_under_parallelism(curve(outcomes))
    assert found.settings["settings"]["steps=4"]["steps"] == 4 and found.num_questions == 2
    assert draw_curve(outcomes, tmp_path / "curve.png", "sums").stat().st_size > 5000


@pytest.mark.parametrize(
    "line", ['{"prompt": "a"}', '{"prompt": 3, "answer": "b"}', '{"prompt": "a", "answers": []}', "[1]", "{", '""']
)
def test_a_line_that_is_no_question_is_named(tmp_path, line) -> None:
    file = tmp_path / "task.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Line 2 of `.*task\.jsonl` must be like"):
        read_questions(file)


def test_a_task_without_questions_is_refused(tmp_path) -> None:
    (tmp_path / "task.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no questions"):
        read_questions(tmp_path / "task.jsonl")
