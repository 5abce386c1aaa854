"""Keys and values kept between denoising steps.

Every position of a masked diffusion model attends to every other one, so no key or value is final before the text is:
a cache makes a step cheaper by reading keys and values that are a few steps old. Which columns a step computes anew
decides what is stale: nothing (a full pass), what precedes the block (`prefix`), or all outside the block (`dual`).

Shape legend: R rows, H key/value heads, S cached columns, W columns computed in this pass, D head width.

Source: Fast-dLLM (arXiv:2505.22618), prefix and dual cache.
"""

import sys
from dataclasses import dataclass
from typing import Optional, Union

import torch
from torch import Tensor

# Rows of a batch: all of them, or these; int64 [rows].
Rows = Union[slice, Tensor]
# Columns of a pass: first and end, or all of them; int64 [columns].
Window = Union[tuple[int, int], Tensor]
# The width of a compiled pass is a multiple of this, or a block.
COLUMN_BUCKET = 64


@dataclass(frozen=True)
class FixedShapes:
    """Rounds the shapes of passes up, so that a compiled model meets few of them.

    Attributes:
        block_length: columns of a block; shorter ones are filled up to it.
        fills_columns: whether columns may be added, which the attention mask then hides. Flash attention, whose shapes
            follow the mask, gets none.
    """

    block_length: int
    fills_columns: bool = True

    def rows(self, rows: Tensor) -> Tensor:
        """Rows up to the next power of two, the last one several times; int64 [rows]."""
        return torch.cat((rows, rows[-1:].expand(self.num_missing(len(rows)))))

    def num_missing(self, num_rows: int) -> int:
        """Rows that fill a batch up; none if it is empty."""
        return (1 << (num_rows - 1).bit_length()) - num_rows if num_rows else 0

    def width(self, num_columns: int) -> int:
        """Columns that a pass over so many computes."""
        if not self.fills_columns:
            return num_columns
        is_block = num_columns <= self.block_length
        return self.block_length if is_block else -(-num_columns // COLUMN_BUCKET) * COLUMN_BUCKET

    def capacity(self, num_columns: int) -> int:
        """Columns of a cache for so many: what fills a pass up lies behind the others."""
        return self.width(num_columns) + (max(COLUMN_BUCKET, self.block_length) if self.fills_columns else 0)


class BlockCache:
    """Preallocated keys (stored after rotation) and values of all columns of a canvas, written in place.

    A pass over columns start..end-1 writes those columns and reads all; call `set_window` before it.

    Args:
        num_layers: layers of the model.
        num_columns: length of the canvas.
        has_hidden: whether some columns may be read before they are written, which the attention mask hides.
    """

    def __init__(self, num_layers: int, num_columns: int, has_hidden: bool = False):
        self.num_columns, self.has_hidden = num_columns, has_hidden
        self._keys: list[Optional[Tensor]] = [None] * num_layers
        self._values: list[Optional[Tensor]] = [None] * num_layers
        self._columns: Optional[Tensor] = None

    @property
    def num_rows(self) -> int:
        """Rows whose keys and values it holds."""
        return self._keys[0].shape[0]

    def set_window(self, start: int, end: int, device: torch.device, width: Optional[int] = None) -> None:
        """Say which columns the next pass computes; the last ones of the cache fill it up to `width`."""
        if width is None:
            self._columns = torch.arange(start, end, device=device)
            return
        columns = torch.arange(start, start + width, device=device)
        self._columns = torch.where(columns < end, columns, columns + (self.num_columns - start - width))

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write this pass's keys and values, and return those of all columns.

        Args:
            key: rotated keys of the window; [rows, heads, window, head_dim].
            value: values of the window; same shape.
            layer_idx: the layer they come from.

        Returns:
            Keys and values of all columns; [rows, heads, columns, head_dim] each.
        """
        if self._keys[layer_idx] is None:
            shape = (key.shape[0], key.shape[1], self.num_columns, key.shape[3])
            # A weight of zero times what happens to lie in memory may be NaN.
            new = key.new_zeros if self.has_hidden else key.new_empty
            self._keys[layer_idx], self._values[layer_idx] = new(shape), new(shape)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys.index_copy_(2, self._columns, key)
        values.index_copy_(2, self._columns, value)
        return keys, values

    def outside_window(self) -> tuple[list[tuple[Optional[Tensor], Optional[Tensor]]], Tensor]:
        """What the next pass reads besides its own columns; for engines that take it as an input.

        Returns:
            For each layer, keys and values of the columns that the pass does not compute, [rows, heads, others,
            head_dim] each (None before the first pass); which columns it computes, bool [columns].
        """
        is_inside = torch.zeros(self.num_columns, dtype=torch.bool, device=self._columns.device)
        is_inside[self._columns] = True

        def cut(states: Optional[Tensor]) -> Optional[Tensor]:
            return None if states is None else states[:, :, ~is_inside]

        return [(cut(key), cut(value)) for key, value in zip(self._keys, self._values)], is_inside

    def select(self, rows: Rows, num_columns: Optional[int] = None) -> "BlockCache":
        """A copy that holds some of the rows, cut or extended to `num_columns`; the window stays."""
        selected = BlockCache(len(self._keys), num_columns or self.num_columns, self.has_hidden)
        selected._columns = self._columns
        selected._keys = [self._resized(key, rows, selected.num_columns) for key in self._keys]
        selected._values = [self._resized(value, rows, selected.num_columns) for value in self._values]
        return selected

    def _resized(self, states: Optional[Tensor], rows: Rows, num_columns: int) -> Optional[Tensor]:
        if states is None or num_columns == states.shape[2]:
            return None if states is None else states[rows]
        kept = states[rows, :, :num_columns]
        new = states.new_zeros if self.has_hidden else states.new_empty
        resized = new((*kept.shape[:2], num_columns, kept.shape[3]))
        resized[:, :, : kept.shape[2]] = kept
        return resized


@dataclass
class WindowPolicy:
    """Decides which columns each pass computes, and holds the cache that serves the others.

    | cache | first pass of a block, and every `refresh_interval`-th | other passes |
    |---|---|---|
    | `prefix` | all columns | from the block's start |
    | `dual` | all columns | the block |

    Which rows take part is the canvas's to know: the cache holds the keys and values of those rows, in their order.

    Attributes:
        cache: `prefix` or `dual`.
        num_layers: layers of the model.
        refresh_interval: passes from one full pass of a block to the next; None makes only its first pass full.
        prompt_length: with a frozen prompt, the columns that only the first pass of the call computes; else 0.
        num_copies: rows in the model's batch per row of the canvas (2 with guidance).
        shapes: fills passes up; None leaves them as they are.
    """

    cache: str
    num_layers: int
    refresh_interval: Optional[int] = None
    prompt_length: int = 0
    num_copies: int = 1
    shapes: Optional[FixedShapes] = None
    _store: Optional[BlockCache] = None
    _prompt: Optional[BlockCache] = None

    def next_window(
        self, step: int, start: int, end: int, num_columns: int, rows: Rows, device: torch.device
    ) -> tuple[int, int, BlockCache]:
        """Choose the columns that a pass computes.

        Args:
            step: number of the pass in its block; the first one begins with nothing cached, but for a frozen prompt.
            start, end: columns of the block.
            num_columns: columns that the block looks at.
            rows: rows of the call that take part.
            device: where the model's inputs are.

        Returns:
            First and end column of the pass, and the cache that serves the others.
        """
        capacity = num_columns if self.shapes is None else self.shapes.capacity(num_columns)
        if step == 0 and self._prompt is None:
            self._store = BlockCache(self.num_layers, capacity, has_hidden=self.shapes is not None)
        elif step == 0:
            self._store = self._rows_of(self._prompt, rows, capacity)
        if self.passes_until_full(step) == 0:
            window = (0 if self._prompt is None else self.prompt_length, num_columns)
        else:
            window = (start, num_columns if self.cache == "prefix" else end)
        width = None if self.shapes is None else self.shapes.width(window[1] - window[0])
        self._store.set_window(*window, device, width)
        return *window, self._store

    def passes_until_full(self, step: int) -> int:
        """Passes of the block from this one to the next that computes everything anew; 0 if this one does."""
        if step == 0:
            return 0
        return sys.maxsize if self.refresh_interval is None else -step % self.refresh_interval

    def copies(self, num_rows: int, num_copies: int) -> BlockCache:
        """Keys and values for so many canvases of each row, in which the next pass computes the same columns.

        The pass overwrites the columns that it computes, so the canvases may differ there and nowhere else.
        """
        rows = torch.arange(num_rows, device=self._store._columns.device)
        return self._rows_of(self._store, rows.repeat(num_copies))

    def end_pass(self, is_kept: Optional[Tensor]) -> None:
        """After the call's first pass, in which all rows take part, keep the prompt's keys and values; let rows leave.

        Args:
            is_kept: rows that take part in the block's next pass; bool [active]. None: all.
        """
        if self.prompt_length and self._prompt is None:
            self._prompt = self._store.select(slice(None), self.prompt_length)
        if is_kept is not None:
            self._store = self._rows_of(self._store, is_kept.nonzero()[:, 0])

    def _rows_of(self, store: BlockCache, rows: Rows, num_columns: Optional[int] = None) -> BlockCache:
        """Select rows from the model's batch, where the copies of all rows stand one after the other."""
        if isinstance(rows, Tensor):
            rows = rows if self.shapes is None else self.shapes.rows(rows)
            num_rows = store.num_rows // self.num_copies
            rows = torch.cat([rows + copy * num_rows for copy in range(self.num_copies)])
        return store.select(rows, num_columns)
