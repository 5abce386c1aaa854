"""From conversations, prompts and texts to rows: numbered, checked, cut to length, each ending with its last response.

TRL tokenises and labels the data (-100 outside responses); this file does what comes before and after.
"""

import bisect
import warnings
from typing import Any, Optional

import numpy as np
from datasets import Dataset
from trl.chat_template_utils import has_generation_markers
from trl.data_utils import is_conversational, is_conversational_from_value

from .batch import COLUMNS
from .data import ALPACA, check_ids
from .noise import IGNORE_INDEX

# Packed rows laid out at once.
PACK_BATCH = 1000


def check_dataset(dataset: Any, name: str) -> None:
    """Refuse data without a length, whose examples cannot be numbered.

    Raises:
        ValueError: unless `dataset` is a `datasets.Dataset` with a row.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The {name} data must be a `datasets.Dataset`, whose examples have stable numbers, got "
            f"{type(dataset).__name__}; only the train data may be a stream, so load it whole."
        )
    if not len(dataset):
        raise ValueError(f"The {name} data must hold at least one example, got none.")


def check_tokenizer(tokenizer: Any, eos_token: Optional[str] = None) -> None:
    """Refuse a tokenizer that cannot end an answer.

    Raises:
        ValueError: if neither the tokenizer nor the option `eos_token` names an EOS token.
    """
    if tokenizer.eos_token_id is None and eos_token is None:
        raise ValueError(
            "`tokenizer` must have an EOS token, which ends every answer, got none; set `tokenizer.eos_token`, or pass "
            "eos_token."
        )


def has_conversations(dataset: Any) -> bool:
    """Whether the examples are messages, under `role` and `content` or under `from` and `value`, or Alpaca's."""
    first = dataset[0] if isinstance(dataset, Dataset) else next(iter(dataset))
    return is_conversational(first) or is_conversational_from_value(first) or set(ALPACA) <= set(first)


def check_conversations(dataset: Dataset, tokenizer: Any, name: str) -> None:
    """Refuse conversations whose responses cannot be told from their prompts.

    Raises:
        ValueError: if the chat template marks no responses, or a conversation has no assistant turn.
    """
    if not tokenizer.chat_template or not has_generation_markers(tokenizer.chat_template):
        raise ValueError(
            "The chat template must mark the assistant's words by `{% generation %}`, got "
            f"{'one without it' if tokenizer.chat_template else 'none'}; attach LLaDA's with "
            "`llada_core.tokenization.prepare_tokenizer(tokenizer)`."
        )
    for column in {"messages", "conversations", "completion"} & set(dataset.column_names):
        for index, messages in enumerate(dataset[column]):
            if isinstance(messages, list) and not any(
                message.get("role", message.get("from")) == "assistant" for message in messages
            ):
                raise ValueError(
                    f"Every conversation must have a turn of the role 'assistant', got none in example {index} of the "
                    f"{name} data; leave it out."
                )


def number_examples(dataset: Dataset, first: int = 0) -> Dataset:
    """Add the column `example_id`, the number of the row counted from `first`, unless the data has one."""
    if "example_id" in dataset.column_names:
        return dataset
    return dataset.add_column("example_id", np.arange(first, first + len(dataset)))


def finish_examples(
    dataset: Dataset,
    name: str,
    max_length: int,
    eos_token_id: int,
    mask_token_id: int,
    vocab_size: int,
    num_proc: Optional[int] = None,
) -> Dataset:
    """Cut each row to `max_length` and to its last response, and leave out rows without one.

    Args:
        dataset: with `input_ids`, `labels` (-100 outside responses) and `example_id`.
        name: name of the data in messages.
        max_length: longest row in tokens.
        eos_token_id: one of it at the end is taken away: the trainer adds it after answers that are whole.
        mask_token_id, vocab_size: as in `check_ids`.
        num_proc: processes that share the work.

    Returns:
        A data set with `COLUMNS`; `is_cut` says that a row's last response is truncated.

    Raises:
        ValueError: if a row holds the mask token or an id that the model does not have, or no row has a response left.
    """
    limits = {"max_length": max_length, "eos_token_id": eos_token_id}
    finished = dataset.map(
        _finish,
        remove_columns=[column for column in dataset.column_names if column not in COLUMNS],
        num_proc=num_proc,
        fn_kwargs=limits | {"mask_token_id": mask_token_id, "vocab_size": vocab_size},
        desc=f"Cutting {name} data to {max_length} tokens",
    )
    kept = finished.filter(lambda ids: len(ids) > 0, input_columns="input_ids", num_proc=num_proc)
    if len(kept) < len(finished):
        _report_left_out(finished, len(finished) - len(kept), name, max_length)
    return kept


def pack_examples(dataset: Dataset, capacity: int, num_eos: int) -> Dataset:
    """Put several examples into each row.

    Args:
        dataset: result of `finish_examples`.
        capacity: tokens of a row.
        num_eos: end-of-text tokens that the trainer adds after an answer.

    Returns:
        A data set with `COLUMNS`, each a list with one entry per document of the row.
    """
    lengths = [
        len(ids) if is_cut else min(len(ids) + num_eos, capacity)
        for ids, is_cut in zip(dataset["input_ids"], dataset["is_cut"])
    ]
    rows = Dataset.from_dict({"documents": best_fit(lengths, capacity)})
    return rows.map(
        _gather,
        batched=True,
        batch_size=PACK_BATCH,
        remove_columns=["documents"],
        fn_kwargs={"dataset": dataset},
        desc=f"Packing into rows of {capacity} tokens",
    )


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Share documents over rows: the longest first, each into the fullest row that still has room.

    Args:
        lengths: tokens of each document, at most `capacity`.
        capacity: tokens of a row.

    Returns:
        The documents of each row, as indices into `lengths`.
    """
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (room left, row), ascending
    for document in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect.bisect_left(spaces, (lengths[document], -1))
        if place == len(spaces):
            spaces.append((capacity, len(rows)))
            rows.append([])
        room, row = spaces.pop(place)
        rows[row].append(document)
        bisect.insort(spaces, (room - lengths[document], row))
    return rows


def _finish(example: dict, max_length: int, eos_token_id: int, mask_token_id: int, vocab_size: int) -> dict:
    ids, labels = example["input_ids"], example["labels"]
    name = f"example {example['example_id']}"
    if len(ids) != len(labels):
        raise ValueError(
            f"`labels` must be as many as `input_ids`, got {len(labels)} and {len(ids)} in {name}; correct it."
        )
    check_ids(ids, name, mask_token_id, vocab_size)
    check_ids([label for label in labels if label != IGNORE_INDEX], f"the labels of {name}", mask_token_id, vocab_size)
    if ids and ids[-1] == eos_token_id:
        ids, labels = ids[:-1], labels[:-1]
    end = max((place + 1 for place, label in enumerate(labels[:max_length]) if label != IGNORE_INDEX), default=0)
    is_cut = end < len(labels) and labels[end] != IGNORE_INDEX
    return {"input_ids": ids[:end], "labels": labels[:end], "is_cut": is_cut}


def _report_left_out(finished: Dataset, num_left_out: int, name: str, max_length: int) -> None:
    first = next(number for number, ids in zip(finished["example_id"], finished["input_ids"]) if not ids)
    message = (
        f"{num_left_out} of {len(finished)} examples of the {name} data have no response tokens left within "
        f"`max_length` ({max_length}), the first is example {first}"
    )
    if num_left_out == len(finished):
        raise ValueError(f"{message}; raise `max_length`, or shorten the prompts.")
    warnings.warn(f"{message}; they are left out.", stacklevel=3)


def _gather(batch: dict, dataset: Dataset) -> dict:
    rows = [dataset[documents] for documents in batch["documents"]]
    return {column: [row[column] for row in rows] for column in COLUMNS}
