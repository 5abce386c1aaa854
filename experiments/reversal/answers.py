"""Ask a model for the line before or after another one, and count the answers that are right to the character.

Shape legend: N questions of one length, L characters of a line.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..fitting import is_diffusion
from ..scoring import score_rows
from .couplets import Couplet
from .tokens import DIRECTIONS, MASK, POEM, Characters

# Noisy copies of a poem by which a LLaDA scores it; right and wrong lines lie tens of nats apart.
NUM_BOUND_SAMPLES = 8


def ask(model: Any, characters: Characters, couplets: Sequence[Couplet], direction: str) -> float:
    """Ask the same question of either kind of model: the task token, a line and the separator; greedy.

    Args:
        model: LLaDA or autoregressive.
        characters: the ids.
        couplets: what to ask about, not empty.
        direction: one of `DIRECTIONS`.

    Returns:
        Share of the couplets whose other line is given exactly.
    """
    questions = [couplet if direction == "next" else couplet[::-1] for couplet in couplets]
    rows = [characters.row(DIRECTIONS[direction], *question) for question in questions]
    return _share_right(rows, lambda ids: _complete(model, ids[:, : ids.shape[1] // 2 + 1]))


def infill(model: Any, characters: Characters, couplets: Sequence[Couplet], direction: str) -> float:
    """Let a LLaDA fill in one line of the poem where it stands, the other one given; share of exact answers."""
    rows = [characters.row(POEM, *couplet) for couplet in couplets]

    def fill(ids: Tensor) -> Tensor:
        separator = ids.shape[1] // 2
        hidden = slice(separator + 1, None) if direction == "next" else slice(1, separator)
        noisy = ids.clone()
        noisy[:, hidden] = MASK
        return model.infill(noisy)

    return _share_right(rows, fill)


def _complete(model: Any, prompts: Tensor) -> Tensor:
    """Append as many characters as a line has; int64 [questions, prompt + characters]."""
    num_characters = prompts.shape[1] - 2
    if is_diffusion(model):
        options = {"max_new_tokens": num_characters, "block_length": num_characters, "stop_at_eos": False}
        return model.generate(prompts, **options)
    mask = torch.ones_like(prompts)
    return model.generate(prompts, attention_mask=mask, max_new_tokens=num_characters, do_sample=False)


@torch.no_grad()
def _share_right(rows: list[list[int]], answer: Any) -> float:
    """Share of the rows that `answer` gives back unchanged; rows of one length go together."""
    num_right = 0
    for length in {len(row) for row in rows}:
        ids = torch.tensor([row for row in rows if len(row) == length])
        num_right += int((answer(ids) == ids).all(-1).sum())
    return num_right / len(rows)


def find_first_lines(
    model: Any, characters: Characters, couplets: Sequence[Couplet], poems: Sequence[Couplet], num_candidates: int
) -> float:
    """Look for the first line by likelihood: of some candidates, the one whose poem is the most probable.

    It asks whether a model knows the couplet, without having to say its lines in another order.

    Args:
        model: LLaDA (Eq. 6) or autoregressive (exact).
        characters: the ids.
        couplets: what to ask about, not empty.
        poems: couplets whose first lines are the wrong candidates, drawn among those of equal length.
        num_candidates: candidates for each question, the right one among them; chance is 1 in so many.

    Returns:
        Share of the questions in which the right first line has the highest log p(<poem> first <sep> second).
    """
    draws = random.Random(0)
    rows, starts = [], [0]
    for first, second in couplets:
        others = [other.first for other in poems if len(other.first) == len(first) and other.first != first]
        lines = [first, *draws.sample(sorted(set(others)), min(num_candidates - 1, len(set(others))))]
        rows += [characters.row(POEM, line, second) for line in lines]
        starts.append(len(rows))
    scores = score_rows(model, rows, NUM_BOUND_SAMPLES).values
    # The right line is the first of each question's candidates.
    is_right = [int(scores[start:end].argmax()) == 0 for start, end in itertools.pairwise(starts)]
    return sum(is_right) / len(is_right)
