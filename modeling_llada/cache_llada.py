"""Keys and values kept between denoising steps.

Every position of a masked diffusion model attends to every other one, so no key or value is final before the text is:
a cache makes a step cheaper by reading keys and values that are a few steps old. Which columns a step computes anew
decides what is stale: nothing (a full pass), what precedes the block (`prefix`), or all outside the block (`dual`).

Shape legend: R rows, H key/value heads, S cached columns, W columns computed in this pass, D head width.

Source: Fast-dLLM (arXiv:2505.22618), prefix and dual cache.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

CACHES = ("none", "prefix", "dual")


class BlockCache:
    """Preallocated keys (stored after rotation) and values of all columns of a canvas, written in place.

    A pass over columns start..end-1 writes those columns and reads all; call `set_window` before it.

    Args:
        num_layers: layers of the model.
        num_columns: length of the canvas.
    """

    def __init__(self, num_layers: int, num_columns: int):
        self.num_columns = num_columns
        self._keys: list[Optional[Tensor]] = [None] * num_layers
        self._values: list[Optional[Tensor]] = [None] * num_layers
        self._columns: Optional[Tensor] = None

    def set_window(self, start: int, end: int, device: torch.device) -> None:
        """Say which columns the next pass computes."""
        self._columns = torch.arange(start, end, device=device)

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
            self._keys[layer_idx], self._values[layer_idx] = key.new_empty(shape), value.new_empty(shape)
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

    def select(self, rows: Tensor, num_columns: Optional[int] = None) -> "BlockCache":
        """A copy that holds some of the rows, cut or extended to `num_columns`; int64 [rows]."""
        selected = BlockCache(len(self._keys), num_columns or self.num_columns)
        selected._keys = [_resized(key, rows, selected.num_columns) for key in self._keys]
        selected._values = [_resized(value, rows, selected.num_columns) for value in self._values]
        return selected


def _resized(states: Optional[Tensor], rows: Tensor, num_columns: int) -> Optional[Tensor]:
    if states is None or num_columns == states.shape[2]:
        return None if states is None else states[rows]
    resized = states.new_empty(len(rows), states.shape[1], num_columns, states.shape[3])
    common = min(num_columns, states.shape[2])
    resized[:, :, :common] = states[rows, :, :common]
    return resized


@dataclass
class WindowPolicy:
    """Decides which columns each pass computes, and holds the cache that serves the others.

    One policy serves every cache, so that there is one step loop:

    | cache | first pass of a block, and every `refresh_interval`-th | other passes |
    |---|---|---|
    | `none` | all columns | all columns |
    | `prefix` | all columns | from the block's start |
    | `dual` | all columns | the block |

    Attributes:
        cache: `none`, `prefix` or `dual`.
        num_layers: layers of the model.
        refresh_interval: passes from one full pass of a block to the next; None makes only its first pass full.
        prompt_length: with a frozen prompt, the columns that only the first pass of the call computes; else 0.
        suffix_window: masked columns after the block that are looked at; None looks at all.
        num_copies: rows in the model's batch per row of the canvas (2 with guidance).
    """

    cache: str
    num_layers: int
    refresh_interval: Optional[int] = None
    prompt_length: int = 0
    suffix_window: Optional[int] = None
    num_copies: int = 1
    _store: Optional[BlockCache] = None
    _rows: Optional[Tensor] = None
    _prompt: Optional[tuple[BlockCache, Tensor]] = None

    def visible_end(self, end: int, num_columns: int) -> int:
        """Columns of the canvas that a block ending at `end` looks at."""
        return num_columns if self.suffix_window is None else min(num_columns, end + self.suffix_window)

    def start_block(self, rows: Tensor, num_columns: int) -> None:
        """Begin a block with nothing cached, but for a frozen prompt.

        Args:
            rows: rows of the canvas that take part; int64 [active].
            num_columns: columns that the block looks at.
        """
        self._rows = rows
        if self.cache == "none":
            return
        if self._prompt is None:
            self._store = BlockCache(self.num_layers, num_columns)
        else:
            store, known_rows = self._prompt
            self._store = store.select(
                self._in_batch(torch.searchsorted(known_rows, rows), len(known_rows)), num_columns
            )

    def next_window(self, step: int, start: int, end: int, num_columns: int) -> tuple[int, int, Optional[BlockCache]]:
        """Columns that pass `step` of the block start..end-1 computes: first, end, and the cache (None without)."""
        if self.cache == "none":
            return 0, num_columns, None
        is_full = step == 0 or (self.refresh_interval is not None and step % self.refresh_interval == 0)
        if is_full:
            window = (self.prompt_length if self._prompt is not None else 0, num_columns)
        else:
            window = (start, num_columns if self.cache == "prefix" else end)
        self._store.set_window(*window, self._rows.device)
        return *window, self._store

    def pass_done(self) -> None:
        """Note a finished pass; the first one of the call has the keys and values of the prompt."""
        if self.prompt_length and self._prompt is None and self.cache != "none":
            every_row = torch.arange(self.num_copies * len(self._rows), device=self._rows.device)
            self._prompt = (self._store.select(every_row, self.prompt_length), self._rows)

    def keep(self, is_kept: Tensor) -> None:
        """Let rows sit out the block's remaining passes; bool [active]."""
        if self._store is not None:
            self._store = self._store.select(self._in_batch(is_kept.nonzero()[:, 0], len(is_kept)))
        self._rows = self._rows[is_kept]

    def _in_batch(self, rows: Tensor, num_rows: int) -> Tensor:
        """Rows of the model's batch, where the copies of all rows stand one after the other."""
        return torch.cat([rows + copy * num_rows for copy in range(self.num_copies)])
