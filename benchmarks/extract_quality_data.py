"""Take the texts and facts of `steps_quality.py` from the training data of the bundled model.

    python examples/llada_tiny/prepare_data.py --output runs/llada-tiny-data
    python benchmarks/extract_quality_data.py --data runs/llada-tiny-data

Writes beside this file:
    heldout.jsonl   {"text", "source"} a line: texts the model was not trained on, of WordNet and the Bible in turn
    facts.jsonl     {"prompt", "answers", "kind"} a line: sentences the model was trained on, cut before their answer
    kinds.json      the answers of all facts of a kind
"""

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SEED = 0
NUM_TEXTS = 96
# Of similar length, so that little of a batch is padding.
MIN_CHARACTERS, MAX_CHARACTERS = 110, 160
# The beginning of a sentence of the quiz, its answer, and how many of the kind are taken.
FACTS = {
    "capital": (r"(The capital of .+ is) (.+)\.", 40),
    "chemical symbol": (r"(The chemical symbol for .+ is) (.+)\.", 14),
    "atomic number": (r"(The atomic number of .+ is) (.+)\.", 12),
    "baby": (r"(A baby .+ is called) (.+)\.", 14),
    "group": (r"(A group of .+ is called) (.+)\.", 24),
    "opposite": (r"(The opposite of .+ is) (.+)\.", 16),
    "successor": (r"(After .+ came) (.+)\.", 4),
    "president": (r"(The \d+\w\w President of the United States was) (.+)\.", 4),
}

Line = dict[str, object]


def read_jsonl(path: Path) -> list[dict]:
    """One object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(lines: list[Line], path: Path) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def passages(chapter: str) -> list[str]:
    """Runs of whole sentences of a chapter, of the wanted length; its heading is left out."""
    found, passage = [], ""
    for sentence in re.split(r"(?<=[.?!])\s+", chapter.split("\n\n", 1)[-1]):
        passage = f"{passage} {sentence}".strip()
        if len(passage) >= MIN_CHARACTERS:
            found.append(passage)
            passage = ""
    return [passage for passage in found if len(passage) <= MAX_CHARACTERS]


def held_out_texts(documents: list[dict]) -> list[Line]:
    """Documents of WordNet and passages of the Bible, in turn."""
    texts: dict[str, list[str]] = {"wordnet": [], "bible": []}
    for document in documents:
        if document["source"] == "bible":
            texts["bible"] += passages(document["text"])
        elif document["source"] == "wordnet" and MIN_CHARACTERS <= len(document["text"]) <= MAX_CHARACTERS:
            texts["wordnet"].append(document["text"])
    for source in texts:
        texts[source] = random.Random(SEED).sample(sorted(texts[source]), NUM_TEXTS // 2)
    return [{"text": text, "source": source} for pair in zip(*texts.values()) for source, text in zip(texts, pair)]


def facts(documents: list[dict]) -> tuple[list[Line], dict[str, list[str]]]:
    """Sentences of the quiz, each beginning once with all its answers; and the answers of all facts of a kind."""
    sentences = sorted({document["text"] for document in documents if document["source"] == "quiz"})
    lines: list[Line] = []
    kinds: dict[str, list[str]] = {}
    for kind, (pattern, count) in FACTS.items():
        answers = defaultdict(list)
        for found in filter(None, (re.fullmatch(pattern, sentence) for sentence in sentences)):
            answers[found[1]].append(found[2])
        kinds[kind] = sorted({answer for given in answers.values() for answer in given})
        for prompt in random.Random(SEED).sample(sorted(answers), count):
            lines.append({"prompt": prompt, "answers": answers[prompt], "kind": kind})
    random.Random(SEED).shuffle(lines)
    return lines, kinds


def main() -> None:
    """Read the data, write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare_data.py")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write into; this file's if unset")
    args = parser.parse_args()
    write_jsonl(held_out_texts(read_jsonl(args.data / "validation.jsonl")), args.output / "heldout.jsonl")
    lines, kinds = facts(read_jsonl(args.data / "corpus.jsonl"))
    write_jsonl(lines, args.output / "facts.jsonl")
    rows = [f"{json.dumps(kind)}: {json.dumps(answers, ensure_ascii=False)}" for kind, answers in kinds.items()]
    (args.output / "kinds.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
