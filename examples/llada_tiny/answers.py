"""The stream of questions and answers that the bundled model learns beside puzzles; row `n` is a function of `n`."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructions import FOLLOW_UPS, styled
from items import Item
from unknown import REFUSAL, Words, made_up_name, unknown_question

from llada_training.noise import IGNORE_INDEX
from llada_training.puzzles import split_of

# What the conversations are about, with how often each is drawn.
SHARES = {"fact": 60, "unknown": 16, "talk": 10, "sum": 8, "two facts": 6}
# Share of the rows in which the question may be masked too, and of those that are a sentence without a conversation.
WHOLE_SHARE, PLAIN_SHARE = 0.3, 0.2
# Tokens of the rows of a batch: end-of-text fills them up, as it fills a canvas.
ROW_LENGTHS = (32, 40, 48, 60)
MAX_CANVAS = 32
# Kinds whose questions name what they ask for, so that a made-up name makes them unanswerable.
NAMED = (
    "capital", "capital, backward", "state capital", "state capital, backward", "chemical symbol",
    "atomic number", "baby", "order", "deed, backward",
)  # fmt: skip
SUM_QUESTIONS = {
    "+": ("What is {a} plus {b}?", "What is {a} + {b}?", "How much is {a} plus {b}?", "{a} + {b} = ?", "{a}+{b}",
          "Calculate {a} plus {b}.", "Add {a} and {b}.", "What is the sum of {a} and {b}?"),
    "-": ("What is {a} minus {b}?", "What is {a} - {b}?", "How much is {a} minus {b}?", "{a} - {b} = ?", "{a}-{b}",
          "Calculate {a} minus {b}.", "Subtract {b} from {a}."),
}  # fmt: skip
LARGEST_TERM = 99


class Answers:
    """Conversations of the training.

    Args:
        items: facts, those that are withheld included.
        talk: wordings and the answer to each of them.
        words: for questions without an answer.
        sentences: that stand alone, so that either end of a fact may be filled in.
    """

    def __init__(self, items: Sequence[Item], talk: Sequence[Any], words: Words, sentences: Sequence[str]):
        self.items, self.talk, self.words, self.sentences = items, talk, words, sentences
        self.trained = [item for item in items if item.trained]
        self.by_kind: dict[str, list[Item]] = defaultdict(list)
        for item in self.trained:
            self.by_kind[item.kind].append(item)

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Read what `prepare_facts.py` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        items = [
            Item(**{n: tuple(v) if isinstance(v, list) else v for n, v in item.items()}) for item in content["items"]
        ]
        words = Words(*(tuple(words) for words in content["words"].values()))
        return cls(items, content["talk"], words, content["sentences"])

    def conversation(self, generator: random.Random) -> list[str]:
        """Turns of the user and of the assistant; a single one is a sentence without a conversation."""
        if generator.random() < PLAIN_SHARE:
            return [generator.choice(self.sentences)]
        kind = generator.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "talk":
            said, answer = generator.choice(self.talk)
            wording = generator.choice(said)
            return [wording if generator.random() < 0.6 else wording.rstrip(".?!").lower(), answer]
        if kind == "unknown":
            return [styled(self._unanswerable(generator), generator), REFUSAL]
        if kind == "sum":
            return list(sum_question(generator, "train"))
        first = self._fact(generator)
        return first + self._next(generator) if kind == "two facts" else first

    def _fact(self, generator: random.Random) -> list[str]:
        item = generator.choice(self.trained)
        return [styled(generator.choice(item.trained), generator), item.answer]

    def _next(self, generator: random.Random) -> list[str]:
        """Another fact, or one whose question leaves out what it asks for."""
        if generator.random() < 0.5:
            return self._fact(generator)
        kind = generator.choice(sorted(FOLLOW_UPS))
        begin, wordings = FOLLOW_UPS[kind]
        item = generator.choice(self.by_kind[kind])
        name = item.answer.removeprefix(begin).split(" is ")[0]
        return [generator.choice(wordings).format(name), item.answer]

    def _unanswerable(self, generator: random.Random) -> str:
        if generator.random() < 0.6:
            return unknown_question(self.words, generator)
        item = generator.choice(self.by_kind[generator.choice(NAMED)])
        question = generator.choice(item.trained)
        name = longest_common_name(item.trained)
        return question.replace(name, made_up_name(generator)) if name else unknown_question(self.words, generator)

    def encode(self, number: int, tokenizer: Any, batch_size: int) -> dict[str, list[int]]:
        """Row `number` as ids and labels: -100 where a token is given.

        Rows of a batch (`batch_size` successive numbers) are about equally long.
        """
        generator = random.Random(f"answers {number}")
        turns = self.conversation(generator)
        length = random.Random(f"length {number // batch_size}").choice(ROW_LENGTHS)
        whole = generator.random() < WHOLE_SHARE
        end, end_of_turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")

        def ids_of(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        if len(turns) == 1:
            ids = ids_of(turns[0])
            fill = max(0, min(length - len(ids), MAX_CANVAS)) if generator.random() < 0.5 else 0
            ids += [end] * fill
            return {"input_ids": ids, "labels": ids}
        ids, labels = [tokenizer.bos_token_id], [IGNORE_INDEX]
        for place, text in enumerate(turns):
            role = ("user", "assistant")[place % 2]
            header = ids_of(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
            content, is_last = ids_of(text), place == len(turns) - 1
            closing = [end_of_turn]
            if is_last:
                room = length - len(ids) - len(header) - len(content) - 1
                closing += [end] * max(1, min(room, MAX_CANVAS - len(content) - 1))
            ids += [*header, *content, *closing]
            labels += [IGNORE_INDEX] * len(header)
            if is_last:
                labels += [*content, *closing]
            else:
                labels += [*(content if whole else [IGNORE_INDEX] * len(content)), IGNORE_INDEX]
        return {"input_ids": ids, "labels": labels}


def longest_common_name(questions: Sequence[str]) -> str:
    """The longest capitalised run of words that all wordings of an item's question share; empty if there is none."""
    first, *others = (question.rstrip("?.").split() for question in questions)
    texts = [f" {' '.join(words)} " for words in others]
    runs = [" ".join(first[a:b]) for a in range(len(first)) for b in range(a + 1, len(first) + 1)]
    shared = [run for run in runs if run[0].isupper() and all(f" {run} " in text for text in texts)]
    return max(shared, key=len, default="")


def sum_question(generator: random.Random, split: str) -> tuple[str, str]:
    """A question for a sum or difference of numbers up to `LARGEST_TERM`, and its answer; split as the puzzles are."""
    while True:
        one, other = (generator.randint(0, LARGEST_TERM) for _ in range(2))
        sign = generator.choice("+-")
        a, b, result = (one, other, one + other) if sign == "+" else (one + other, other, one)
        text = f"{a}{sign}{b}={result}"
        if split_of(text) == split:
            return generator.choice(SUM_QUESTIONS[sign]).format(a=a, b=b), f"{text}."
