"""Scores answers of the tasks in tasks/ that are written: against references, and by running the program."""

from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from .code_execution import run_program

# Seconds for the tests of one program.
TIME_LIMIT = 10.0


def nearest_reference(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score an answer by the reference that is nearest to it.

    Args:
        doc: a row with `references`.
        results: the answer.

    Returns:
        `rouge_l`, the F-measure of the longest common subsequence of words, in [0, 1].
    """
    scorer = RougeScorer(["rougeL"])
    return {"rouge_l": max(scorer.score(reference, results[0])["rougeL"].fmeasure for reference in doc["references"])}


def program_passes(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Run the tests of a completed function.

    Args:
        doc: a row with `prompt`, `test` and `entry_point`.
        results: what stands behind the prompt.

    Returns:
        `pass_at_1`: 1 if every test passes, else 0.
    """
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(run_program(program, TIME_LIMIT))}
