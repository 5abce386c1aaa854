"""Data that are read while they are trained on: chunk by chunk, each prepared as data in memory are."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset

from .batch import COLUMNS

# Examples of fine-tuning that are prepared, shuffled and, with `packing`, packed at once.
EXAMPLE_CHUNK = 1000
# Options that need all rows at once, or would read each row several times, with the only value that fits.
FIXED_OPTIONS = {
    "dataloader_num_workers": (0, "several workers would read the same rows"),
    "group_by_length": (False, "rows that are not read yet cannot be sorted"),
    "train_sampling_strategy": ("random", "rows that are not read yet cannot be sorted"),
}


class Stream(torch.utils.data.IterableDataset):
    """Prepared rows without end: the data from the beginning to the end, again and again.

    Rows are shuffled within their chunk only, anew in every pass. What is read depends on nothing but the data and the
    seed, so a resumed run reads the same: it prepares the rows of the steps before once more, and leaves them out.

    Args:
        rows: the data.
        prepare: makes the trainer's rows of a chunk. It takes the chunk and a number, and returns the rows, whose
            `example_id` count from that number, and the number for the next chunk.
        chunk_size: rows of the data that are prepared at once.
        seed: the run's seed.

    Raises:
        ValueError: while it is read, if a whole pass over the data has no row, and what `prepare` raises.
    """

    column_names = COLUMNS

    def __init__(
        self,
        rows: datasets.IterableDataset,
        prepare: Callable[[Dataset, int], tuple[Dataset, int]],
        chunk_size: int,
        seed: int,
    ):
        self._rows, self._prepare, self._chunk_size, self._seed = rows, prepare, chunk_size, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number_of_pass in itertools.count():
            first, is_empty = 0, True
            for chunk, batch in enumerate(self._rows.iter(self._chunk_size)):
                with _without_bars():
                    prepared, first = self._prepare(Dataset.from_dict(batch), first)
                order = np.random.default_rng((self._seed, number_of_pass, chunk)).permutation(len(prepared))
                for row in order.tolist():
                    is_empty = False
                    yield prepared[row]
            if is_empty:
                raise ValueError("The train data must hold at least one row to learn from, got none in a whole pass.")


def settle_streaming(args: Any) -> None:
    """Refuse options that a stream cannot have, and let every process read its own rows.

    Args:
        args: options of a training; changed in place.

    Raises:
        ValueError: for these, and without `max_steps`.
    """
    if args.max_steps <= 0:
        raise ValueError(
            f"`max_steps` must be set with a stream, which has no last row, got {args.max_steps}; pass it."
        )
    for name, (value, reason) in FIXED_OPTIONS.items():
        if getattr(args, name, value) != value:
            raise ValueError(
                f"`{name}` must be {value} with a stream ({reason}), got {getattr(args, name)}; leave it out."
            )
    # Otherwise one process reads for all, and joins rows of different lengths.
    args.accelerator_config.dispatch_batches = False


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """No bars of `datasets`, which would come anew with every chunk."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
