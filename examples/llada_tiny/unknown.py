"""Questions that the bundled model cannot answer, so that it learns to say so."""

import random
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REFUSAL = "I do not know."
# One noun in so many, and one made-up name in so many, only the evaluation asks for.
HELD_OUT_IN = 5
CLASS_SUFFIX = {"1": "noun", "2": "verb", "3": "adjective"}

# {n} a noun, {v} a verb, {j} an adjective, {name} a made-up name.
TRAINED = tuple("""
Why is the {n} {j}? | Why is a {n} so {j}? | Why do people {v}? | Why did {name} {v} the {n}? | Why does the {n} {v}?
How do I {v} a {n}? | How do you {v} the {n}? | How does a {n} work? | How can I {v} my {n}? | How big is a {n}?
How much does a {n} cost? | How old is {name}? | How far is it to {name}? | How many people live in {name}?
How many {n}s are there in {name}? | How high is the {n} of {name}? | How long does it take to {v} a {n}?
What is a {n}? | What does {n} mean? | What is the {n} of {name}? | What is the best {n}? | What color is the {n}?
What is the {n}? | What does {name} mean? | What is {name}? | What do you know about {name}? | What did {name} {v}?
What is the population of {name}? | What language do they speak in {name}? | What happened in {name}?
What is the difference between a {n} and a {n2}? | What should I {v}? | What is the largest {n} in {name}?
Who is {name}? | Who was {name}? | Who wrote the {n}? | Who invented the {n}? | Who made the {n} of {name}?
Who is the {n} of {name}? | Who won the {n}? | Who sings {name}? | Who painted the {j} {n}?
When was {name} born? | When did the {n} begin? | When was the {n} invented? | When did {name} {v}?
Where is {name}? | Where is the {n}? | Where can I {v} a {n}? | Where was {name} born? | Where do {n}s live?
Which {n} is {j}? | Which {n} should I {v}? | Is a {n} {j}? | Is {name} a {n}? | Does a {n} {v}? | Can a {n} {v}?
Tell me about the {n}. | Tell me about {name}. | Explain the {n}. | Describe a {j} {n}. | Define {n}.
Write a poem about a {n}. | Write a story about {name}. | Write a letter to my {n}. | Write code that can {v} a {n}.
Translate {n} into French. | Translate the {j} {n} into German. | Give me a recipe for {n}. | Give me three {j} {n}s.
Summarize the {n}. | Help me {v} the {n}. | I need a {n}. | The {n} is {j}. | My {n} is {j}. | {name}
Should I {v} the {n}? | Will the {n} {v}? | Do you like the {n}? | Have you seen my {n}? | List all {n}s of {name}.
""".replace("\n", " | ").strip(" |").split(" | "))  # fmt: skip
HELD_OUT = tuple("""
Why are {n}s {j}? | How would you {v} this {n}? | What makes a {n} {j}? | Who discovered the {j} {n}?
When will {name} {v}? | Where does the {n} come from? | Which {n} did {name} {v}? | Are {n}s {j}?
Write a song about the {j} {n}. | Translate my {n} into Spanish. | What is {name} famous for? | Show me a {n}.
Can you {v} a {n} for me? | Who owns {name}? | How heavy is the {n}?
""".replace("\n", " | ").strip(" |").split(" | "))  # fmt: skip

ONSETS = [
    "b",
    "bl",
    "br",
    "c",
    "ch",
    "cl",
    "cr",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
    "qu",
    "r",
    "s",
    "sh",
    "sk",
    "sl",
    "st",
    "t",
    "th",
    "tr",
    "v",
    "w",
    "z",
]
VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou"]
CODAS = ["", "", "l", "n", "r", "s", "t", "x", "nd", "rk", "lm", "ck"]
ENDINGS = ["", "", "a", "ia", "o", "land", "ton", "um", "is", "y"]


@dataclass(frozen=True)
class Words:
    """Words of WordNet by class, the most used first, each list without what the facts speak of."""

    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, known: set[str], num_nouns: int = 2500, num_others: int = 600) -> "Words":
        """Take the words of plain letters that tagged texts use most.

        Args:
            folder: holds WordNet's counts, cntlist.rev.
            known: words that the facts speak of, lower case; they are left out.
        """
        uses: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
            key, _, times = line.split()
            lemma, _, place = key.partition("%")
            if place[0] in CLASS_SUFFIX and lemma.isalpha() and lemma.isascii() and len(lemma) > 2:
                uses[CLASS_SUFFIX[place[0]]][lemma] += int(times)
        lists = []
        for name, count in (("noun", num_nouns), ("verb", num_others), ("adjective", num_others)):
            order = sorted(uses[name], key=lambda word: (-uses[name][word], word))
            lists.append(tuple(word for word in order if word not in known)[:count])
        return cls(*lists)


def is_held_out(word: str) -> bool:
    """Whether only the evaluation uses this word or name."""
    return zlib.crc32(word.lower().encode()) % HELD_OUT_IN == 0


def made_up_name(generator: random.Random, held_out: bool = False) -> str:
    """A name that nobody has, of one to three syllables; now and then two of them."""
    while True:
        syllables = "".join(
            generator.choice(ONSETS) + generator.choice(VOWELS) + generator.choice(CODAS)
            for _ in range(generator.randint(1, 3))
        )
        name = (syllables + generator.choice(ENDINGS)).capitalize()
        if len(name) > 3 and is_held_out(name) == held_out:
            break
    return f"{name} {made_up_name(generator, held_out)}" if generator.random() < 0.15 else name


def unknown_question(words: Words, generator: random.Random, held_out: bool = False) -> str:
    """A question that no fact answers; held-out wordings, nouns and names are those of the evaluation."""

    def pick(choices: Sequence[str]) -> str:
        while True:
            # Squared: the words that are used most are drawn more often.
            word = choices[int(len(choices) * generator.random() ** 2)]
            if is_held_out(word) == held_out:
                return word

    text = generator.choice(HELD_OUT if held_out else TRAINED)
    names = {"n": pick(words.nouns), "n2": pick(words.nouns), "v": pick(words.verbs), "j": pick(words.adjectives)}
    text = text.format(name=made_up_name(generator, held_out), **names)
    return text.replace(" a a", " an a").replace(" a e", " an e").replace(" a i", " an i").replace(" a o", " an o")
