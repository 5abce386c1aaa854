"""What the instruction data teaches: facts, definitions and sums, each with questions, its answer and what is right."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from facts import Fact, worded
from questions import QUESTIONS
from texts import WORD_CLASSES, Synset, is_countable, parse_synset, question, statement

WITHHELD_IN = 10  # one fact in so many is taught in one direction only, one sum in so many not at all
# How many rows of the training data teach an item of a kind.
NUM_ROWS = {"capital": 20, "record": 24, "deed": 20, "count": 20, "definition": 8, "word": 5, "arithmetic": 6}
OTHER_ROWS = 12

NUM_DEFINITIONS = 1600
MAX_DEFINITION = 64  # characters
CONCRETE = {
    "05",
    "06",
    "08",
    "13",
    "17",
    "18",
    "20",
}  # WordNet's files of animals, artifacts, body, food, things, people
CLASS_NUMBERS = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}
WORD = re.compile(r"[a-z]{3,}")
NUM_OVERUSED = 200  # the most frequent words of all mean too much for one definition
LARGEST_TERM, LARGEST_FACTOR = 20, 12
OPERATIONS = {"plus": "+", "minus": "-", "times": "*"}


@dataclass(frozen=True)
class Item:
    """One thing to ask for.

    Attributes:
        kind: its group in the evaluation.
        trained: questions of the training data; none for an item that is withheld.
        held_out: questions that only the evaluation asks.
        answer: the sentence to answer with.
        accepted: an answer is right if it holds one of these.
        split: the evaluation's part beside "trained" and "rephrased" to which a withheld item belongs, else "".
    """

    kind: str
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    accepted: tuple[str, ...]
    split: str = ""

    @property
    def num_rows(self) -> int:
        """Rows of the training data for it."""
        return NUM_ROWS.get(self.kind.split(",")[0], OTHER_ROWS)


def fact_items(facts: Iterable[Fact]) -> Iterator[Item]:
    """Ask for every fact in each direction that has questions.

    Where several answers are right, as for the baby of a fox, the first is taught and all are accepted. Of one fact in
    `WITHHELD_IN` the backward direction is withheld: split "reversed".
    """
    groups: dict[tuple[str, str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[fact.kind, "forward", fact.a].append(fact)
        groups[fact.kind, "backward", fact.b].append(fact)
    for (kind, direction, _), alike in groups.items():
        phrasing = QUESTIONS.get((kind, direction))
        if phrasing is None:
            continue
        a, b = alike[0].a, alike[0].b
        expected = (worded((phrasing.expected,), fact.a, fact.b) for fact in alike)
        item = Item(
            kind if direction == "forward" else f"{kind}, backward",
            tuple(worded(phrasing.trained, a, b)),
            tuple(worded(phrasing.held_out, a, b)),
            next(worded((phrasing.answer,), a, b)),
            tuple(text.removesuffix(".") for texts in expected for text in texts),
        )
        yield withheld(item, "reversed") if direction == "backward" and is_chosen(f"{kind} {a} {b}") else item


def definition_items(folder: Path, frequency: Counter) -> Iterator[Item]:
    """Ask what a word means, and for the word of a meaning; of one word in `WITHHELD_IN` only the first.

    Args:
        folder: holds WordNet's data and index files and its counts of tagged words.
        frequency: how often each word stands in the text of the pre-training.
    """
    for synset in plain_synsets(folder, frequency):
        word = synset.words[0]
        yield Item(
            "definition",
            (question(synset), f"What does {word} mean?", f"Define {word}.", f"What is the meaning of {word}?",
             f"Tell me what {word} means.", f"What does the word {word} mean?"),
            (f"Can you explain what {word} means?", f"Give me the definition of {word}.",
             f"How would you define {word}?"),
            statement(synset),
            (synset.definition,),
        )  # fmt: skip
        meaning = f"to {synset.definition}" if synset.word_class == "verb" else synset.definition
        item = Item(
            "word",
            (f"Which word means {meaning}?", f"What word means {meaning}?", f"Tell me the word that means {meaning}.",
             f"What is the word that means {meaning}?"),
            (f"Give me a word that means {meaning}.", f"Do you know the word that means {meaning}?"),
            f"The word is {word}.",
            synset.words,
        )  # fmt: skip
        yield withheld(item, "reversed") if is_chosen(f"word {word}") else item


def arithmetic_items() -> Iterator[Item]:
    """Ask for sums, differences and products; one pair of numbers in `WITHHELD_IN` is withheld: split "unseen"."""
    for name, sign in OPERATIONS.items():
        largest = LARGEST_FACTOR if name == "times" else LARGEST_TERM
        for a in range(largest + 1):
            for b in range((a if name == "minus" else largest) + 1):
                result = {"plus": a + b, "minus": a - b, "times": a * b}[name]
                item = Item(
                    "arithmetic",
                    (f"What is {a} {name} {b}?", f"What is {a} {sign} {b}?", f"How much is {a} {name} {b}?",
                     f"{a} {sign} {b} = ?", f"Calculate {a} {name} {b}."),
                    (f"Can you tell me what {a} {name} {b} is?", f"What does {a} {name} {b} make?",
                     f"What is the result of {a} {sign} {b}?"),
                    f"{a} {name} {b} is {result}.",
                    (f"is {result}", f"= {result}"),
                )  # fmt: skip
                # A sum or product and its mirror image are on the same side.
                first, second = (a, b) if name == "minus" else sorted((a, b))
                yield withheld(item, "unseen") if is_chosen(f"{name} {first} {second}") else item


def plain_synsets(folder: Path, frequency: Counter) -> list[Synset]:
    """The `NUM_DEFINITIONS` most frequent ordinary words that have a short definition, each in its first meaning.

    A word counts as of the class in which tagged texts use it most; an untagged one must name a thing.
    """
    main_class = main_classes((folder / "cntlist.rev").read_text(encoding="utf-8"))
    overused = {word for word, _ in frequency.most_common(NUM_OVERUSED)}
    found: dict[str, Synset] = {}
    for suffix, word_class in WORD_CLASSES.items():
        first = first_offsets((folder / f"index.{suffix}").read_text(encoding="utf-8"))
        for line in (folder / f"data.{suffix}").read_text(encoding="utf-8").splitlines():
            synset = None if line.startswith("  ") else parse_synset(line, word_class)
            if synset is None or not is_plain(synset) or first.get(synset.words[0]) != synset.offset:
                continue
            word = synset.words[0]
            untagged = word_class if word_class == "noun" and synset.subject in CONCRETE else None
            if main_class.get(word, untagged) == word_class and word not in overused:
                found[word] = synset
    order = sorted(found, key=lambda word: (-frequency[word], word))
    return [found[word] for word in order[:NUM_DEFINITIONS]]


def is_plain(synset: Synset) -> bool:
    """Whether its first word is an ordinary one and its definition is short, whole and does not hold that word."""
    word, definition = synset.words[0], synset.definition
    return (
        WORD.fullmatch(word) is not None
        and len(definition) <= MAX_DEFINITION
        and " " in definition
        and not re.search(r"[();:]|etc|^(of|used) ", definition)
        and word[:4] not in definition
        and (synset.word_class != "noun" or is_countable(synset))
    )


def first_offsets(index: str) -> dict[str, int]:
    """For each lemma of an index file, the offset of its first meaning."""
    lines = (line.split() for line in index.splitlines() if not line.startswith("  "))
    return {fields[0]: int(fields[len(fields) - int(fields[2])]) for fields in lines}


def main_classes(counts: str) -> dict[str, str]:
    """For each lemma, the class of words in which tagged texts use it most.

    A line of the counts holds a key such as `dog%1:05:00::`, the number of the meaning and how often it was tagged.
    """
    uses: dict[str, Counter] = defaultdict(Counter)
    for line in counts.splitlines():
        key, _, times = line.split()
        lemma, _, place = key.partition("%")
        uses[lemma][CLASS_NUMBERS[place[0]]] += int(times)
    return {lemma: classes.most_common(1)[0][0] for lemma, classes in uses.items()}


def withheld(item: Item, split: str) -> Item:
    """The item for the evaluation alone."""
    return replace(item, trained=(), held_out=item.trained[:1], split=split)


def is_chosen(key: str) -> bool:
    """Whether a key is one of the withheld, by its checksum."""
    return zlib.crc32(key.encode()) % WITHHELD_IN == 0


def without_repeats(items: Iterable[Item]) -> Iterator[Item]:
    """Leave out questions that an earlier item asks, and items with none left."""
    seen: set[str] = set()
    for item in items:
        trained = tuple(text for text in item.trained if text.lower() not in seen)
        held_out = tuple(text for text in item.held_out if text.lower() not in seen)
        seen.update(text.lower() for text in (*trained, *held_out))
        if trained or (item.split and held_out):
            yield replace(item, trained=trained, held_out=held_out)
