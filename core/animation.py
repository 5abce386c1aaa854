"""Draws a recorded run as an animation: the canvas being filled in, as SVG or GIF.

Both show one layout on a grid of equally wide characters: a word stands where it ends up from the first pass on, as a
masked cell until its token is committed.
"""

import textwrap
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

from transformers import PreTrainedTokenizerBase

from .conversation import printable
from .lazy import requires_extra
from .recorder import Frame, token_texts

SUFFIXES = (".svg", ".gif")
# Characters on a line; a masked position that never gets a text takes the width of this many.
LINE, MASK_WIDTH = 64, 3
# Sizes in pixels.
FONT, CHARACTER, LEADING, MARGIN = 16, 9.6, 30, 28
# Seconds: a run is shown in about this time, a pass within these bounds; then the finished text stays.
SHOWN, BOUNDS, STAYS = 6.0, (0.08, 0.6), 3.5
# A GIF of a longer run leaves passes out.
MAX_GIF_FRAMES = 120

# From the first pass to the newest; from doubtful to certain.
PASS_COLOURS = ("#4c6ef5", "#12b5a5", "#f5a524")
CONFIDENCE_COLOURS = ("#e5484d", "#f5a524", "#30a46c")
# Card, border, text, subdued text, masked cell, opacity of the colours on the card.
LIGHT = ("#ffffff", "#d8dee6", "#1f2933", "#6b7785", "#dfe4ea", "0.28")
DARK = ("#12161c", "#2c3440", "#e6eaf0", "#8b97a6", "#2b333e", "0.45")


@dataclass(frozen=True)
class Cell:
    """A token, or a masked position if `text` is None, for as long as it stands there.

    Attributes:
        text: what is written, without spaces around it; empty for special tokens, such as the end of the text.
        line, column: where on the grid.
        width: in characters.
        first, last: passes, of which `last` is the first that shows something else; None: it stays.
        tint: place between the first and the last of the colours, 0 to 1; None for text that was given.
    """

    text: str | None
    line: int
    column: int
    width: int
    first: int
    last: int | None
    tint: float | None


def check_path(path: str | Path) -> Path:
    """Return where an animation goes, if it can be written there.

    Raises:
        ValueError: for another suffix than those of `SUFFIXES`.
        OSError: if the folder does not exist or `path` is one.
        ImportError: for a GIF without pillow.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"`--animate` must name a file that ends in .svg or .gif, got `{path}`.")
    if path.is_dir():
        raise IsADirectoryError(f"`--animate` must name a file, but `{path}` is a folder.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder `{path.parent}` for `--animate`; make it first.")
    if path.suffix.lower() == ".gif":
        with requires_extra("demo", "A GIF"):
            import PIL.Image  # noqa: F401
    return path


def write_animation(
    path: str | Path, frames: list[Frame], tokenizer: PreTrainedTokenizerBase, prompt: str = "", by: str = "pass"
) -> None:
    """Write a recorded run as an animation that repeats.

    Args:
        path: ends in `.svg` or `.gif`.
        frames: of a `Recorder`.
        tokenizer: the model's.
        prompt: text to show above the canvas.
        by: what colours the tokens, `pass` or `confidence`.

    Raises:
        ValueError, OSError, ImportError: as `check_path`.
    """
    path = check_path(path)
    lines = wrap(printable(prompt))
    cells = lay_out(frames, tokenizer, by)
    if path.suffix.lower() == ".gif":
        _write_gif(path, lines, cells, frames, by)
    else:
        path.write_text(draw_svg(lines, cells, frames, by), encoding="utf-8")


def colour(tint: float, by: str = "pass") -> str:
    """The colour at `tint`, from 0 to 1, as #rrggbb."""
    stops = PASS_COLOURS if by == "pass" else CONFIDENCE_COLOURS
    place = min(max(tint, 0.0), 1.0) * (len(stops) - 1)
    left = min(int(place), len(stops) - 2)
    pairs = zip(*(bytes.fromhex(stop[1:]) for stop in stops[left : left + 2]))
    return "#" + bytes(round(a + (b - a) * (place - left)) for a, b in pairs).hex()


def tint(number: int, confidence: float, num_passes: int, by: str) -> float | None:
    """Where the colour of a token lies, from 0 to 1; None for text that was given.

    Args:
        number: the pass that committed the token, from 1; 0 if it was given.
        confidence: its probability then.
        num_passes: the newest pass.
        by: `pass` or `confidence`.
    """
    if not number:
        return None
    if by == "confidence":
        return 0.5 if confidence != confidence else confidence
    return (number - 1) / max(1, num_passes - 1)


def wrap(text: str) -> list[str]:
    """Break text into lines: at its newlines, and at spaces where a line grows too long."""
    lines = []
    for paragraph in text.strip("\n").split("\n"):
        width = LINE * len(paragraph) // max(1, num_columns(paragraph))
        lines += textwrap.wrap(paragraph, max(1, width)) or [""]
    return lines if text.strip() else []


def num_columns(text: str) -> int:
    """Columns of the grid that a text takes; Chinese, Japanese and Korean characters take two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def lay_out(frames: list[Frame], tokenizer: PreTrainedTokenizerBase, by: str = "pass") -> list[Cell]:
    """Place every token and mask of a run on the grid: words are kept whole, newlines begin a line.

    Args:
        frames: of a `Recorder`.
        tokenizer: the model's.
        by: what colours the tokens, `pass` or `confidence`.
    """
    final = token_texts(frames[-1].ids, tokenizer)
    length = max(len(frame.ids) for frame in frames)
    places = _place([*final, *[None] * (length - len(final))])
    cells = []
    for column, (line, at, width) in enumerate(places):
        shown = [frame.ids[column] if column < len(frame.ids) else None for frame in frames]
        start = 0
        for token, group in groupby(shown):
            first, start = start, start + len(list(group))
            last = None if start == len(frames) else start
            if token is None:
                continue
            text, tinted = None, None
            if token != tokenizer.mask_token_id:
                is_final = last is None and column < len(final)
                text = (final[column] if is_final else token_texts([token], tokenizer)[0]).strip()
                frame = frames[first]
                tinted = tint(frame.passes[column], frame.confidences[column], len(frames) - 1, by)
            cells.append(Cell(text, line, at, width, first, last, tinted))
    return cells


def _place(texts: list[str | None]) -> list[tuple[int, int, int]]:
    """Line, column and width of every token; None are positions behind the end of the finished text."""
    places: list[tuple[int, int, int]] = []
    line = at = 0
    for word in _words(texts):
        widths = [_width(text) for text in word]
        lead = _space_around(word[0])[0]
        line, at = line + lead.count("\n"), 0 if "\n" in lead else at
        gap = len(lead.rpartition("\n")[2])
        if at and at + gap + sum(widths) > LINE:
            line, at, gap = line + 1, 0, 0
        at += gap
        for text, width in zip(word, widths):
            if at + width > LINE:
                line, at = line + 1, 0
            places.append((line, at, width))
            tail = _space_around(text)[1]
            if "\n" in tail:
                line, at = line + tail.count("\n"), len(tail.rpartition("\n")[2])
            else:
                at += width + len(tail)
    return places


def _space_around(text: str | None) -> tuple[str, str]:
    """The space before and after the text of a token; of one of nothing but space, newlines come after it."""
    body = (text or "").strip()
    if not text or not body:
        return "", text if text and "\n" in text else ""
    lead, _, tail = text.partition(body)
    return lead, tail


def _width(text: str | None) -> int:
    """Characters that a token takes, without the space around it; one of nothing but space takes its own."""
    if text is None:
        return MASK_WIDTH
    return min(max(1, num_columns(text.strip() or text.strip("\n"))), LINE)


def _words(texts: list[str | None]) -> list[list[str | None]]:
    """Group the texts of tokens into words, of which only the first text begins with space."""
    words: list[list[str | None]] = []
    for text in texts:
        if words and text and words[-1][-1] is not None and not text[0].isspace():
            words[-1].append(text)
        else:
            words.append([text])
    return words


def _times(num_passes: int) -> tuple[list[float], float]:
    """When each frame appears, and how long the animation lasts, in seconds."""
    step = min(max(SHOWN / max(1, num_passes), BOUNDS[0]), BOUNDS[1])
    times = [0.0, *(0.8 + step * number for number in range(num_passes))]
    return times, times[-1] + STAYS


def _size(lines: list[str], cells: list[Cell]) -> tuple[int, int, int]:
    """Width and height of the picture, and where the canvas begins, in pixels."""
    top = MARGIN + len(lines) * LEADING + (12 if lines else 0)
    num_lines = 1 + max((cell.line for cell in cells), default=0)
    return round(LINE * CHARACTER) + 2 * MARGIN, top + num_lines * LEADING + 60, top


def draw_svg(lines: list[str], cells: list[Cell], frames: list[Frame], by: str = "pass") -> str:
    """Draw a run as SVG that moves by CSS; without animation it shows the finished text, in light or dark.

    Args:
        lines: the prompt's, shown above.
        cells: of `lay_out`.
        frames: of a `Recorder`.
        by: what the colours mean, `pass` or `confidence`.
    """
    num_passes = len(frames) - 1
    times, total = _times(num_passes)
    width, height, top = _size(lines, cells)
    spans = {(cell.first, cell.last) for cell in cells} | {
        (k, k + 1 if k < num_passes else None) for k in range(len(frames))
    }
    text, end = "", (0, 0)
    for cell in cells:
        if cell.text and cell.last is None:
            text += " " * ((cell.line, cell.column) != end) + escape(cell.text)
            end = cell.line, cell.column + cell.width
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(" ".join(lines))} {text.strip()}">',
        "<style>" + _css(sorted(spans, key=str), times, total) + "</style>",
        f'<rect class="card" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="14"/>',
    ]
    for number, line in enumerate(lines):
        parts.append(f'<text class="dim" x="{MARGIN}" y="{MARGIN + 18 + number * LEADING}">{escape(line)}</text>')
    parts += [_svg_cell(cell, top, by) for cell in cells]
    parts += _svg_footer(frames, width, height, by)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _css(spans: list[tuple[int, int | None]], times: list[float], total: float) -> str:
    """The style sheet: colours, and one animation for each span of passes."""

    def at(seconds: float) -> str:
        return f"{100 * seconds / total:.2f}%"

    fade = 0.12
    names = ("card", "edge", "ink", "dim", "mask", "tint")
    light, dark = ("".join(f"--{name}:{value};" for name, value in zip(names, scheme)) for scheme in (LIGHT, DARK))
    rules = [
        f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}",
        f"text{{font:{FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:var(--ink);"
        "white-space:pre}.dim{fill:var(--dim)}.small{font-size:13px;fill:var(--dim)}.mask{fill:var(--mask)}"
        ".tint{fill-opacity:var(--tint)}.card{fill:var(--card);stroke:var(--edge)}.bar{fill:var(--mask)}",
        f".run{{transform-origin:{MARGIN}px 0;animation:run {total:.2f}s linear infinite}}"
        f"@keyframes run{{0%{{transform:scaleX(0)}}{at(times[-1])},100%{{transform:scaleX(1)}}}}",
    ]
    for first, last in spans:
        frames = [] if first else ["0%{opacity:1}"]
        if first:
            frames.append(f"0%,{at(times[first])}{{opacity:0}}{at(times[first] + fade)}{{opacity:1}}")
        if last is not None:
            frames.append(f"{at(times[last])}{{opacity:1}}{at(times[last] + fade)},100%{{opacity:0}}")
        if not first and last is None:
            continue
        name = f"s{first}-{last or ''}"
        hidden = "" if last is None else "opacity:0;"
        rules.append(f".{name}{{{hidden}animation:{name} {total:.2f}s infinite}}@keyframes {name}{{{''.join(frames)}}}")
    rules.append("@media(prefers-reduced-motion:reduce){*{animation:none!important}}")
    return "\n".join(rules)


def _svg_cell(cell: Cell, top: int, by: str) -> str:
    """One token or mask: a rounded rectangle, and the text on it."""
    x, y = MARGIN + cell.column * CHARACTER, top + cell.line * LEADING
    width = cell.width * CHARACTER
    span = f' class="s{cell.first}-{cell.last or ""}"' if cell.first or cell.last is not None else ""
    box = f'x="{x + 0.8:.1f}" y="{y}" width="{width - 1.6:.1f}" height="24" rx="5"'
    if cell.text is None:
        return f'<g{span}><rect class="mask" {box}/></g>'
    fill = "" if cell.tint is None else f'<rect {box} fill="{colour(cell.tint, by)}" class="tint"/>'
    if not cell.text:
        return f"<g{span}>{fill}</g>"
    fit = f' textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"' if len(cell.text) > 1 else ""
    return f'<g{span}>{fill}<text x="{x:.1f}" y="{y + 17.5}"{fit}>{escape(cell.text)}</text></g>'


def _svg_footer(frames: list[Frame], width: int, height: int, by: str) -> list[str]:
    """The number of the pass, what the colours mean, and how far the run is."""
    parts, num_passes, y = [], len(frames) - 1, height - 22
    for number, label in enumerate(_labels(frames)):
        last = "" if number == num_passes else number + 1
        parts.append(f'<text class="small s{number}-{last}" x="{MARGIN}" y="{y}">{label}</text>')
    stops = PASS_COLOURS if by == "pass" else CONFIDENCE_COLOURS
    offsets = "".join(f'<stop offset="{i / (len(stops) - 1)}" stop-color="{stop}"/>' for i, stop in enumerate(stops))
    left, right = _legend(by)
    edge = width - MARGIN
    parts += [
        f'<defs><linearGradient id="scale">{offsets}</linearGradient></defs>',
        f'<text class="small" x="{edge - 8 * len(right) - 96}" y="{y}" text-anchor="end">{left}</text>',
        f'<rect x="{edge - 8 * len(right) - 88}" y="{y - 10}" width="80" height="10" rx="5" fill="url(#scale)" '
        'fill-opacity=".7"/>',
        f'<text class="small" x="{edge}" y="{y}" text-anchor="end">{right}</text>',
        f'<rect class="bar run" x="{MARGIN}" y="{height - 12}" width="{width - 2 * MARGIN}" height="3" rx="1.5"/>',
    ]
    return parts


def _labels(frames: list[Frame]) -> list[str]:
    """What is said of each frame."""
    num_passes = len(frames) - 1
    labels = [f"pass {number} of {num_passes}" for number in range(num_passes)]
    return [*labels, f"{frames[-1].num_committed} tokens in {num_passes} passes"]


def _legend(by: str) -> tuple[str, str]:
    return ("first pass", "last") if by == "pass" else ("doubtful", "certain")


def _write_gif(path: Path, lines: list[str], cells: list[Cell], frames: list[Frame], by: str) -> None:
    """Draw a run in light colours with pillow."""
    from PIL import Image, ImageDraw

    width, height, top = _size(lines, cells)
    num_passes = len(frames) - 1
    stride = -(-num_passes // MAX_GIF_FRAMES) or 1
    numbers = sorted({*range(0, num_passes, stride), num_passes})
    times, total = _times(num_passes)
    images, fonts = [], (_font(FONT), _font(13))
    for number in numbers:
        image = Image.new("RGB", (width, height), LIGHT[0])
        pen = ImageDraw.Draw(image)
        for row, line in enumerate(lines):
            pen.text((MARGIN, MARGIN + row * LEADING), line, LIGHT[3], fonts[0])
        for cell in cells:
            if cell.first <= number and (cell.last is None or number < cell.last):
                _draw_cell(pen, cell, top, by, fonts[0])
        pen.text((MARGIN, height - 36), _labels(frames)[number], LIGHT[3], fonts[1])
        images.append(image.quantize(64))
    ends = [*(times[number] for number in numbers[1:]), total]
    seconds = [end - times[number] for number, end in zip(numbers, ends)]
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=[round(1000 * s) for s in seconds],
        loop=0,
        optimize=True,
    )


def _draw_cell(pen: Any, cell: Cell, top: int, by: str, font: Any) -> None:
    """One token or mask with pillow; a text that is wider than its place is made narrower."""
    x, y = MARGIN + cell.column * CHARACTER, top + cell.line * LEADING
    fill = LIGHT[4] if cell.text is None else None
    if cell.tint is not None:
        # As the colour of the SVG over white.
        fill = tuple(round(255 - float(LIGHT[5]) * (255 - part)) for part in bytes.fromhex(colour(cell.tint, by)[1:]))  # type: ignore[assignment]
    if fill is not None:
        pen.rounded_rectangle((x + 0.8, y, x + cell.width * CHARACTER - 0.8, y + 24), 5, fill)
    if cell.text is not None:
        pen.text((x, y + 2), cell.text, LIGHT[2], font)


def _font(size: int) -> Any:
    """A font of equally wide characters, or pillow's own."""
    from PIL import ImageFont

    for name in ("DejaVuSansMono.ttf", "LiberationMono-Regular.ttf", "Menlo.ttc", "consola.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
