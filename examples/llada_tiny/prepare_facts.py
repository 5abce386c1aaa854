"""Prepare what the bundled model learns beside puzzles: facts, small talk, what it cannot know; and its questions.

    python examples/llada_tiny/prepare_facts.py --output runs/tiny-facts

The facts come from the game `quiz` (bsdgames) and from WordNet, fetched with `apt-get` and unpacked with `dpkg`.

Writes into the output folder:
    facts.json         items, small talk, words, and the vocabulary; `answers.Answers` makes rows of them
    questions.jsonl    one {"question", "answers", "kind", "split"} a line, for `ask.py`
    NOTICE.md          the licences of the two packages
"""

import argparse
import json
import random
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from answers import Answers, sum_question
from facts import quiz_facts, worded
from items import Item, fact_items, without_repeats
from prepare_data import fetch_one, unpack
from prepare_instructions import write_jsonl
from questions import QUESTIONS
from records import gloss_facts
from small_talk import OWN
from unknown import REFUSAL, Words, unknown_question
from words import pieces

PACKAGES = {"wordnet-base": "1:3.0-37", "bsdgames": "2.17-29+b1"}
FACTS, ASKED, NOTICE = "facts.json", "questions.jsonl", "NOTICE.md"
SEED = 0
# A matter of taste, or answers that nobody asks for.
LEFT_OUT = {"flower"}
LARGEST_FACTOR = 12
# Rows of the stream whose pieces make the vocabulary, and how often a piece must come.
NUM_SCANNED, MIN_COUNT = 60000, 2
NUM_UNKNOWN, NUM_SUMS = 100, 100
# Questions of the evaluation for each kind and split.
NUM_ASKED = 40


def main() -> None:
    """Fetch, build, write."""
    options = parse_arguments()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        downloads = options.downloads or Path(scratch) / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        packages = [
            fetch_one(downloads, f"{name}_*.deb", ["apt-get", "download", f"{name}={version}"])
            for name, version in PACKAGES.items()
        ]
        share = unpack(packages, Path(scratch) / "unpacked") / "usr/share"
        facts = [*gloss_facts(share / "wordnet"), *quiz_facts(share / "games/bsdgames/quiz")]
        kept = [fact for fact in facts if fact.kind not in LEFT_OUT]
        items, sentences = list(read_items(kept)), statements(kept)
        known = {word.lower().strip() for fact in facts for word in pieces(f"{fact.a} {fact.b}")}
        words = Words.read(share / "wordnet", known)
        (options.output / NOTICE).write_text(notice(share / "doc"), encoding="utf-8")
    talk, held_out_talk = split_talk()
    content: dict[str, Any] = {"items": [asdict(item) for item in items], "sentences": sentences, "talk": talk}
    content |= {"words": asdict(words), "vocabulary": vocabulary(Answers(items, talk, words, sentences))}
    (options.output / FACTS).write_text(json.dumps(content, indent=0, ensure_ascii=False), encoding="utf-8")
    questions = evaluation_questions(items, held_out_talk, words)
    write_jsonl(questions, options.output / ASKED)
    print(f"{len(items)} items, {len(content['vocabulary'])} words, {len(questions)} questions")
    print(dict(Counter(item.kind for item in items)))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--downloads", type=Path, help="folder that keeps the packages for the next time")
    return parser.parse_args()


def notice(documentation: Path) -> str:
    """The licence texts that must travel with the facts, from the packages themselves.

    Args:
        documentation: the packages' `usr/share/doc`.
    """
    wordnet = (documentation / "wordnet-base/copyright").read_text(encoding="utf-8").split("Files: debian/*")[0]
    games = (documentation / "bsdgames/copyright").read_text(encoding="utf-8")
    games = games[games.index("Most games are under") : games.index("SUCH DAMAGE.") + len("SUCH DAMAGE.")]
    sections = {
        "WordNet 3.0: facts that its definitions state, and lists of words": wordnet,
        "bsdgames: answer files of the game quiz, put into sentences": games,
    }
    quoted = [f"## {title}\n\n```\n{re.sub(r'(?m)^ [.]$', '', text).strip()}\n```" for title, text in sections.items()]
    return "\n\n".join(["# Origin and licences of the facts", *quoted]) + "\n"


def read_items(facts: Iterable[Any]) -> Iterable[Item]:
    """Facts as items, and products. Both directions of a fact are answered by the same sentence.

    So a fact that is only asked for forward is stated in one order alone: asked backward, it needs the reverse of what
    was trained.
    """
    facts = list(facts)
    forward = {(fact.kind, fact.a, fact.b): fact for fact in facts}
    sentence = {
        (kind, a, b): next(worded((QUESTIONS[kind, "forward"].answer,), a, b), "")
        for kind, a, b in forward
        if (kind, "forward") in QUESTIONS
    }
    backward_answers = {
        next(worded((QUESTIONS[kind, "backward"].answer,), a, b), ""): sentence[kind, a, b]
        for kind, a, b in forward
        if (kind, "backward") in QUESTIONS and (kind, a, b) in sentence
    }
    for item in without_repeats(fact_items(facts)):
        is_backward = item.kind.endswith(", backward")
        yield replace(item, answer=backward_answers.get(item.answer, item.answer)) if is_backward else item
    for a in range(LARGEST_FACTOR + 1):
        for b in range(LARGEST_FACTOR + 1):
            yield Item(
                "product",
                (f"What is {a} times {b}?", f"How much is {a} times {b}?", f"Calculate {a} times {b}.",
                 f"What's {a} times {b}?"),
                (f"Can you tell me what {a} times {b} is?", f"What is the result of {a} times {b}?"),
                f"{a} times {b} is {a * b}.", (f"is {a * b}",),
            )  # fmt: skip


def statements(facts: Iterable[Any]) -> list[str]:
    """Sentences that state the facts, in both orders; of a fact that is withheld backward, in the one alone."""
    return sorted({item.answer for item in without_repeats(fact_items(facts)) if item.trained})


def split_talk() -> tuple[list[Any], list[Any]]:
    """Small talk to train on; and one wording to ask of each that has four, with its answer."""
    trained, held_out = [], []
    for said, answer in OWN:
        keep = said[:-1] if len(said) > 3 else said
        trained.append([list(keep), answer])
        held_out += [[wording, answer] for wording in said[len(keep) :]]
    return trained, held_out


def vocabulary(answers: Answers) -> list[str]:
    """The pieces of the stream that come often enough, the most frequent first; those of every answer in any case."""
    counts: Counter[str] = Counter()
    for number in range(NUM_SCANNED):
        for turn in answers.conversation(random.Random(f"scan {number}")):
            counts.update(pieces(turn))
    always = {"Sudoku", "user", "assistant", "system"}
    always |= {piece for text in answers.sentences for piece in pieces(text)}
    always |= {piece for item in answers.items for piece in pieces(item.answer)}
    chosen = {piece for piece, count in counts.items() if count >= MIN_COUNT} | always
    # Single characters are bytes already, and a made-up name is none to know.
    chosen = {piece for piece in chosen if len(piece.encode()) > 1}
    return sorted(chosen, key=lambda piece: (piece not in always, -counts[piece], piece))


def evaluation_questions(items: list[Item], talk: list[Any], words: Words) -> list[dict[str, object]]:
    """Draw the questions of the evaluation, none of which was trained in this wording, but for the split "trained"."""
    generator = random.Random(SEED)
    drawn: dict[tuple[str, str], list[dict[str, object]]] = defaultdict(list)
    for item in items:
        splits = {item.split: item.held_out} if item.split else {"trained": item.trained, "rephrased": item.held_out}
        for split, questions in splits.items():
            if questions:
                drawn[item.kind, split].append(entry(generator.choice(questions), item.accepted, item.kind, split))
    chosen = []
    for questions in drawn.values():
        generator.shuffle(questions)
        chosen += questions[:NUM_ASKED]
    chosen += [entry(wording, (answer.rstrip("?!."),), "talk", "rephrased") for wording, answer in talk]
    for _ in range(NUM_SUMS):
        question, answer = sum_question(generator, "test")
        chosen.append(entry(question, (answer.rstrip("."),), "sum", "unseen"))
    for _ in range(NUM_UNKNOWN):
        question = unknown_question(words, generator, held_out=True)
        chosen.append(entry(question, (REFUSAL.rstrip("."),), "unknown", "unknown"))
    return chosen


def entry(question: str, answers: Iterable[str], kind: str, split: str) -> dict[str, object]:
    """A question of the evaluation."""
    return {"question": question, "answers": list(answers), "kind": kind, "split": split}


if __name__ == "__main__":
    main()
