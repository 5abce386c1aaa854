"""Prepare the instruction data of the bundled model: questions and answers, and questions to evaluate it with.

    python examples/llada_tiny/prepare_instructions.py --data runs/llada-tiny-data

Needs the folder that `prepare_data.py` wrote, and fetches the same packages once more. The answers come from the game
`quiz`, from WordNet's definitions, from the chitchat-dataset, and, for sums and small talk, from the files beside this.

Writes into the data folder:
    instructions.jsonl               one {"messages"} a line, to train on
    instructions-validation.jsonl    the same, for the validation loss: other wordings, other small talk
    phrasings.jsonl                  one {"question", "answers", "kind", "split"} a line, for `ask.py`
    instructions-statistics.json     sizes
"""

import argparse
import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from facts import quiz_facts
from instructions import (
    Row,
    conversation_rows,
    count_kinds,
    evaluation_questions,
    held_out_rows,
    item_rows,
    talk_rows,
)
from items import Item, arithmetic_items, definition_items, fact_items, without_repeats
from prepare_data import fetch, unpack
from records import gloss_facts
from small_talk import OWN, exchanges
from texts import words_of
from transformers import PreTrainedTokenizerFast

from llada_core.tokenization import prepare_tokenizer

INSTRUCTIONS, VALIDATION = "instructions.jsonl", "instructions-validation.jsonl"
QUESTIONS, STATISTICS = "phrasings.jsonl", "instructions-statistics.json"
SEED = 0
# Prompt and answer together; a longer conversation is left out. Few are, and short rows are quick to train on.
MAX_TOKENS = 64
NUM_VALIDATION = 600


def main() -> None:
    """Fetch, build, write."""
    options = parse_arguments()
    documents = [*read_jsonl(options.data / "corpus.jsonl"), *read_jsonl(options.data / "validation.jsonl")]
    with tempfile.TemporaryDirectory() as scratch:
        packages = fetch(options.downloads or Path(scratch) / "downloads", options.any_version)
        share = unpack(packages, Path(scratch) / "unpacked") / "usr/share"
        items = read_items(share, Counter(word for document in documents for word in words_of(document["text"])))
    talk = {name: chat_texts(options.data / f"{name}.jsonl") for name in ("corpus", "validation")}
    generator = random.Random(SEED)
    rows = [
        *item_rows(items, generator),
        *talk_rows(OWN, exchanges(talk["corpus"])),
        *conversation_rows(items, OWN, generator),
    ]
    generator.shuffle(rows)
    rows, lengths = keep_short(rows, options.data / "tokenizer")
    validation, _ = keep_short(
        held_out_rows(items, exchanges(talk["validation"]), NUM_VALIDATION), options.data / "tokenizer"
    )
    questions = evaluation_questions(items, generator)
    write_jsonl(rows, options.data / INSTRUCTIONS)
    write_jsonl(validation, options.data / VALIDATION)
    write_jsonl(questions, options.data / QUESTIONS)
    statistics = {
        "items": count_kinds(items),
        "conversations": len(rows),
        "validation": len(validation),
        "tokens": sum(lengths),
        "tokens_of_a_conversation": quantiles(lengths),
        "questions": dict(Counter(question["split"] for question in questions)),
        "instructions_sha256": hashlib.sha256((options.data / INSTRUCTIONS).read_bytes()).hexdigest(),
    }
    text = json.dumps(statistics, indent=2)
    (options.data / STATISTICS).write_text(text + "\n", encoding="utf-8")
    print(text)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by prepare_data.py")
    parser.add_argument("--downloads", type=Path, help="folder that keeps the packages for the next time")
    parser.add_argument("--any-version", action="store_true", help="take the versions that your release of Debian has")
    return parser.parse_args()


def read_items(share: Path, frequency: Counter) -> list[Item]:
    """Everything there is to ask for.

    Args:
        share: the packages' `usr/share`.
        frequency: how often each word stands in the text of the pre-training.
    """
    facts = [*gloss_facts(share / "wordnet"), *quiz_facts(share / "games/bsdgames/quiz")]
    definitions = definition_items(share / "wordnet", frequency)
    return list(without_repeats([*fact_items(facts), *definitions, *arithmetic_items()]))


def keep_short(rows: Iterable[Row], tokenizer_folder: Path) -> tuple[list[Row], list[int]]:
    """Leave out conversations of more than `MAX_TOKENS` tokens; the rest with their lengths."""
    tokenizer: Any = prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(tokenizer_folder))
    rows = list(rows)
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    kept = [(row, len(ids)) for row, ids in zip(rows, encoded) if len(ids) <= MAX_TOKENS]
    print(f"{len(rows) - len(kept)} of {len(rows)} conversations have more than {MAX_TOKENS} tokens and are left out")
    return [row for row, _ in kept], [length for _, length in kept]


def chat_texts(path: Path) -> list[str]:
    """The small talk among the documents of a file."""
    return [document["text"] for document in read_jsonl(path) if document["source"] == "chitchat"]


def quantiles(lengths: list[int]) -> dict[str, int]:
    """Some quantiles of a list."""
    ordered = sorted(lengths)
    return {
        name: ordered[int(share * (len(ordered) - 1))] for name, share in (("median", 0.5), ("95 %", 0.95), ("most", 1))
    }


def read_jsonl(path: Path) -> list[dict]:
    """One object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(lines: Iterable[Any], path: Path) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
