"""Select the plain part of the corpus, on which the bundled model ends its training.

A small model spends its last steps, at a falling learning rate, best on what it can learn: texts in common words, and
the quiz facts repeated.

    .venv/bin/python examples/llada_tiny/select_plain.py --data runs/llada-tiny-data
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

WORD = re.compile(r"[a-z']+")
SEED = 0


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return WORD.findall(text.lower())


def paragraphs(document: dict, max_characters: int = 300) -> Iterator[dict]:
    """Split a long document at its lines into pieces of at most `max_characters`, so that each can be judged."""
    piece = ""
    for line in document["text"].split("\n"):
        if piece and len(piece) + len(line) > max_characters:
            yield {**document, "text": piece}
            piece = ""
        piece = f"{piece}\n{line}" if piece else line
    yield {**document, "text": piece}


def select_plain(documents: list[dict], num_common: int, quiz_copies: int) -> list[dict]:
    """Keep the quiz facts, several times, and what is written in the most common words alone.

    Args:
        documents: {"text", "source"} each.
        num_common: how many of the most frequent words count as common.
        quiz_copies: copies of every quiz fact.

    Returns:
        The selection, shuffled with a fixed seed.
    """
    counts = Counter(word for document in documents for word in words_of(document["text"]))
    common = {word for word, _ in counts.most_common(num_common)}
    selected = []
    for document in documents:
        if document["source"] == "quiz":
            selected += [document] * quiz_copies
        else:
            selected += [piece for piece in paragraphs(document) if common.issuperset(words_of(piece["text"]))]
    random.Random(SEED).shuffle(selected)
    return selected


def main() -> None:
    """Read corpus.jsonl of a data folder, write plain.jsonl beside it, and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder made by prepare_data.py")
    parser.add_argument("--num-common", type=int, default=6000, help="how many words count as common")
    parser.add_argument("--quiz-copies", type=int, default=2, help="copies of every quiz fact")
    args = parser.parse_args()
    with open(args.data / "corpus.jsonl", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    selected = select_plain(documents, args.num_common, args.quiz_copies)
    with open(args.data / "plain.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in selected)
    characters = Counter()
    for document in selected:
        characters[document["source"]] += len(document["text"])
    print(f"{args.data / 'plain.jsonl'}: {len(selected)} documents, characters by source: {dict(characters)}")


if __name__ == "__main__":
    main()
