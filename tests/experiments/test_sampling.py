"""Laws of the sampling study: questions, right answers, settings, and a run on the bundled model."""

import json

import pytest

from experiments import sampling


def write_questions(path, count):
    lines = [json.dumps({"question": f"What is {n}?", "answers": [f"number {n}", f"n{n}"]}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_questions_are_drawn_the_same_every_time(tmp_path):
    path = write_questions(tmp_path / "questions.jsonl", 20)
    questions = sampling.read_questions(path, 5)
    assert questions == sampling.read_questions(path, 5)
    number = questions[0].question.removeprefix("What is ").removesuffix("?")
    assert questions[0].answers == (f"number {number}", f"n{number}")
    with pytest.raises(ValueError, match=r"`count` must be at most .* \(20\), got 21"):
        sampling.read_questions(path, 21)


@pytest.mark.parametrize(
    "text, is_right",
    [("It is paris.", True), ("Parisians say so.", False), ("The answer: New York!", True), ("", False)],
)
def test_an_answer_is_right_if_it_holds_a_right_one_as_whole_words(text, is_right):
    assert sampling.is_right(text, ["Paris", "New York"]) is is_right


def test_every_study_varies_one_option_and_shares_the_plain_setting():
    settings = sampling.make_settings()
    labels = [setting.label for setting in settings]
    assert labels.count("remasking=random, block_length=16, steps=16") == 3
    assert len(settings) == 26 and len(set(labels)) == 22
    assert all(setting.options["steps"] >= 16 // setting.options["block_length"] for setting in settings)


def test_the_study_runs_on_the_bundled_model(tmp_path, monkeypatch, capsys):
    for name, values in (("STEPS", (16, 1)), ("BLOCK_LENGTHS", (8,)), ("GUIDANCE", (1.0,))):
        monkeypatch.setattr(sampling, name, values)
    path = write_questions(tmp_path / "questions.jsonl", 2)
    sampling.main(["--questions", str(path), "--count", "2", "--output", str(tmp_path)])
    table = (tmp_path / "sampling.md").read_text()
    assert "| remasking=random, block_length=16, steps=1 | 1.0 | 0." in table
    assert table == capsys.readouterr().out
    assert (tmp_path / "sampling.png").read_bytes().startswith(b"\x89PNG")
    [record] = tmp_path.glob("*.record.json")
    found = json.loads(record.read_text())
    assert found["model"]["name"] == "llada-tiny" and len(found["model"]["sha256"]) == 64
    assert len(found["results"]) == 8
