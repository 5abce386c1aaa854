"""Reads a file of prompts, and names the line wherever one is wrong."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the answers add to a line.
ADDED_KEYS = ("index", "answer", "forward_passes", "tokens")


@dataclass(frozen=True)
class PromptLine:
    """One line of the file.

    Attributes:
        index: its number, from 0.
        place: how messages name it: the file, and its number from 1.
        record: what it holds: `prompt` or `messages`, and any other keys.
    """

    index: int
    place: str
    record: dict[str, Any]


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, and the digest of its bytes."""

    lines: list[PromptLine]
    digest: str


def read_prompt_file(path: Path) -> PromptFile:
    """Read the prompts: JSON lines, or in a file named .txt one prompt per line. Blank lines are skipped.

    A JSON line is an object with either `prompt`, a text, or `messages`, a list of objects with the texts `role` and
    `content`.

    Raises:
        OSError: for a file that cannot be read.
        ValueError: for a file without prompts or that is not UTF-8, and for a line that is not such an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`; `--input` takes a file of prompts.")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not UTF-8 ({error}); save it as UTF-8.") from None
    lines = []
    for index, line in enumerate(text.split("\n")):
        if line.strip():
            place = f"{path.name}:{index + 1}"
            record = {"prompt": line.rstrip("\r")} if path.suffix == ".txt" else _parse(line, place)
            lines.append(PromptLine(index, place, record))
    if not lines:
        raise ValueError(f"`{path}` has no prompts; write one per line.")
    return PromptFile(lines, hashlib.sha256(content).hexdigest())


def _parse(line: str, place: str) -> dict[str, Any]:
    """Read one JSON line and check it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}); write one object per line.") from None
    if not isinstance(record, dict):
        raise ValueError(f'{place} must be an object such as {{"prompt": "…"}}, got {type(record).__name__}.')
    if ("prompt" in record) == ("messages" in record):
        raise ValueError(
            f"{place} must have either `prompt` or `messages`, got the keys {', '.join(record) or 'none'}."
        )
    taken = [key for key in ADDED_KEYS if key in record]
    if taken:
        raise ValueError(f"{place} has the key `{taken[0]}`, which the answer adds; rename it.")
    if "prompt" in record and not isinstance(record["prompt"], str):
        raise ValueError(f"`prompt` of {place} must be text, got {type(record['prompt']).__name__}.")
    if "prompt" in record and not record["prompt"].strip():
        raise ValueError(f"`prompt` of {place} is empty; write at least one word, or leave the line out.")
    if "messages" in record:
        _check_messages(record["messages"], place)
    _check_encodable(record, place)
    return record


def _check_messages(messages: Any, place: str) -> None:
    """Raise unless `messages` is a conversation."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`messages` of {place} must be a list of at least one turn.")
    for turn in messages:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise ValueError(f"Every turn in `messages` of {place} must have the texts `role` and `content`.")


def _check_encodable(record: dict[str, Any], place: str) -> None:
    """Raise for half a surrogate pair, which JSON can spell but no file can hold."""
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} is not valid UTF-8 ({error.reason}); correct the line.") from None
