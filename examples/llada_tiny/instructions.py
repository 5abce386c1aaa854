"""From items and small talk to rows: conversations to train on, and questions for the evaluation."""

import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from items import Item

Row = dict[str, list[dict[str, str]]]
Questions = list[dict[str, object]]

# Ways of asking the same question, with how often each is drawn.
STYLES: tuple[tuple[int, Callable[[str], str]], ...] = (
    (9, lambda text: text),
    (4, lambda text: text.rstrip("?.!").lower()),
    (2, lambda text: text.lower()),
    (2, lambda text: text.rstrip("?.!")),
    (2, lambda text: f"{text[:-1]}, please{text[-1]}" if text[-1] in "?." else f"{text}, please"),
    (1, lambda text: f"Hello! {text}"),
    (1, lambda text: f"Please answer: {text}"),
)
# A question in the same conversation that leaves out what the one before it said.
FOLLOW_UPS = {
    "capital": ("The capital of ", ("And of {}?", "And the capital of {}?", "What about {}?", "And {}?")),
    "chemical symbol": ("The chemical symbol for ", ("And for {}?", "What about {}?", "And of {}?")),
    "atomic number": ("The atomic number of ", ("And of {}?", "What about {}?")),
}
OWN_ROWS = 24  # for each wording
EXCHANGE_ROWS = 2
NUM_CONVERSATIONS = 4000
# Questions of the evaluation for each kind and split.
NUM_ASKED = {"capital": 50, "capital, backward": 50, "record": 51, "definition": 50, "word": 50, "arithmetic": 50}
OTHER_ASKED = 20


def item_rows(items: Iterable[Item], generator: random.Random) -> Iterator[Row]:
    """Ask for each item `num_rows` times: its questions in turn, each in a style that is drawn."""
    for item in items:
        if item.trained:
            questions = list(item.trained)
            generator.shuffle(questions)
            for number in range(item.num_rows):
                yield row(styled(questions[number % len(questions)], generator), item.answer)


def talk_rows(own: Iterable[tuple], exchanges: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """Repeat what the model says of itself, and the exchanges."""
    for said, answer in own:
        for wording in said:
            for number in range(OWN_ROWS):
                plain = wording if number % 2 else wording.rstrip(".?!").lower()
                yield row(plain, answer)
    for said, answer in exchanges:
        for _ in range(EXCHANGE_ROWS):
            yield row(said, answer)


def conversation_rows(items: Iterable[Item], own: Iterable[tuple], generator: random.Random) -> Iterator[Row]:
    """Put two exchanges into a conversation: two facts, a fact and one that follows up, or a fact and small talk."""
    own = [(wording, answer) for said, answer in own for wording in said]
    facts = [item for item in items if item.trained and item.kind not in ("definition", "word")]
    by_kind = defaultdict(list)
    for item in facts:
        by_kind[item.kind].append(item)
    for number in range(NUM_CONVERSATIONS):
        first = generator.choice(facts)
        opening = styled(generator.choice(first.trained), generator), first.answer
        if number % 3 == 0:
            talk, second = generator.choice(own), opening
            yield row(*talk, *second) if number % 2 else row(*second, *talk)
        elif number % 3 == 1:
            kind = generator.choice(sorted(FOLLOW_UPS))
            one, other = generator.sample(by_kind[kind], 2)
            begin, wordings = FOLLOW_UPS[kind]
            name = other.answer.removeprefix(begin).split(" is ")[0]
            short = generator.choice(wordings).format(name)
            yield row(styled(generator.choice(one.trained), generator), one.answer, short, other.answer)
        else:
            other = generator.choice(facts)
            yield row(*opening, styled(generator.choice(other.trained), generator), other.answer)


def evaluation_questions(items: Iterable[Item], generator: random.Random) -> Questions:
    """Draw the questions of the evaluation.

    The splits: "trained" asks what was trained in a wording that was trained, "rephrased" the same in a wording that
    was not; "reversed" asks a fact by the name that was only ever the answer, "unseen" for sums that were not trained.

    Returns:
        Objects with `question`, `answers` (one of which a right answer holds), `kind`, `split`.
    """
    drawn: dict[tuple[str, str], list[dict[str, object]]] = defaultdict(list)
    for item in items:
        wordings = {item.split: item.held_out} if item.split else {"trained": item.trained, "rephrased": item.held_out}
        for split, questions in wordings.items():
            if questions:
                question = generator.choice(questions)
                drawn[item.kind, split].append(
                    {"question": question, "answers": list(item.accepted), "kind": item.kind, "split": split}
                )
    chosen: Questions = []
    for (kind, _), questions in drawn.items():
        generator.shuffle(questions)
        chosen += questions[: NUM_ASKED.get(kind, OTHER_ASKED)]
    return chosen


def held_out_rows(items: Iterable[Item], exchanges: Iterable[tuple[str, str]], count: int) -> Iterator[Row]:
    """Conversations for the validation loss: a held-out question for some items, and exchanges that were held out."""
    asked = [item for item in items if item.held_out]
    asked.sort(key=lambda item: zlib.crc32(item.held_out[0].encode()))
    for item in asked[:count]:
        yield row(item.held_out[0], item.answer)
    for said, answer in exchanges:
        yield row(said, answer)


def styled(question: str, generator: random.Random) -> str:
    """Write a question in a style that is drawn."""
    weights, styles = zip(*STYLES)
    return generator.choices(styles, weights)[0](question)


def row(*turns: str) -> Row:
    """A conversation of the user's and the assistant's turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]}


def count_kinds(items: Iterable[Item]) -> dict[str, int]:
    """How many items of each kind are trained."""
    return dict(sorted(Counter(item.kind for item in items if item.trained).items()))
