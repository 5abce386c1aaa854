"""Couplets of classical Chinese poems: read from the npm package `chinese-poetry`, and the extract that lies here.

A couplet is a line of a poem whose two halves have five or seven characters each; the task asks for one half given
the other. The extract `couplets.json` holds all of three well-known anthologies, so that the experiment needs no
download.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Three Hundred Tang Poems, Poems by a Thousand Masters, and a collection of Tang poems; below the package's folder.
ANTHOLOGIES = (
    "dist/mengxue/tangshisanbaishou.json",
    "dist/mengxue/qianjiashi.json",
    "dist/shuimotangshi/shuimotangshi.json",
)
EXTRACT = Path(__file__).with_name("couplets.json")
LINE_LENGTHS = (5, 7)

_COUPLET = re.compile(r"(\w+)[，,](\w+)[。！？；]?")


class Couplet(NamedTuple):
    """Two lines of equal length, without punctuation."""

    first: str
    second: str


def load_couplets(path: Path = EXTRACT) -> list[Couplet]:
    """Read the extract: a JSON list of pairs."""
    return [Couplet(*pair) for pair in json.loads(path.read_text(encoding="utf-8"))]


def read_package(folder: Path) -> list[Couplet]:
    """Read the distinct couplets of the anthologies from the unpacked npm package `chinese-poetry`.

    Args:
        folder: the folder that holds `dist/`; `npm pack chinese-poetry@2.0.1` and `tar xzf` make it (`package/`).

    Returns:
        The couplets in the order of the anthologies, each once.

    Raises:
        ValueError: if an anthology is missing.
    """
    missing = [name for name in ANTHOLOGIES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"`folder` must hold `{missing[0]}`, got {folder}; run `npm pack chinese-poetry@2.0.1`, unpack it with "
            "`tar xzf`, and pass the folder `package`."
        )
    lines = [line for name in ANTHOLOGIES for line in poem_lines(json.loads((folder / name).read_text("utf-8")))]
    couplets = [couplet for couplet in map(parse_couplet, lines) if couplet is not None]
    return list(dict.fromkeys(couplets))


def write_extract(couplets: list[Couplet], path: Path = EXTRACT) -> None:
    """Write the couplets as `load_couplets` reads them, one a line."""
    rows = ",\n".join(json.dumps(couplet, ensure_ascii=False) for couplet in couplets)
    path.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


def parse_couplet(line: str) -> Couplet | None:
    """Split a line such as 白日依山盡，黃河入海流。 at its comma; None if it is no couplet of 5 + 5 or 7 + 7."""
    match = _COUPLET.fullmatch(line.strip())
    if match is None or len(match[1]) not in LINE_LENGTHS or len(match[1]) != len(match[2]):
        return None
    return Couplet(match[1], match[2])


def answerable(couplets: Sequence[Couplet]) -> list[Couplet]:
    """The couplets with one right answer in either direction: no other one shares a line with them.

    The anthologies hold variants, such as one first line with two wordings of the second.
    """
    lines = [line for couplet in couplets for line in couplet]
    counts = {line: lines.count(line) for line in set(lines)}
    return [couplet for couplet in couplets if counts[couplet.first] == counts[couplet.second] == 1]


def poem_lines(node: Any) -> Iterator[str]:
    """The lines of every poem in an anthology, whatever its nesting: the texts in the lists named `paragraphs`."""
    if isinstance(node, list):
        for entry in node:
            yield from poem_lines(entry)
    elif isinstance(node, dict):
        yield from (line for line in node.get("paragraphs") or [] if isinstance(line, str))
        yield from poem_lines(list(node.values()))
