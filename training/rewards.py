"""Rewards for reinforcement learning: plain functions with the signature that TRL calls.

Each takes the completions, and the columns of the data set by name, and returns a number for each completion; None
leaves a completion out. Nothing that a model has written is ever executed.
"""

import ast
import re
import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from llada_core.lazy import requires_extra

from .puzzles import EMPTY

# A completion: its text, or the messages of a conversation.
Completion = str | list[dict[str, Any]]

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
# What stands before the answer in a solution of GSM8K.
GSM8K_MARK = "####"
# Longest expression that is read, in characters.
MAX_EXPRESSION = 200
# What an expression of Countdown may consist of.
ARITHMETIC = re.compile(r"[0-9+\-*/() ]+")
# An expression of all the numbers with another value, as in d1.
WRONG_VALUE = 0.1
# Seconds for reading or comparing one answer.
MATH_TIMEOUT = 5


def text_of(completion: Completion) -> str:
    """The text of a completion, of a conversation that of its last message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def answer_of(completion: Completion) -> str | None:
    """What stands in the last pair of answer tags; None without one."""
    answers = ANSWER.findall(text_of(completion))
    return answers[-1].strip() if answers else None


def format_reward(completions: Sequence[Completion], **columns: Any) -> list[float]:
    """1 for a completion that ends with its only, not empty, `<answer>…</answer>`, else 0."""

    def is_right(text: str) -> bool:
        answers = ANSWER.findall(text)
        return len(answers) == 1 and bool(answers[0].strip()) and text.rstrip().endswith("</answer>")

    return [float(is_right(text_of(completion))) for completion in completions]


# --- Sudoku -----------------------------------------------------------------------------------------------------------


def sudoku_reward(
    completions: Sequence[Completion], puzzle: Sequence[str], solution: Sequence[str], **columns: Any
) -> list[float]:
    """Share of the empty cells that are filled in right, in [0, 1].

    The grid is read from the answer tags, or else from the whole completion: its digits in a row, of which those
    beyond the grid do not count and missing ones are wrong.

    Args:
        completions: what the model wrote.
        puzzle: cells of each puzzle, `0` where one is empty.
        solution: cells of each solution.
        columns: other columns; not read.

    Source: d1 (arXiv:2504.12216), the reward of 4x4 Sudoku.
    """
    return [sudoku_score(*example) for example in zip(completions, puzzle, solution)]


def sudoku_score(completion: Completion, puzzle: str, solution: str) -> float:
    """See `sudoku_reward`, for one completion."""
    answer = answer_of(completion)
    digits = re.sub(r"[^0-9]", "", text_of(completion) if answer is None else answer)
    digits = digits[: len(solution)].ljust(len(solution), EMPTY)
    empty = [cell for cell, digit in enumerate(puzzle) if digit == EMPTY]
    return sum(digits[cell] == solution[cell] for cell in empty) / max(1, len(empty))


# --- Countdown --------------------------------------------------------------------------------------------------------


def countdown_reward(
    completions: Sequence[Completion], numbers: Sequence[Sequence[int]], target: Sequence[int], **columns: Any
) -> list[float]:
    """1 for an expression of all the numbers, each once, that equals the target; 0.1 for another value; else 0.

    The expression stands between answer tags; what follows an equals sign is not read.

    Args:
        completions: what the model wrote.
        numbers: of each puzzle.
        target: of each puzzle.
        columns: other columns; not read.

    Source: d1 (arXiv:2504.12216), the reward of Countdown.
    """
    return [countdown_score(*example) for example in zip(completions, numbers, target)]


def countdown_score(completion: Completion, numbers: Sequence[int], target: int) -> float:
    """See `countdown_reward`, for one completion."""
    expression = (answer_of(completion) or "").partition("=")[0].strip()
    read = read_expression(expression)
    if read is None or sorted(read[1]) != sorted(numbers):
        return 0.0
    return 1.0 if read[0] == target else WRONG_VALUE


def read_expression(expression: str) -> tuple[Fraction | None, list[int]] | None:
    """Read an expression of whole numbers, + - * / and parentheses.

    Returns:
        Its exact value, None for a division by zero, and the numbers in it; or None if it is anything else, or longer
        than `MAX_EXPRESSION`.
    """
    if len(expression) > MAX_EXPRESSION or not ARITHMETIC.fullmatch(expression):
        return None
    try:
        tree = ast.parse(expression, mode="eval").body
        numbers: list[int] = []
        return _value(tree, numbers), numbers
    except ZeroDivisionError:
        return None, [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]  # type: ignore[misc]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.AST, numbers: list[int]) -> Fraction:
    """Value of a node; its numbers are added to the list.

    Raises:
        ValueError: for anything but whole numbers and the four operations.
    """
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, numbers)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
        left, right = _value(node.left, numbers), _value(node.right, numbers)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        return left * right if isinstance(node.op, ast.Mult) else left / right
    raise ValueError("not an expression of the four operations")


# --- mathematics ------------------------------------------------------------------------------------------------------


def math_reward(completions: Sequence[Completion], answer: Sequence[str], **columns: Any) -> list[float | None]:
    """1 for the right answer to a mathematical question, else 0; None where the reference cannot be read.

    Numbers, expressions, sets, intervals and matrices are compared as such: 1/2 equals 0.5 and \\frac{1}{2}. Answers
    are looked for in \\boxed{}, LaTeX and numbers, in the answer tags if there are some.

    Args:
        completions: what the model wrote.
        answer: reference answers: LaTeX or a number (MATH), or a solution that ends with `#### 72` (GSM8K).
        columns: other columns; not read.

    Raises:
        ImportError: without `math-verify`, which the extra `train` brings.
    """
    with requires_extra("train", "`math_reward`"):
        from math_verify import parse, verify
    # It limits time by an alarm, which only the main thread can set.
    seconds = MATH_TIMEOUT if threading.current_thread() is threading.main_thread() else None

    def score(completion: Completion, reference: str) -> float | None:
        reference = reference.rpartition(GSM8K_MARK)[2].strip()
        gold = parse(reference if "\\boxed" in reference else f"${reference}$", parsing_timeout=seconds)
        if not gold:
            return None
        tagged = answer_of(completion)
        found = parse(text_of(completion) if tagged is None else f"${tagged.strip('$')}$", parsing_timeout=seconds)
        return float(verify(gold, found, timeout_seconds=seconds))

    return [score(*example) for example in zip(completions, answer)]
