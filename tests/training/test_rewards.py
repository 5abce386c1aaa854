"""Laws of the rewards: what is right gets 1, nothing that a model writes is executed."""

import importlib.util
from fractions import Fraction

import pytest

from llada_training.rewards import (
    countdown_reward,
    format_reward,
    math_reward,
    read_expression,
    sudoku_reward,
    sudoku_score,
)

PUZZLE, SOLUTION = "1200340021004300", "1234341221434321"
HAS_MATH = importlib.util.find_spec("math_verify") is not None


def test_a_sudoku_scores_the_share_of_its_empty_cells():
    wrong = SOLUTION[:2] + "43" + SOLUTION[4:]
    completions = [SOLUTION, f"<answer>{wrong}</answer>", SOLUTION[:8], "", "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1 end 7"]
    assert sudoku_reward(completions, [PUZZLE] * 5, [SOLUTION] * 5, other=[1] * 5) == [1.0, 0.75, 0.5, 0.0, 1.0]


def test_the_grid_is_read_from_the_last_answer_tags():
    completion = f"I try 1111. <answer>1</answer> No: <answer>{SOLUTION}</answer>"
    assert sudoku_score(completion, PUZZLE, SOLUTION) == 1.0
    assert sudoku_score([{"role": "assistant", "content": completion}], PUZZLE, SOLUTION) == 1.0


def test_a_countdown_needs_every_number_once_and_the_value():
    def score(expression):
        return countdown_reward([f"So <answer>{expression}</answer>"], [[3, 5, 5]], [13])[0]

    assert score("3 + 5 + 5") == 1.0
    assert score("(3+5)+5 = 13") == 1.0
    assert score("3 * 5 + 5") == 0.1
    assert score("5 / (5 - 5) + 3") == 0.0
    assert score("3 / (5 - 5)") == 0.1
    assert score("3 + 5") == score("8 + 5") == score("3 + 5 + 5 + 0") == score("") == 0.0
    assert countdown_reward(["3 + 5 + 5"], [[3, 5, 5]], [13]) == [0.0]


@pytest.mark.parametrize(
    "text",
    ["2 ** 9", "9**9**9**9", "2 // 1", "__import__('os')", "1_0", "1e9", "1.5", "(" * 300, "(" * 90 + "1", "1 +", "x",
     "1, 2", "[1]", "1 if 1 else 2", "٣ + 1", "1\n+ 1", "~1", "01 + 1", "1" * 201],
)  # fmt: skip
def test_what_is_no_expression_of_the_four_operations_is_not_read(text):
    assert read_expression(text) is None


def test_expressions_are_exact():
    assert read_expression("1 / 3 * 3") == (Fraction(1), [1, 3, 3])
    assert read_expression("-(2 - 5)") == (Fraction(3), [2, 5])
    assert read_expression("1 / (2 - 2)") == (None, [1, 2, 2])


def test_the_format_is_one_answer_at_the_end():
    texts = ["why <answer>5</answer>\n", "<answer></answer>", "<answer>5</answer> so", "5",
             "<answer>5</answer><answer>6</answer>"]  # fmt: skip
    assert format_reward(texts, other=None) == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.skipif(not HAS_MATH, reason="math-verify is not installed")
def test_mathematical_answers_are_compared_by_value():
    answers = ["She has 5 + 67 = 72 apples. #### 72", "\\frac{1}{2}", "\\frac{1}{2}", "(1, 2)", "72", "72", "72"]
    texts = [
        "so the answer is 72",
        "\\boxed{0.5}",
        "<answer>1/2</answer>",
        "$\\boxed{(1,2)}$",
        "73",
        "",
        "\\boxed{72.0}",
    ]
    assert math_reward(texts, answers) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0]


@pytest.mark.skipif(not HAS_MATH, reason="math-verify is not installed")
def test_an_answer_whose_reference_cannot_be_read_is_left_out():
    assert math_reward(["72"], [""]) == [None]


@pytest.mark.skipif(HAS_MATH, reason="math-verify is installed")
def test_without_its_package_the_reward_of_mathematics_says_how_to_get_it():
    with pytest.raises(
        ImportError, match=r"`math_reward` needs the package `math_verify`; .*pip install \"\.\[train\]\""
    ):
        math_reward(["72"], ["72"])
