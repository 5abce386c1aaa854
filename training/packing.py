"""Packing: several documents share a row of the model's input, and none sees another.

Shape legend: D documents, T tokens of the longest, R rows, S tokens of the longest row.
"""

import bisect
from typing import Any

import torch
from torch import Tensor

# Attention implementations that take a block-diagonal mask.
PACKING_ATTENTION = ("eager", "sdpa")


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


def pack_rows(input_ids: Tensor, is_masked: Tensor, lengths: Tensor, packed_row: Tensor) -> dict[str, Any]:
    """Lay documents side by side, with positions that restart and attention inside each document only.

    Args:
        input_ids: one document per row; int64 [documents, seq].
        is_masked: positions to score; bool [documents, seq].
        lengths: tokens of each document; int64 [documents].
        packed_row: row that each document goes to, ascending; int64 [documents].

    Returns:
        Arguments of the model: `input_ids`, `position_ids` int64 [rows, longest row]; `attention_mask` bool
        [rows, 1, longest row, longest row]; `logits_positions` bool [rows, longest row], whose true entries come in
        the order of those of `is_masked`.
    """
    num_rows = int(packed_row[-1]) + 1
    row_ends = lengths.new_zeros(num_rows).index_add(0, packed_row, lengths)
    width = int(row_ends.max())
    starts = lengths.cumsum(0) - lengths - (row_ends.cumsum(0) - row_ends)[packed_row]
    columns = torch.arange(input_ids.shape[1], device=lengths.device).expand_as(input_ids)
    is_token = columns < lengths[:, None]
    places = (packed_row * width + starts)[:, None] + columns  # [D, T] -> [R * S]

    def lay_out(values: Tensor, empty: int) -> Tensor:
        laid = values.new_full((num_rows * width,), empty)
        laid[places[is_token]] = values[is_token]
        return laid.view(num_rows, width)

    documents = torch.arange(len(lengths), device=lengths.device)[:, None].expand_as(input_ids)
    # What is left of a row attends to itself, and nothing attends to it.
    document = lay_out(documents, -1)
    return {
        "input_ids": lay_out(input_ids, 0),
        "position_ids": lay_out(columns, 0),
        "attention_mask": (document[:, None, :, None] == document[:, None, None, :]),
        "logits_positions": lay_out(is_masked, False),
    }


def check_attention(implementation: str) -> None:
    """Refuse attention that would let packed documents see each other.

    Raises:
        ValueError: unless `implementation` takes a block-diagonal mask.
    """
    if implementation not in PACKING_ATTENTION:
        raise ValueError(
            f"`packing` needs the attention implementation {' or '.join(PACKING_ATTENTION)}, which keeps documents "
            f"apart by a mask, got {implementation!r}; load the model with attn_implementation='sdpa', or leave "
            "`packing` out."
        )
