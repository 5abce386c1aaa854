"""Short facts for a tiny language model, from the answer files of the game `quiz`, each in several wordings."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from texts import Document, as_sentence, with_article

COPIES = 2  # of each wording

CAPITALS = (
    "The capital of {a} is {b}.", "{b} is the capital of {a}.", "What is the capital of {a}? {b}.",
    "What is the capital of {a}? The capital of {a} is {b}.", "{b} is the capital city of {a}.",
    "The capital city of {a} is {b}.",
    "Which city is the capital of {a}? {b} is the capital of {a}.", "Which country has {b} as its capital? {a}.",
)  # fmt: skip
STATES = (
    "The capital of {a} is {b}.", "{b} is the capital of {a}.", "What is the capital of {a}? {b}.",
    "What is the capital of {a}? The capital of {a} is {b}.", "{b} is the capital of the state of {a}.",
    "The state capital of {a} is {b}.",
)  # fmt: skip
PROVINCES = (
    "The capital of {a} is {b}.", "{b} is the capital of {a}, in Canada.", "What is the capital of {a}? {b}.",
    "{a} is a part of Canada. Its capital is {b}.",
)  # fmt: skip
ABBREVIATIONS = (
    "The abbreviation for {a} is {b}.", "{b} stands for {a}.", "What does {b} stand for? {b} stands for {a}.",
    "{a} is a state of the United States. It is abbreviated {b}.",
)  # fmt: skip
SYMBOLS = (
    "The chemical symbol for {a} is {b}.", "{b} is the chemical symbol for {a}.",
    "What is the chemical symbol for {a}? The chemical symbol for {a} is {b}.",
    "Which element has the symbol {b}? The element with the symbol {b} is {a}.",
)  # fmt: skip
ATOMIC_NUMBERS = (
    "The atomic number of {a} is {b}.", "Element number {b} is {a}.", "The element with atomic number {b} is {a}.",
    "What is the atomic number of {a}? The atomic number of {a} is {b}.",
)  # fmt: skip
BABIES = (
    "A baby {a} is called {b}.", "What is a baby {a} called? A baby {a} is called {b}.",
    "The young of {an_a} is called {b}.", "{B} is a baby {a}.", "What do you call a baby {a}? {B}.",
    "The word for a baby {a} is {plain_b}.",
)  # fmt: skip
GROUPS = (
    "A group of {a} is called {b}.", "What do you call a group of {a}? {B} of {a}.",
    "A number of {a} together is {b} of {a}.", "The word for a group of {a} is {plain_b}.",
    "What is a group of {a} called? A group of {a} is called {b}.",
)  # fmt: skip
FEMALES = (
    "The female of {an_a} is {b}.", "The male of {b} is {an_a}.", "What is the female form of {a}? {plain_B}.",
    "{A} is male and {plain_b} is female.",
)  # fmt: skip
OPPOSITES = (
    "The opposite of {a} is {b}.", "The opposite of {b} is {a}.",
    "What is the opposite of {a}? The opposite of {a} is {b}.",
    "What is the opposite of {b}? The opposite of {b} is {a}.", "{A} is the opposite of {b}.",
    "{plain_B} is the opposite of {a}.", "{A} and {b} are opposites.", "What is the opposite of {a}? {plain_B}.",
)  # fmt: skip
FLOWERS = (
    "In the language of flowers, {an_a} means {b}.", "What does {an_a} mean in the language of flowers? It means {b}.",
    "In the language of flowers, you say {b} with {an_a}.",
)  # fmt: skip
TERMS = (
    "{a} was President of the United States {b}.", "Who was President of the United States {b}? {a}.",
    "When was {a} President of the United States? {a} was President {b}.",
    "The President of the United States {b} was {a}.",
)  # fmt: skip
ORDER = (
    "{a} was the {b} President of the United States.", "The {b} President of the United States was {a}.",
    "Who was the {b} President of the United States? {a}.",
    "Who was the {b} President of the United States? {a} was the {b} President.",
)  # fmt: skip
SUCCESSORS = (
    "{a} was followed by {b}.", "After {a} came {b}.", "Who came after {a}? {b} came after {a}.",
    "Who came before {b}? {a} came before {b}.", "Before {b} came {a}.",
)  # fmt: skip
YEARS = (
    "In the Chinese calendar, the year of the {a} is followed by the year of the {b}.",
    "Which year comes after the year of the {a}? The year of the {b}.",
    "The year of the {b} comes after the year of the {a}.", "The year of the {a} comes before the year of the {b}.",
)  # fmt: skip

WORDINGS = {
    "capital": CAPITALS, "state capital": STATES, "province capital": PROVINCES, "abbreviation": ABBREVIATIONS,
    "chemical symbol": SYMBOLS, "atomic number": ATOMIC_NUMBERS, "baby": BABIES, "group": GROUPS, "flower": FLOWERS,
    "opposite": OPPOSITES, "female": FEMALES, "year": YEARS, "order": ORDER, "term": TERMS, "successor": SUCCESSORS,
}  # fmt: skip

QUOTATIONS = (
    "{line}\n{next}\n- {author}, {work}", '"{line} / {next}" is from {work} by {author}.',
    'What comes after "{line}"? "{next}"', 'What comes before "{next}"? "{line}"',
    'Who wrote "{line}"? {author} wrote it in {work}.',
)  # fmt: skip

ACCENTS = {
    "'e": "é", "'i": "í", "'a": "á", "'o": "ó", "^o": "ô", "~a": "ã", ",s": "ş", "°A": "Å",
}  # fmt: skip
SHORT_NAMES = {
    "DR Congo": "the Democratic Republic of the Congo", "Rep. Congo": "the Republic of the Congo",
    "Republic of South Africa": "South Africa", "People's Republic of China": "China", "Republic of Yemen": "Yemen",
    "Malagasy Republic": "Madagascar", "Washington DC": "Washington, D.C.", "US": "United States", "Kiev": "Kyiv",
    "SGSSI": "South Georgia", "James Earl Carter, Junior": "Jimmy Carter", "Barack Hussein Obama II": "Barack Obama",
    "George Walker Bush, Junior": "George W. Bush", "George Herbert Walker Bush": "George H. W. Bush",
    "William Jefferson Clinton": "Bill Clinton", "Richard Milhous Nixon": "Richard Nixon",
    "Ronald Wilson Reagan": "Ronald Reagan", "Franklin Delano Roosevelt": "Franklin D. Roosevelt",
    "John Fitzgerald Kennedy": "John F. Kennedy", "Lyndon Baines Johnson": "Lyndon B. Johnson",
    "Dwight David Eisenhower": "Dwight D. Eisenhower", "Harry S Truman": "Harry S. Truman",
    "James Knox Polk": "James K. Polk", "Ulysses Simpson Grant": "Ulysses S. Grant",
    "Herbert Clark Hoover": "Herbert Hoover",
    "Rutherford Birchard Hayes": "Rutherford B. Hayes", "James Abram Garfield": "James A. Garfield",
    "Chester Alan Arthur": "Chester A. Arthur", "Warren Gamaliel Harding": "Warren G. Harding",
    "P'yongyang": "Pyongyang", "colt": "foal", "Berne": "Bern",
    "Swaziland": "Eswatini", "Burma": "Myanmar", "Macedonia": "North Macedonia",
    "Gerald Rudolph Ford": "Gerald Ford", "Andrew Marvel": "Andrew Marvell", "A. E. Houseman": "A. E. Housman",
}  # fmt: skip
# Places that no longer exist, moved their capital, share their name with a state, or whose standing is disputed.
SKIPPED_PLACES = {
    "Abkhazia", "South Ossetia", "Netherlands Antilles", "Montserrat", "Burundi", "South Georgia", "Equatorial Guinea",
    "Israel", "Svalbard", "Georgia",
}  # fmt: skip
TAKES_ARTICLE = re.compile(
    r"(Islands|Republic|Philippines|Netherlands|Maldives|Seychelles|Comoros|Isle of Man|United .*|Territor(y|ies))$"
)
SKIPPED_PAIRS = {
    "Y", "effeminate", "manly", "Oedipus complex", "dog", "colt", "curator", "yin", "if", "from", "heavy", "asses",
    "brats", "curs", "maidens", "operating companies", "rubbish", "gangsters", "Huns", "huns", "with", "within", "boy",
    "mules", "robbers", "prisoners", "dead leaves", "upside down", "foal", "standing up", "right", "witches",
}  # fmt: skip
SKIPPED_QUOTATIONS = re.compile(r"Fuzzy|Fern Hill|woman|Women|bastard|complexion|butcher|Frenchman|Ethiop|screw")


@dataclass(frozen=True)
class Fact:
    """One pair of the quiz: `a` is asked for by its kind, `b` answers; `b` may carry an article.

    Attributes:
        kind: a key of `WORDINGS`.
    """

    kind: str
    a: str
    b: str


def fact_documents(folder: Path) -> Iterator[Document]:
    """Yield every fact in every wording, `COPIES` times.

    Args:
        folder: the answer files of the game.
    """
    for part in (place_facts, nature_facts, word_facts):
        for fact in part(folder):
            yield from copies(worded(WORDINGS[fact.kind], fact.a, fact.b))
    yield from copies(verses(folder))
    for fact in people_facts(folder):
        yield from copies(worded(WORDINGS[fact.kind], fact.a, fact.b))


def quiz_facts(folder: Path) -> Iterator[Fact]:
    """Yield every fact once, without those that are skipped."""
    for part in (place_facts, nature_facts, word_facts, people_facts):
        yield from (fact for fact in part(folder) if fact.a not in SKIPPED_PAIRS)


def copies(texts: Iterable[str]) -> Iterator[Document]:
    """Yield each text `COPIES` times."""
    for text in texts:
        for _ in range(COPIES):
            yield Document(text, "quiz", text)


def place_facts(folder: Path) -> Iterator[Fact]:
    """Yield the capitals of countries, states and provinces, and the states' abbreviations."""
    countries = {}
    for continent in ("africa", "america", "asia", "europe"):
        for country, capital in pairs(folder / continent):
            countries[country] = capital
    for country, capital in countries.items():
        if country not in SKIPPED_PLACES:
            yield Fact("capital", named_place(country), capital)
    for state, capital, abbreviation, _ in rows(folder / "state"):
        yield Fact("state capital", state, capital)
        yield Fact("abbreviation", state, abbreviation)
    for province, capital in pairs(folder / "province"):
        if province != "Canada":
            yield Fact("province capital", named_place(province), capital)


def nature_facts(folder: Path) -> Iterator[Fact]:
    """Yield the chemical elements, baby animals, groups of animals and the language of flowers."""
    for symbol, number, _, element in rows(folder / "elements"):
        if element != "Lawrencium":  # its symbol has changed since
            yield Fact("chemical symbol", element.lower(), symbol)
            yield Fact("atomic number", element.lower(), number)
    for baby, adult in every_pair(folder / "babies", varied=1):
        yield Fact("baby", adult, with_article(baby))
    for members, group in every_pair(folder / "collectives", varied=0):
        yield Fact("group", members, with_article(group))
    for flower, meaning in pairs(folder / "flowers"):
        flower = re.sub(r"^(\w+), (\w+)$", r"\2 \1", flower.replace("Lilly", "Lily"))
        if "," not in flower:
            yield Fact("flower", flower.lower().replace("african", "African"), f'"{meaning}"')


def word_facts(folder: Path) -> Iterator[Fact]:
    """Yield opposites, male and female names, and the Chinese years."""
    for positive, negative in pairs(folder / "posneg"):
        yield Fact("opposite", positive, negative)
    for male, female in pairs(folder / "sexes"):
        yield Fact("female", male, with_article(female))
    for year, following in pairs(folder / "chinese"):
        yield Fact("year", year, following)


def verses(folder: Path) -> Iterator[str]:
    """Say lines of verse, what follows each, and whose they are."""
    for line, following, work, author in rows(folder / "poetry"):
        if not SKIPPED_QUOTATIONS.search(f"{line} {following} {work}"):
            names = {"line": line.strip(" ,"), "next": following, "work": work, "author": author}
            yield from (wording.format(**names).replace("..", ".") for wording in QUOTATIONS)


def people_facts(folder: Path) -> Iterator[Fact]:
    """Yield the presidents of the United States with their terms, and who followed whom on the English throne."""
    presidents = [row for row in rows(folder / "pres") if "-" in row[1] or row[1].isdigit()]
    for number, (president, term, _, successor) in enumerate(presidents, start=1):
        president, successor = (re.sub(r" \(.*\)", "", name) for name in (president, successor))
        yield Fact("order", president, ordinal(number))
        if re.fullmatch(r"\d{4}-\d{4}", term):
            yield Fact("term", president, f"from {term[:4]} to {term[5:]}")
        if successor and president != successor:
            yield Fact("successor", f"President {president}", f"President {successor}")
    for sovereign, _, successor in rows(folder / "sov"):
        sovereign, successor = (re.sub(r" Part \d", "", name) for name in (sovereign, successor))
        if sovereign != successor:
            yield Fact("successor", sovereign, successor)


def worded(wordings: tuple[str, ...], a: str, b: str) -> Iterator[str]:
    """Fill a pair into each wording; `b` may carry an article, which `plain_b` leaves out."""
    if a in SKIPPED_PAIRS:
        return
    plain_b = re.sub(r"^an? ", "", b)
    names = {"a": a, "b": b, "an_a": with_article(a), "plain_b": plain_b}
    capitals = {"A": a[:1].upper() + a[1:], "B": b[:1].upper() + b[1:], "plain_B": plain_b[:1].upper() + plain_b[1:]}
    for wording in wordings:
        text = as_sentence(wording.format(**names, **capitals))
        yield re.sub(r"([?.]) the ([A-Z])", r"\1 The \2", text).replace("D.C..", "D.C.")


def pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the first two columns of an answer file, each in its first spelling."""
    for row in rows(path):
        yield row[0], row[1]


def rows(path: Path) -> Iterator[list[str]]:
    """Yield the lines of an answer file as columns, each in its first spelling."""
    for columns in raw_rows(path):
        yield [first_spelling(column) for column in columns]


def every_pair(path: Path, varied: int) -> Iterator[tuple[str, str]]:
    """Yield the first two columns once for each alternative of column `varied` (0 or 1), the other at its first."""
    seen = set()
    for columns in raw_rows(path):
        for alternative in alternatives(columns[varied]):
            pair = [first_spelling(column) for column in columns[:2]]
            pair[varied] = clean_answer(alternative)
            if tuple(pair) not in seen:
                seen.add(tuple(pair))
                yield pair[0], pair[1]


def raw_rows(path: Path) -> Iterator[list[str]]:
    """Yield the lines of an answer file split at colons; a backslash joins a line to the next or guards a sign."""
    text = path.read_text(encoding="utf-8").replace("\b", "").replace("\\\n", "")
    for line in text.splitlines():
        if line.strip():
            yield [column.replace("\0", ":") for column in line.replace("\\:", "\0").split(":")]


def first_spelling(answer: str) -> str:
    """Return the first of an answer's spellings, optional parts included."""
    return clean_answer(alternatives(answer)[0])


def alternatives(answer: str) -> list[str]:
    """Split an answer at the bars outside brackets and braces."""
    depth, parts = 0, [""]
    for sign in answer:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def clean_answer(answer: str) -> str:
    """Resolve `{optional}` and `[one|of|these]` from the inside out, always to the first spelling."""
    group = re.compile(r"[\[{]([^\[\]{}]*)[\]}]")
    while group.search(answer):
        answer = group.sub(lambda found: ACCENTS.get(found[1].split("|")[0], found[1].split("|")[0]), answer)
    answer = " ".join(answer.split())
    return SHORT_NAMES.get(answer, answer)


def named_place(country: str) -> str:
    """Put `the` before the names that take it."""
    country = re.sub(r"^The ", "the ", country)
    return f"the {country}" if TAKES_ARTICLE.search(country) and not country.startswith("the ") else country


def ordinal(number: int) -> str:
    """Write 1 as 1st, 2 as 2nd and so on."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
