"""Text as rows of tokens of one length, some of them held out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# One document in so many is held out.
HELD_OUT_EVERY = 50


class Corpus(NamedTuple):
    """Rows for training and for measuring; int64 [rows, length] each."""

    training: Tensor
    held_out: Tensor


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Read the field `text` of JSON lines (`.jsonl`), or each line of another file as a document.

    Raises:
        ValueError: if there is no text.
    """
    texts: list[str] = []
    for path in paths:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts += [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
    if not texts:
        raise ValueError(f"`texts` must hold at least one document, got none in {', '.join(map(str, paths))}.")
    return texts


def make_corpus(texts: Sequence[str], tokenizer: Any, length: int) -> Corpus:
    """Join the documents and cut them into rows; documents are held out whole.

    Args:
        texts: documents.
        tokenizer: with a beginning-of-text and an end-of-text token.
        length: tokens of a row. Its first one is the beginning-of-text token, which is given and never scored.

    Raises:
        ValueError: if the texts are too short for one row of either part.
    """
    held_out = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY == 0]
    training = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY]
    corpus = Corpus(cut_rows(training, tokenizer, length), cut_rows(held_out, tokenizer, length))
    if not len(corpus.training) or not len(corpus.held_out):
        raise ValueError(
            f"`texts` must fill a row of {length} tokens, also with one document in {HELD_OUT_EVERY}, got "
            f"{len(corpus.training)} rows for training and {len(corpus.held_out)} held out; pass more text."
        )
    return corpus


def cut_rows(texts: Sequence[str], tokenizer: Any, length: int) -> Tensor:
    """Encode, end each document with the end-of-text token, and cut; what is left at the end is dropped."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    stream = [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    width = length - 1
    rows = [[tokenizer.bos_token_id, *stream[i : i + width]] for i in range(0, len(stream) - width + 1, width)]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, length)


def rounds(rows: Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of rows in an order drawn anew for each round, without end; int64 [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from rows[torch.randperm(len(rows), generator=generator)].split(batch_size)
