"""Couplets as token ids: the poems, the questions about them, and the order in which a model sees them.

A row is a task token, a line, a separator and the other line: 3 kinds of row, all of the same form.

    poem:     <poem> first <sep> second       every couplet, as it stands in the anthology
    next:     <next> first <sep> second       questions that teach the task; asked of other couplets in the test
    previous: <previous> second <sep> first
"""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .couplets import Couplet, answerable

POEM, NEXT, PREVIOUS, SEPARATOR, MASK, PADDING = range(6)
NUM_SPECIAL = 6
DIRECTIONS = {"next": NEXT, "previous": PREVIOUS}


class Characters:
    """Ids of characters, after those of the special tokens.

    Args:
        couplets: where the characters come from.
    """

    def __init__(self, couplets: Sequence[Couplet]):
        characters = sorted({character for couplet in couplets for line in couplet for character in line})
        self._ids = {character: number for number, character in enumerate(characters, start=NUM_SPECIAL)}
        self.vocab_size = NUM_SPECIAL + len(characters)

    def encode(self, line: str) -> list[int]:
        """The ids of a line's characters."""
        return [self._ids[character] for character in line]

    def row(self, task: int, line: str, other: str) -> list[int]:
        """One row: the task token, a line, the separator and the line that belongs to it."""
        return [task, *self.encode(line), SEPARATOR, *self.encode(other)]


def split_couplets(couplets: Sequence[Couplet], taught_share: float, seed: int) -> tuple[list[Couplet], list[Couplet]]:
    """Draw the couplets whose questions are part of the training, and those that are asked about in the test.

    Both are in the training as poems. Couplets that share a line with another one are in neither.

    Returns:
        Taught and tested couplets; disjoint.
    """
    chosen = answerable(couplets)
    random.Random(seed).shuffle(chosen)
    num_taught = round(taught_share * len(chosen))
    return chosen[:num_taught], chosen[num_taught:]


def reverse_text(couplets: Sequence[Couplet]) -> list[Couplet]:
    """The poems written backwards: the last character of the second line comes first.

    Of a reversed couplet, the next line is the original's previous one.
    """
    return [Couplet(couplet.second[::-1], couplet.first[::-1]) for couplet in couplets]


def training_rows(characters: Characters, poems: Sequence[Couplet], taught: Sequence[Couplet]) -> list[list[int]]:
    """Every poem, and both questions about the taught couplets, answered."""
    rows = [characters.row(POEM, *couplet) for couplet in poems]
    for first, second in taught:
        rows += [characters.row(NEXT, first, second), characters.row(PREVIOUS, second, first)]
    return rows


def shuffled_batches(rows: Sequence[list[int]], batch_size: int, seed: int) -> Iterator[Tensor]:
    """Go through the rows again and again, in another order each time.

    Args:
        rows: ids, of any lengths.
        batch_size: rows of a batch at most; a batch holds rows of one length, so that nothing is padded.
        seed: of the order.

    Yields:
        int64 [batch, seq], without end.
    """
    draws = random.Random(seed)
    by_length = {length: [row for row in rows if len(row) == length] for length in sorted({len(row) for row in rows})}
    while True:
        batches = []
        for group in by_length.values():
            order = draws.sample(group, len(group))
            batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        draws.shuffle(batches)
        yield from (torch.tensor(batch) for batch in batches)


def count_batches(rows: Sequence[list[int]], batch_size: int) -> int:
    """Batches in one round of `shuffled_batches`."""
    lengths = [len(row) for row in rows]
    return sum(-(-lengths.count(length) // batch_size) for length in set(lengths))
