"""The rows of a training step, from examples to the model's input: collate, change lengths, lay out, mask attention.

A batch carries the `lengths` of its rows from the collator to the forward; the attention mask is made from them there.

Shape legend: B batch, T sequence length; for packing D documents, R rows, S tokens of the longest row.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from modeling_llada.modeling_llada import FLEX_BLOCK_SIZE, block_mask_from, mask_kind

from .noise import ATTENTION_STREAM, IGNORE_INDEX, TURN_STREAM, WHOLE_STEP, row_uniforms

# Columns of the data that the collator reads.
COLUMNS = ["input_ids", "labels", "example_id", "is_cut"]


@dataclass
class LLaDACollator:
    """Collate examples of any length, padded on the right to the longest of the batch.

    Attributes:
        pad_token_id: id that fills up shorter rows. It is neither seen (attention) nor scored (label -100).
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
            `input_ids`, `labels` int64 [batch, seq]; `example_id` int64 [batch]; `lengths`, the tokens of each row
            without padding, int64 [batch]; if the data has it, `is_cut` bool [batch]. Packed documents are rows like
            any other, and `packed_row` int64 [batch], ascending, numbers the examples that they came from.
        """
        columns = {name: [example[name] for example in examples] for name in COLUMNS if name in examples[0]}
        batch = {}
        if isinstance(columns["example_id"][0], list):
            num_documents = torch.tensor([len(numbers) for numbers in columns["example_id"]])
            batch["packed_row"] = torch.arange(len(examples)).repeat_interleave(num_documents)
            columns = {name: list(chain.from_iterable(values)) for name, values in columns.items()}
        ids = [torch.as_tensor(row) for row in columns["input_ids"]]
        labels = [torch.as_tensor(row) for row in columns.get("labels", ids)]
        batch["input_ids"] = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        batch["lengths"] = torch.tensor([len(row) for row in ids])
        return batch | {name: torch.tensor(columns[name]) for name in ("example_id", "is_cut") if name in columns}


def set_lengths(
    batch: dict[str, Tensor], lengths: Tensor, pad_token_id: int, eos_token_id: Optional[int] = None
) -> dict[str, Tensor]:
    """Give each row a length: longer rows keep their first tokens, shorter ones are filled with EOS.

    Args:
        batch: as made by `LLaDACollator`; further entries stay as they are.
        lengths: tokens of each row afterwards, at least 1; int64 [batch].
        pad_token_id: id that fills up the columns beyond.
        eos_token_id: id of the end-of-text tokens, which are masked and learnt like an answer's other tokens. It may
            be left out if no row becomes longer.

    Returns:
        A new batch of the same form, as wide as its longest row.

    Source: LLaDA (arXiv:2502.09992), appendix B.1, pads answers with EOS and learns the padding.
    """
    width = int(lengths.max())
    columns = torch.arange(width, device=lengths.device)
    is_empty = columns >= lengths[:, None]  # [B, T]
    changed = batch | {"lengths": lengths}
    for name, padding in (("input_ids", pad_token_id), ("labels", IGNORE_INDEX)):
        values = pad(batch[name], (0, width - batch[name].shape[1]), value=padding)
        if eos_token_id is not None:
            values = values.masked_fill(columns >= batch["lengths"][:, None], eos_token_id)
        changed[name] = values.masked_fill(is_empty, padding)
    return changed


def draw_turns(batch: dict[str, Tensor], seed: int, step: int, pad_token_id: int) -> dict[str, Tensor]:
    """Draw one turn of each row as its response. The turns before become its prompt, what follows is cut off.

    Args:
        batch: as made by `LLaDACollator`, with `is_cut`. A turn is an unbroken run of labels other than -100.
        seed: the run's seed.
        step: optimizer step. A row's draw depends on (seed, step, example id) alone.
        pad_token_id: id that fills up shorter rows.

    Returns:
        A new batch of the same form. `is_cut` is kept only where the last turn was drawn: others are whole.

    Source: LLaDA (arXiv:2502.09992), appendix B.1: an n-turn dialogue is n pairs of history and response.
    """
    is_response = batch["labels"] != IGNORE_INDEX  # [B, T]
    is_start = is_response & ~pad(is_response, (1, -1))
    turn, num_turns = is_start.cumsum(-1), is_start.sum(-1)
    if bool((num_turns <= 1).all()):
        return batch
    uniforms = row_uniforms(batch["example_id"], seed, step, TURN_STREAM).to(turn.device)
    drawn = (uniforms.double() * num_turns).long() + 1
    is_drawn = is_response & (turn == drawn[:, None])
    ends = (is_drawn * torch.arange(1, turn.shape[1] + 1, device=turn.device)).max(-1).values
    changed = {
        "labels": batch["labels"].masked_fill(~is_drawn, IGNORE_INDEX),
        "is_cut": batch["is_cut"] & (drawn == num_turns),
    }
    return set_lengths(batch | changed, ends, pad_token_id)


def lengths_with_eos(batch: dict[str, Tensor], max_length: int, num_extra: int = 0, longest: int = 0) -> Tensor:
    """Length of each row with the end-of-text tokens after its answer; int64 [batch].

    Args:
        batch: as made by `LLaDACollator`, with `is_cut`. A truncated answer gets none: its end is not known.
        max_length: no row is filled beyond it.
        num_extra: tokens beyond the first EOS.
        longest: rows are filled at least up to this length.
    """
    lengths = batch["lengths"]
    filled = (lengths + 1 + num_extra).clamp(min=longest).clamp(max=max_length)
    return torch.where(batch["is_cut"], lengths, torch.maximum(filled, lengths))


def padding_mask(lengths: Tensor, width: int) -> Optional[Tensor]:
    """Attention mask of right-padded rows; int64 [batch, width]. None if no row is padded, which is faster."""
    if bool((lengths == width).all()):
        return None
    return (torch.arange(width, device=lengths.device) < lengths[:, None]).long()


def annealed_attention_mask(lengths: Tensor, width: int, step: int, annealing_steps: int, seed: int) -> Tensor:
    """Attention mask of one optimizer step on the way from causal (step 0) to bidirectional (`annealing_steps`).

    Every pair of a query and a later key is visible with probability step / annealing_steps, drawn anew at each step
    for all its rows. The draw depends on (seed, step) alone: accumulation, processes and a resumed run see the same,
    and a shorter batch sees a corner of it.

    Args:
        lengths: tokens of each row; int64 [batch].
        width: tokens of the longest row, with padding.
        step: optimizer step, from 0 and below `annealing_steps`.
        annealing_steps: steps until attention is bidirectional.
        seed: the run's seed.

    Returns:
        bool [batch, 1, width, width], True where a query (third dimension) attends to a key (fourth); [1, 1, width,
        width] if no row is padded. A position always attends to itself.

    Source: attention mask annealing of DiffuLLaMA (arXiv:2410.17891). It also shifts the logits, so that position i
    goes on predicting token i + 1; LLaDA predicts token i, so nothing is shifted here.
    """
    # In the order of the keys, so that the first pairs are the same for every length.
    keys, queries = torch.tril_indices(width, width, offset=-1)
    is_visible = torch.ones(width, width, dtype=torch.bool).tril()
    (uniforms,) = row_uniforms(WHOLE_STEP, seed, step, ATTENTION_STREAM, (len(keys),))
    is_visible[queries, keys] = uniforms < step / annealing_steps
    is_visible = is_visible.to(lengths.device)[None, None]
    valid = padding_mask(lengths, width)
    if valid is None:
        return is_visible
    # A query that sees nothing at all would be divided by zero.
    return (is_visible & valid[:, None, None, :].bool()) | torch.eye(width, dtype=torch.bool, device=lengths.device)


def pack_rows(
    input_ids: Tensor, is_masked: Tensor, lengths: Tensor, packed_row: Tensor, attention: str = "sdpa"
) -> dict[str, Any]:
    """Lay documents side by side, with positions that restart and attention inside each document only.

    Eager and sdpa attention need a mask of queries times keys. Flash attention takes the documents' lengths, and flex
    attention a mask of blocks, so that memory grows with the tokens only.

    Args:
        input_ids: one document per row; int64 [documents, seq].
        is_masked: positions to score; bool [documents, seq].
        lengths: tokens of each document; int64 [documents].
        packed_row: row that each document goes to, ascending; int64 [documents].
        attention: the model's attention implementation.

    Returns:
        Arguments of the model: `input_ids`, `position_ids` int64 [rows, longest row]; `logits_positions` bool [rows,
        longest row], whose true entries come in the order of those of `is_masked`; `attention_mask` bool [rows, 1,
        longest row, longest row], or a `BlockMask` for flex attention. For flash attention all documents stand in one
        row, and instead of a mask `cu_seq_lens_q` and `cu_seq_lens_k` int32 [documents + 1] say where they end.
    """
    if mask_kind(attention) == "flash":
        return _one_row(input_ids, is_masked, lengths)
    num_rows = int(packed_row[-1]) + 1
    row_ends = lengths.new_zeros(num_rows).index_add(0, packed_row, lengths)
    width = int(row_ends.max())
    starts = lengths.cumsum(0) - lengths - (row_ends.cumsum(0) - row_ends)[packed_row]
    columns = torch.arange(input_ids.shape[1], device=lengths.device).expand_as(input_ids)
    is_token = columns < lengths[:, None]
    places = ((packed_row * width + starts)[:, None] + columns)[is_token]  # of [D, T] in [R * S]

    def lay_out(values: Tensor, empty: int) -> Tensor:
        return values.new_full((num_rows * width,), empty).index_put((places,), values[is_token]).view(num_rows, width)

    documents = torch.arange(len(lengths), device=lengths.device)[:, None].expand_as(input_ids)
    # What is left of a row attends to itself, and nothing attends to it.
    document = lay_out(documents, -1)
    return {
        "input_ids": lay_out(input_ids, 0),
        "position_ids": lay_out(columns, 0),
        "attention_mask": (
            _document_blocks(document)
            if mask_kind(attention) == "flex"
            else document[:, None, :, None] == document[:, None, None, :]
        ),
        "logits_positions": lay_out(is_masked, False),
    }


def check_attention(implementation: str) -> None:
    """Refuse attention that would let packed documents see each other.

    Raises:
        ValueError: unless it is known what masks `implementation` takes.
    """
    if mask_kind(implementation) is None:
        raise ValueError(
            "`packing` needs an attention implementation whose masks are known (eager, sdpa, flash or flex attention), "
            f"or documents would see each other, got {implementation!r}; register its kind of mask with transformers' "
            "`AttentionMaskInterface`, load the model with attn_implementation='sdpa', or leave `packing` out."
        )


def _one_row(input_ids: Tensor, is_masked: Tensor, lengths: Tensor) -> dict[str, Any]:
    """`pack_rows` for flash attention."""
    columns = torch.arange(input_ids.shape[1], device=lengths.device).expand_as(input_ids)
    is_token = columns < lengths[:, None]
    ends, longest = pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), int(lengths.max())
    return {
        "input_ids": input_ids[is_token][None],
        "position_ids": columns[is_token][None],
        "logits_positions": is_masked[is_token][None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _document_blocks(document: Tensor) -> Any:
    """A `BlockMask` by which positions attend to those of their own document.

    Args:
        document: number of the document at each position, ascending within a row, -1 where a row is empty at its end;
            int64 [rows, seq].
    """
    width, largest = document.shape[1], torch.iinfo(document.dtype).max
    document = pad(document, (0, -width % FLEX_BLOCK_SIZE), value=-1)
    blocks = document.masked_fill(document < 0, largest).unflatten(-1, (-1, FLEX_BLOCK_SIZE))
    first, last = blocks[..., 0], blocks[..., -1]  # [R, blocks]
    # Numbers ascend, so two blocks share a document where their ranges overlap.
    is_needed = (first[:, :, None] <= last[:, None]) & (first[:, None] <= last[:, :, None])
    return block_mask_from(
        is_needed, lambda row, head, query, key: document[row, query] == document[row, key], (width, width)
    )
