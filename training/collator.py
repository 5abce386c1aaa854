"""Collate examples of any length into one batch: ids, labels, attention mask, example ids, and rows they share.

Shape legend: B batch, T sequence length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import IGNORE_INDEX


@dataclass
class LLaDACollator:
    """Pad examples on the right to the longest of the batch.

    Attributes:
        pad_token_id: id that fills up shorter rows. It is neither seen (attention mask) nor scored (label -100).
    """

    pad_token_id: int

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        """Collate.

        Args:
            examples: each with `input_ids`, optionally `labels` (-100 where a token is never masked, as in a prompt;
                missing: every token may be masked), and `example_id`, its stable number in the data set; for
                fine-tuning also `is_cut`, whether its answer was truncated. An example may be packed: each of these is
                then a list with one entry per document.

        Returns:
            `input_ids`, `labels` int64 [batch, seq]; `example_id` int64 [batch]; if the data has it, `is_cut` bool
            [batch]; only if a row is padded, `attention_mask` int64 [batch, seq]. Packed documents are rows like any
            other, and `packed_row` int64 [batch], ascending, numbers the examples that they came from.
        """
        is_packed = isinstance(examples[0]["example_id"], list)
        if is_packed:
            num_documents = torch.tensor([len(example["example_id"]) for example in examples])
            examples = [document for example in examples for document in _unpack(example)]
        ids = [torch.as_tensor(example["input_ids"]) for example in examples]
        labels = [torch.as_tensor(example.get("labels", example["input_ids"])) for example in examples]
        batch = {
            "input_ids": _pad(ids, self.pad_token_id),
            "labels": _pad(labels, IGNORE_INDEX),
            "example_id": torch.tensor([example["example_id"] for example in examples]),
        }
        if "is_cut" in examples[0]:
            batch["is_cut"] = torch.tensor([example["is_cut"] for example in examples])
        if is_packed:
            batch["packed_row"] = torch.arange(len(num_documents)).repeat_interleave(num_documents)
        lengths = torch.tensor([len(row) for row in ids])
        return batch | attention_mask_of(lengths, batch["input_ids"].shape[1])


def cut_to_lengths(batch: dict[str, Tensor], lengths: Tensor, pad_token_id: int) -> dict[str, Tensor]:
    """Keep the first tokens of each row, and the columns that are still used.

    Args:
        batch: as made by `LLaDACollator`; further entries stay as they are.
        lengths: tokens to keep, at least 1; int64 [batch].
        pad_token_id: id that fills up the rest.

    Returns:
        A new batch of the same form.
    """
    longest = int(lengths.max())
    is_cut = torch.arange(longest, device=lengths.device) >= lengths[:, None]  # [B, T]
    cut = {name: value for name, value in batch.items() if name != "attention_mask"}
    cut["input_ids"] = batch["input_ids"][:, :longest].masked_fill(is_cut, pad_token_id)
    cut["labels"] = batch["labels"][:, :longest].masked_fill(is_cut, IGNORE_INDEX)
    return cut | attention_mask_of(lengths, longest)


def row_lengths(batch: dict[str, Tensor]) -> Tensor:
    """Number of tokens of each row without its padding; int64 [batch]."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(-1)
    return torch.full_like(batch["example_id"], batch["input_ids"].shape[1])


def attention_mask_of(lengths: Tensor, longest: int) -> dict[str, Tensor]:
    """The entry `attention_mask`, int64 [batch, longest], for rows of these lengths; none if no row is padded."""
    # An unpadded batch carries no mask: attention without one is faster.
    if bool((lengths == longest).all()):
        return {}
    return {"attention_mask": (torch.arange(longest, device=lengths.device) < lengths[:, None]).long()}


def _unpack(example: dict) -> list[dict]:
    return [dict(zip(example, values)) for values in zip(*example.values())]


def _pad(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
