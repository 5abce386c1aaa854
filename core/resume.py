r"""Records on disk as they come, so that a task that was interrupted goes on where it ended.

| file | what it holds |
|---|---|
| `answers.jsonl` | the records of the first process as they come; after `put_in_order` all of them |
| `answers.jsonl.part-1` … | those of other processes or starts; gone after `put_in_order` |
| `answers.jsonl.run.json` | the settings of the run, by which it recognises its records |

A record is a line of JSON, and on disk once the line ends in \n: what follows the last \n was cut off by a kill, and
is made again. No process writes another's file, and whichever finishes last puts everything in order, so the processes
do not communicate; across hosts they need a shared filesystem. A record counts whoever wrote it, so a run may go on
with another number of processes.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Optional

try:
    import fcntl
except ImportError:  # Windows, where nothing warns of two runs at once
    fcntl = None  # type: ignore[assignment]

Settings = dict[str, Any]


class RecordFile:
    """The records of one task, as one of its processes sees them.

    Args:
        path: the file of all records.
        part: name of this process's own file beside it, of letters, digits and hyphens; empty if it writes `path`.
        fields: what every record has; the first field tells records apart.
    """

    def __init__(self, path: Path, part: str = "", fields: Sequence[str] = ("key", "result")):
        self.path, self.part, self.fields = Path(os.path.realpath(path)), part, tuple(fields)
        self.settings_path = self._beside("run.json")
        self.own_path = self._beside(f"part-{part}") if part else self.path
        self._file: Optional[BinaryIO] = None

    def covers(self, path: Path) -> bool:
        """Whether `path` is the file of all records, or has the name of one that may lie beside it."""
        path = Path(os.path.realpath(path))
        beside = re.compile(re.escape(self.path.name) + r"(\.run\.json|\.(part|draft)-[\w-]+)?")
        same_file = path.exists() and any(
            path.samefile(mine) for mine in (*self._files(), self.settings_path) if mine.exists()
        )
        return same_file or (path.parent == self.path.parent and bool(beside.fullmatch(path.name)))

    def find(self, settings: Optional[Settings] = None) -> dict[Any, dict[str, Any]]:
        """Return the records that are there, by their first field.

        Args:
            settings: all that decides the records, see `describe_difference`. None takes records of any run.

        Raises:
            ValueError: for records of another run, and lines that are no records.
        """
        paths = self._files()
        if settings is not None and not all(_is_empty(path) for path in paths):
            self._check_settings(settings)
        return {key: record for path in paths for key, record, _ in self._records(path)}

    def start(self, settings: Optional[Settings] = None, overwrite: bool = False) -> None:
        """Begin a run, or go on with the one that `find` has found; makes the folder.

        Args:
            settings: those of `find`.
            overwrite: throw away what is there.

        Raises:
            OSError: if another process is writing, or the disk does not let us.
            ValueError: if a file with the name of a part would be thrown away, but holds something else than records.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        thrown_away = self._files() if overwrite else []
        for path in thrown_away:
            if path != self.path and not self._is_part(path):
                raise ValueError(
                    f"`{path}` has the name of a part of `{self.path.name}`, but holds other things than its records; "
                    "move it away, or name another `--output`."
                )
        for path in thrown_away:
            _claim(path).close()
            path.unlink()
        self._file = _claim(self.own_path)
        size = sum(len(line) for line in _complete_lines(self.own_path))
        if self._file.seek(0, os.SEEK_END) > size:
            self._file.truncate(size)
        if settings is not None:
            self._replace(self.settings_path, [json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"])

    def write(self, *records: dict[str, Any]) -> None:
        """Write records, which are safe from a kill when this returns; starts a run without settings if none was."""
        if self._file is None:
            self.start()
        assert self._file is not None
        self._file.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
        self._file.flush()

    def close(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()

    def put_in_order(self, keys: list[Any]) -> int:
        """If no record is missing, make one file of them, in order. Any process may do it, and several at once.

        Args:
            keys: of all records, in order.

        Returns:
            Number of records that are still missing.
        """
        paths = self._files()
        lines: dict[Any, bytes] = {}
        for path in paths:
            for key, _, line in self._records(path):
                lines.setdefault(key, line)
        num_missing = sum(key not in lines for key in keys)
        if num_missing or (paths == [self.path] and list(lines) == keys):
            return num_missing
        self._replace(self.path, [lines[key] for key in keys])
        for path in paths:
            if path != self.path:
                path.unlink(missing_ok=True)
        return 0

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")

    def _files(self) -> list[Path]:
        """Return the files with records that exist, those of all processes of this run and earlier starts of it.

        The file of all records comes last: it is replaced before the parts go, so who reads in this order misses none.
        """
        if not self.path.parent.is_dir():
            return []
        part = re.compile(re.escape(f"{self.path.name}.part-") + r"[\w-]+")
        parts = [path for path in self.path.parent.iterdir() if part.fullmatch(path.name)]
        return [path for path in (*sorted(parts), self.path) if path.exists()]

    def _is_part(self, path: Path) -> bool:
        """Whether a file holds records only, of which the last one may be cut off."""
        try:
            size = sum(len(line) for _, _, line in self._records(path))
        except ValueError:
            return False
        begin = json.dumps({self.fields[0]: 0}).partition(" ")[0].encode()  # {"index":
        with path.open("rb") as file:
            file.seek(size)
            rest = file.read(len(begin))
        return begin.startswith(rest)

    def _records(self, path: Path) -> Iterator[tuple[Any, dict[str, Any], bytes]]:
        """Yield key, record and line of each record in a file."""
        for number, line in enumerate(_complete_lines(path), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or any(field not in record for field in self.fields):
                fields = " and ".join(f"`{field}`" for field in self.fields)
                raise ValueError(
                    f"`{path}:{number}` is not a record with {fields}; delete the line, and run again to replace it."
                )
            yield record[self.fields[0]], record, line

    def _check_settings(self, settings: Settings) -> None:
        way_out = "name another `--output`, or pass `--force` to start over."
        try:
            known = json.loads(self.settings_path.read_text(encoding="utf-8"))
            difference = describe_difference(known, settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"`{self.path}` exists, but `{self.settings_path.name}`, which describes its run, is missing or not "
                f"readable; {way_out}"
            ) from None
        if difference:
            raise ValueError(
                f"`{self.path}` was written by another run: {difference}. Use the same settings to resume it; "
                f"otherwise {way_out}"
            )

    def _replace(self, path: Path, lines: list[bytes]) -> None:
        write_whole(path, lines, draft=self._beside(f"draft-{self.part or 0}"))


def describe_difference(known: Settings, settings: Settings) -> str:
    """Say in what two runs differ; empty if their records are the same.

    Args:
        known, settings: `options`, by name; anything else, such as `input` or `checkpoint`, has a `name` for the reader
            and a `digest` that counts.
    """
    differences = [
        f"its {kind} was another ({known[kind]['name']}, now {settings[kind]['name']})"
        for kind in settings
        if kind != "options" and known[kind]["digest"] != settings[kind]["digest"]
    ]
    before, now = known["options"], json.loads(json.dumps(settings["options"]))
    differences += [
        f"`{name}` was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return "; ".join(differences)


def write_whole(path: Path, lines: list[bytes], draft: Optional[Path] = None) -> None:
    """Write a file that is either the old one or the whole new one, whenever the process is killed.

    Args:
        path: the file.
        lines: its content.
        draft: where it is written first, on the same disk; None is beside it.
    """
    draft = draft or path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _claim(path: Path) -> BinaryIO:
    """Open a file to append to, which no other process is writing."""
    file = path.open("ab")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"Another process is writing to `{path}`; wait for it, or stop it first.") from None
        except OSError:  # a file system without locks
            pass
    return file


def _is_empty(path: Path) -> bool:
    """Whether a file holds nothing, or has gone."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def _complete_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines that were written to their end; none if the file has gone, as it has been put in order."""
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
    except FileNotFoundError:
        return
