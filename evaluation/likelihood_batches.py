"""Rows of many (context, continuation) pairs with masks in the continuation: checked, batched, padded and scored.

Shape legend: B rows of a batch, T its width, L continuation, K masked positions of the batch, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from modeling_llada.unmasking_llada import guide

# Tokens of a pass that keep a GPU busy; a CPU is faster with fewer.
BATCH_TOKENS, CPU_BATCH_TOKENS = 16384, 2048
# Logits that are turned to float32 at a time; they take 64 MiB.
CHUNK_SIZE = 2**24


class Pair(NamedTuple):
    """A continuation and the context that it is scored in, as token ids."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of context and continuation."""
        return len(self.context) + len(self.continuation)


@dataclass(frozen=True)
class MaskedCopies:
    """Copies of one pair that differ in their masks.

    Attributes:
        pair: the clean ids.
        is_masked: masked positions of the continuation; bool [copies, continuation].
    """

    pair: Pair
    is_masked: Tensor


class Piece(NamedTuple):
    """Copies `start` to `end` - 1 of one pair, which stand in one batch."""

    copies: MaskedCopies
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        """Rows of the batch that it fills."""
        return self.end - self.start

    @property
    def is_last(self) -> bool:
        """Whether no copy of the pair follows in another batch."""
        return self.end == len(self.copies.is_masked)


class Batch(NamedTuple):
    """Padded rows for one forward pass.

    Attributes:
        ids: clean ids, padding on the right; int64 [batch, seq].
        is_context: bool [batch, seq].
        is_masked: positions to mask and to score; bool [batch, seq].
        attention_mask: true at valid positions, bool [batch, seq]; None if nothing is padded.
    """

    ids: Tensor
    is_context: Tensor
    is_masked: Tensor
    attention_mask: Optional[Tensor]

    def keep(self, is_kept: Tensor) -> "Batch":
        """The rows that `is_kept` marks, bool [batch]."""
        attention_mask = None if self.attention_mask is None else self.attention_mask[is_kept]
        return Batch(self.ids[is_kept], self.is_context[is_kept], self.is_masked[is_kept], attention_mask)


def check_pairs(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Pair]:
    """Refuse a model or pairs that cannot be scored.

    Args:
        model: a LLaDA model.
        pairs: ids of context and continuation; lists or 1-D tensors.

    Returns:
        The pairs, hashable.

    Raises:
        ValueError: for a causal model, text in place of ids, an empty continuation, more tokens than the model has
            positions, ids outside the vocabulary, and mask tokens.
    """
    config = model.config
    if config.model_type != "llada":
        raise ValueError(
            f"`model` must be a masked diffusion model (`config.model_type` is 'llada'), got {config.model_type!r}; "
            "score a causal model with the harness's own `hf` model."
        )
    checked = []
    for number, (context, continuation) in enumerate(pairs):
        name = f"`pairs[{number}]`"
        pair = Pair(_as_tuple(context, name), _as_tuple(continuation, name))
        _check_pair(pair, name, config)
        checked.append(pair)
    return checked


def _as_tuple(ids: Any, name: str) -> tuple[int, ...]:
    if isinstance(ids, str):
        raise ValueError(f"{name} must hold token ids, got text; encode it with the model's tokenizer.")
    return tuple(torch.as_tensor(ids).tolist())


def _check_pair(pair: Pair, name: str, config: Any) -> None:
    if not pair.continuation:
        raise ValueError(f"{name} must have at least one token to score, got an empty continuation; leave it out.")
    if pair.num_tokens > config.max_sequence_length:
        raise ValueError(
            f"{name} must fit into the model's `max_sequence_length` ({config.max_sequence_length}), got "
            f"{len(pair.context)} + {len(pair.continuation)} tokens; cut the context from the left."
        )
    ids = pair.context + pair.continuation
    if min(ids) < 0 or max(ids) >= config.embedding_size:
        raise ValueError(
            f"{name} must hold ids of the vocabulary, 0..{config.embedding_size - 1}, got {min(ids)}..{max(ids)}; "
            "was it encoded with another model's tokenizer?"
        )
    if config.mask_token_id in ids:
        raise ValueError(
            f"{name} must be text without masks, got the mask token ({config.mask_token_id}); remove it. To fill "
            "masks, call the model's `infill`."
        )


def check_batch_options(cfg_scale: Any, max_batch_tokens: Any) -> None:
    """Refuse values of the options that all scores share.

    Raises:
        ValueError: if the guidance is not a number of at least 0, or the budget not a whole number of at least 1.
    """
    if not is_number(cfg_scale) or cfg_scale < 0:
        raise ValueError(f"`cfg_scale` must be a number of at least 0, got {cfg_scale!r}; 0 is without guidance.")
    if max_batch_tokens is not None:
        check_count("max_batch_tokens", max_batch_tokens)


def batch_budget(max_batch_tokens: Optional[int], device: torch.device) -> int:
    """Tokens of one forward pass: the number that was asked for, or one that suits the device."""
    if max_batch_tokens is not None:
        return max_batch_tokens
    return CPU_BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS


def check_count(name: str, value: Any) -> None:
    """Refuse an option that must be a whole number of at least 1.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}; leave it out for the default.")


def is_number(value: Any) -> bool:
    """Whether an option is a number, which True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def longest_first(pairs: Iterable[Pair]) -> list[Pair]:
    """The different ones among the pairs, the longest first; the same for every order of the pairs.

    Neighbours of one length need no padding, and the batch that takes most memory is the first one.
    """
    return sorted(set(pairs), key=lambda pair: (-pair.num_tokens, pair))


def pack(all_copies: Iterable[MaskedCopies], max_batch_tokens: int, cfg_scale: float) -> Iterator[list[Piece]]:
    """Share copies into batches within a budget.

    Args:
        all_copies: copies of each pair, the longest pairs first; taken one pair after the other, as room allows.
        max_batch_tokens: rows times longest row of one forward pass; a row longer than that runs alone.
        cfg_scale: guidance, which runs every row twice.

    Returns:
        Iterator of the pieces of each batch, in the order of the copies; at least one row each.
    """
    tokens_per_token = 2 if cfg_scale > 0 else 1
    pieces: list[Piece] = []
    room = 0
    for copies in all_copies:
        start, num_rows = 0, len(copies.is_masked)
        while start < num_rows:
            if not pieces:
                # The first pair is the longest one and sets the width.
                room = max(1, max_batch_tokens // (copies.pair.num_tokens * tokens_per_token))
            end = min(num_rows, start + room)
            pieces.append(Piece(copies, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield pieces
                pieces = []
    if pieces:
        yield pieces


def pad(pieces: Sequence[Piece], device: torch.device) -> Batch:
    """Lay the pieces out as one batch, as wide as the longest pair, padded on the right."""
    num_rows = sum(piece.num_rows for piece in pieces)
    width = max(piece.copies.pair.num_tokens for piece in pieces)
    ids = torch.zeros(num_rows, width, dtype=torch.long)
    is_context, is_masked, is_valid = (torch.zeros(num_rows, width, dtype=torch.bool) for _ in range(3))
    first = 0
    for piece in pieces:
        pair, rows = piece.copies.pair, slice(first, first + piece.num_rows)
        first = rows.stop
        ids[rows, : pair.num_tokens] = torch.tensor(pair.context + pair.continuation)
        is_context[rows, : len(pair.context)] = True
        is_masked[rows, len(pair.context) : pair.num_tokens] = piece.copies.is_masked[piece.start : piece.end]
        is_valid[rows, : pair.num_tokens] = True
    attention_mask = None if is_valid.all() else is_valid.to(device)
    return Batch(ids.to(device), is_context.to(device), is_masked.to(device), attention_mask)


def score_masked(model: Any, batch: Batch, cfg_scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the model once on the masked rows, some masked positions at a time.

    Args:
        model: a LLaDA model.
        batch: the rows.
        cfg_scale: w of unsupervised guidance; the second half of the pass has the context masked out.

    Returns:
        Iterator of logits, float32 [some, vocab], and clean ids, int64 [some]: together the masked positions, rows one
        after the other.

    Source: LLaDA (arXiv:2502.09992), Eq. 16, for guidance.
    """
    mask_token_id = model.config.mask_token_id
    ids, is_scored, attention_mask = batch.ids.masked_fill(batch.is_masked, mask_token_id), batch.is_masked, None
    if cfg_scale > 0:
        ids = torch.cat((ids, ids.masked_fill(batch.is_context, mask_token_id)))
        is_scored = torch.cat((is_scored, is_scored))
    if batch.attention_mask is not None:
        attention_mask = batch.attention_mask.repeat(len(ids) // len(batch.ids), 1)
    logits = model(ids, attention_mask=attention_mask, logits_positions=is_scored).logits
    targets = batch.ids[batch.is_masked].to(logits.device)  # [K]
    num_rows = max(1, CHUNK_SIZE // logits.shape[-1])
    if cfg_scale == 0:
        for some_logits, some_targets in zip(logits.split(num_rows), targets.split(num_rows)):
            yield some_logits.float(), some_targets
        return
    conditional, unconditional = logits.chunk(2)
    parts = (part.split(num_rows) for part in (conditional, unconditional, targets))
    for some_conditional, some_unconditional, some_targets in zip(*parts):
        yield guide(some_conditional.float(), some_unconditional.float(), cfg_scale), some_targets
