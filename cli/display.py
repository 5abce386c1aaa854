"""Shows the canvas in the terminal while it is denoised."""

import time
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from llada_core.conversation import cut_at_stop, printable

MASK_STYLE, FRESH_STYLE, PROMPT_STYLE = "dim", "bold green", "dim"
SECONDS_PER_FRAME = 0.05
# By whether the terminal breaks lines that are too long (DECAWM).
LINE_BREAKS = {False: "\x1b[?7l", True: "\x1b[?7h"}


def canvas_text(
    ids: list[int], is_fresh: list[bool], tokenizer: PreTrainedTokenizerBase, mask_glyph: str = "░"
) -> Text:
    """Render one row of the canvas: a dim block for each masked position, text for the others.

    Args:
        ids: the row.
        is_fresh: positions to highlight; same length.
        tokenizer: decodes the runs between masked positions; special tokens are left out.
        mask_glyph: what stands for a masked position.
    """
    text = Text()
    for is_masked, run in groupby(range(len(ids)), key=lambda i: ids[i] == tokenizer.mask_token_id):
        positions = list(run)
        if is_masked:
            text.append(mask_glyph * len(positions), MASK_STYLE)
            continue
        start = len(text)
        text.append(_decode([ids[i] for i in positions], tokenizer))
        for fresh, group in groupby(range(len(positions)), key=lambda i: is_fresh[positions[i]]):
            if fresh:
                span = list(group)
                # A character may lie on several tokens: the run is decoded whole, and prefixes give the offsets.
                begin, end = (len(_decode([ids[i] for i in positions[:n]], tokenizer)) for n in (span[0], span[-1] + 1))
                text.stylize(FRESH_STYLE, start + begin, start + end)
    return text


class CanvasStreamer(BaseStreamer):
    """Streamer that redraws the canvas after each step, and leaves the finished text (or nothing) behind.

    Use as a context manager: leaving it gives the terminal back, also after an error or Ctrl-C.

    Args:
        tokenizer: with its mask token declared.
        console: where to draw; long text wraps at its width, and a canvas taller than it shows its newest part.
        prompts: text shown dim before each row's canvas, one per row; none for infilling, where the rows hold
            everything and each draft is the whole of it.
        stop_ids: a row is cut at the first of them once nothing before it is masked.
        stays: leave the finished text on the console.
        seconds_per_frame: drafts that come quicker are skipped.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        console: Console,
        prompts: list[str],
        stop_ids: Iterable[int] = (),
        stays: bool = True,
        seconds_per_frame: float = SECONDS_PER_FRAME,
    ):
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.stop_ids = frozenset(stop_ids)
        self.stays = stays
        self.seconds_per_frame = seconds_per_frame
        self._mask_glyph = "░" if console.encoding.startswith("utf") else "_"
        self._live = Live(console=console, auto_refresh=False, transient=not stays, vertical_overflow="visible")
        self._window: _Window | None = None
        self._finished: list[list[int]] | None = None
        self._draft: Any = None
        self._shown: list[list[int]] = []
        self._shown_at = -float("inf")

    def __enter__(self) -> Self:
        self._live.start()
        self._break_long_lines(False)
        return self

    def __exit__(self, *exception: object) -> None:
        self._break_long_lines(True)
        self._live.stop()

    def _break_long_lines(self, does: bool) -> None:
        """Switch the terminal's own line breaks: a line written for a window that was wider keeps to one row."""
        console = self._live.console
        if console.is_terminal and not console.is_dumb_terminal and not console.legacy_windows:
            console.file.write(LINE_BREAKS[does])
            console.file.flush()

    def put(self, value: Any) -> None:
        """Receive the prompt first, then each finished block; int64 [batch, length], or [length] for one row."""
        value = value[None] if value.dim() == 1 else value
        rows = value.tolist()
        if self._finished is None:
            self._finished = [[] for _ in rows]
            self._shown = [] if self.prompts else rows
        elif self.prompts:
            self._finished = [done + row for done, row in zip(self._finished, rows)]
            # The rest of the canvas comes with the next draft; after a stop string there is none.
            self._draft = self._draft[:, :0]
        else:
            self._draft = value

    def put_draft(self, value: Any, **kwargs: Any) -> None:
        """Receive what is not finished after a step, masks included; int64 [batch, length]."""
        self._draft = value.clone()
        if time.monotonic() - self._shown_at >= self.seconds_per_frame:
            self._show(is_final=False)

    def end(self) -> None:
        """Draw the finished canvas, without highlights."""
        if self._draft is not None:
            self._show(is_final=True)

    def end_at_gap(self) -> None:
        """Draw the canvas of a run that was stopped, each row up to its first masked position."""
        if self._draft is None:
            return
        mask = self.tokenizer.mask_token_id
        rows = [done + row for done, row in zip(self._finished or [], self._draft.tolist())]
        self._finished = [ids[: ids.index(mask)] if mask in ids else ids for ids in rows]
        self._draft = self._draft[:, :0]
        self._show(is_final=True)

    def _show(self, is_final: bool) -> None:
        """Draw every row; tokens committed since the last frame are fresh."""
        rows = [done + row for done, row in zip(self._finished or [], self._draft.tolist())]
        mask = self.tokenizer.mask_token_id
        before = self._shown or [[mask] * len(row) for row in rows]
        prompts = self.prompts or [""] * len(rows)
        text, committed = Text(), 0
        for prompt, row, shown in zip(prompts, rows, before):
            row = cut_at_stop(row, self.stop_ids, mask)
            is_fresh = [not is_final and old == mask != new for old, new in zip(shown, row)]
            text.append("\n\n" if len(text) else "").append(printable(prompt), PROMPT_STYLE)
            canvas = canvas_text(row, is_fresh, self.tokenizer, self._mask_glyph)
            committed = len(text) + len(canvas.plain.rstrip(self._mask_glyph))
            text.append_text(canvas)
        shows_all = is_final and self.stays
        if self._window is not None:
            self._live.console.control(self._window.erase_surplus(self._live.console.width))
        self._window = _Window(text, None if shows_all else committed)
        self._live.update(self._window, refresh=True)
        self._shown, self._shown_at = rows, time.monotonic()


class _Window:
    """The lines of a text that fit on the console, around the offset `focus`; all lines if it is None."""

    def __init__(self, text: Text, focus: int | None):
        self.text = text
        self.focus = focus
        self._widths: list[int] = []

    def erase_surplus(self, width: int) -> Control:
        """What leaves as many lines above the cursor as were written, after a window has become narrower.

        Terminals break lines that no longer fit, and `Live` erases only as many as it wrote. A frame that was written
        after the window had changed, but before this was known, is not broken: then too many lines are erased above.
        """
        num_lines = sum(max(1, -(-each // width)) for each in self._widths)
        surplus = num_lines - len(self._widths)
        return Control(*[(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * surplus)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self.text, options, pad=False)
        height = max(1, console.height - 1)
        if self.focus is not None and len(lines) > height:
            end = max(height, len(console.render_lines(self.text[: self.focus], options, pad=False)))
            lines = lines[end - height : end]
        self._widths = [Segment.get_line_length(line) for line in lines]
        for index, line in enumerate(lines):
            if index:
                yield Segment.line()
            yield from line


def _decode(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return printable(str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)))
