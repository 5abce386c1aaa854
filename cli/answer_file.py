r"""Answers on disk: written as they finish, gone on with after a kill, in the order of the prompts at the end.

| file | what it holds |
|---|---|
| `answers.jsonl` | the answers of the first process as they finish; at the end all of them in order |
| `answers.jsonl.part-1` … | those of further processes; gone at the end |
| `answers.jsonl.run.json` | what was asked of whom, by which a run knows its own answers again; stays |

An answer is on disk once its line ends in \n: what follows the last \n was cut off by a kill, and is done again. No
process writes another's file, and whichever finishes last puts everything in order, so the processes need not talk;
on several machines they need a disk in common. Prompt n belongs to process n modulo their number, but an answer counts
whoever wrote it, so a run may go on with another number of processes.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where nothing warns of two runs at once
    fcntl = None  # type: ignore[assignment]


class AnswerFile:
    """The answers of one run, as one of its processes sees them.

    Args:
        path: the file of all answers.
        rank: number of this process, from 0.
    """

    def __init__(self, path: Path, rank: int = 0):
        self.path = Path(os.path.realpath(path))
        self.rank = rank
        self.settings_path = self._beside("run.json")
        self.own_path = self._beside(f"part-{rank}") if rank else self.path
        self._file: BinaryIO | None = None
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder `{self.path.parent}`; make it, or name another `--output`.")
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"`--output` must be a file, but `{path}` is none; name another.")

    def find(self, settings: dict[str, Any]) -> set[int]:
        """Return the numbers of the prompts that have an answer, by a run of the same settings.

        Args:
            settings: all that decides the answers, as JSON: see `describe_difference`.

        Raises:
            ValueError: for answers of another run, or lines that are no answers.
        """
        if not all(_is_empty(path) for path in self._files()):
            self._check_settings(settings)
        return {index for path in self._files() for index, _ in _answers(path)}

    def start(self, settings: dict[str, Any], overwrite: bool = False) -> None:
        """Begin a run, or go on with the one that `find` has found.

        Args:
            settings: those of `find`.
            overwrite: throw away what is there.

        Raises:
            OSError: if another process is writing, or the disk does not let us.
        """
        for path in self._files() if overwrite else ():
            _claim(path).close()
            path.unlink()
        self._file = _claim(self.own_path)
        size = sum(len(line) for line in _complete_lines(self.own_path))
        if self._file.seek(0, os.SEEK_END) > size:
            self._file.truncate(size)
        self._replace(self.settings_path, [json.dumps(settings, indent=2, ensure_ascii=False).encode() + b"\n"])

    def write(self, record: dict[str, Any]) -> None:
        """Write one answer, which has an `index`; it is safe from a kill when this returns."""
        assert self._file is not None, "start() comes first"
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()

    def put_in_order(self, indexes: list[int]) -> int:
        """If every prompt has its answer, make one file of them, in order. Any process may do it, and several at once.

        Args:
            indexes: numbers of all prompts, in order.

        Returns:
            Number of answers that are still missing.
        """
        paths = self._files()
        answers: dict[int, bytes] = {}
        for path in paths:
            for index, line in _answers(path):
                answers.setdefault(index, line)
        num_missing = sum(index not in answers for index in indexes)
        if num_missing or (paths == [self.path] and list(answers) == indexes):
            return num_missing
        self._replace(self.path, [answers[index] for index in indexes])
        for path in paths:
            if path != self.path:
                path.unlink(missing_ok=True)
        return 0

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")

    def _files(self) -> list[Path]:
        """Return the files with answers that exist, those of all processes of this run and earlier starts of it.

        The file of all answers comes last: it is replaced before the parts go, so who reads in this order misses none.
        """
        part = re.compile(re.escape(f"{self.path.name}.part-") + r"\d+")
        parts = [path for path in self.path.parent.iterdir() if part.fullmatch(path.name)]
        return [path for path in (*sorted(parts), self.path) if path.exists()]

    def _check_settings(self, settings: dict[str, Any]) -> None:
        way_out = "name another --output, or pass --overwrite to begin anew."
        try:
            known = json.loads(self.settings_path.read_text(encoding="utf-8"))
            difference = describe_difference(known, settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"`{self.path}` exists, but `{self.settings_path.name}`, which says what it answers, is not beside it "
                f"or not readable; {way_out}"
            ) from None
        if difference:
            raise ValueError(
                f"`{self.path}` holds answers of another run: {difference}. To go on with it, ask for the same again; "
                f"otherwise {way_out}"
            )

    def _replace(self, path: Path, lines: list[bytes]) -> None:
        """Write a file that is either the old one or the whole new one, whenever the process is killed."""
        draft = self._beside(f"draft-{self.rank}")
        with draft.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def describe_difference(known: dict[str, Any], settings: dict[str, Any]) -> str:
    """Say in what two runs differ; empty if their answers are the same.

    Args:
        known, settings: `input` and `checkpoint`, each with a `name` for the reader and a `digest` that counts; and
            `options`, by name.
    """
    differences = [
        f"its {kind} was another ({known[kind]['name']}, now {settings[kind]['name']})"
        for kind in ("input", "checkpoint")
        if known[kind]["digest"] != settings[kind]["digest"]
    ]
    before, now = known["options"], json.loads(json.dumps(settings["options"]))
    differences += [
        f"`{name}` was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return "; ".join(differences)


def _claim(path: Path) -> BinaryIO:
    """Open a file to append to, which no other process is writing."""
    file = path.open("ab")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"Another process is writing to `{path}`; wait for it, or end it first.") from None
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
    """Yield the lines that were written to their end; none if the file has gone, which is in order by then."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line
    except FileNotFoundError:
        return


def _answers(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and line of each answer in a file."""
    for number, line in enumerate(_complete_lines(path), start=1):
        try:
            index = int(json.loads(line)["index"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}:{number} is no answer of this command; correct or delete the line, or pass --overwrite."
            ) from None
        yield index, line
