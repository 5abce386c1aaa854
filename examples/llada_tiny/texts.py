"""Running text for a tiny language model: dictionary entries, Bible chapters and friendly small talk."""

import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

WORD_CLASSES = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
REJECTED_GLOSS = re.compile(
    r"\b(slurs?|offensive|obscen\w+|vulgar|disparag\w+|derogatory|profan\w+|negro\w*|nigg\w+|ghetto|colou?red people|"
    r"prostitut\w*|whor\w*|genital\w*|penis|vagina\w*|sexual\w*|coitus|copulat\w*|masturbat\w*|homosexual\w*|incest\w*|"
    r"rap(e|ed|ist)|bitch\w*|bastard\w*|fuck\w*|shit\w*|arse|pornograph\w*|erotic\w*|suicid\w*)\b",
    re.IGNORECASE,
)
TAXON = re.compile(r"^(genus|family|order|class|phylum|subfamily|suborder|superfamily|division) [A-Z]|^[A-Z]\w+$")
ANIMALS, PLACES, PLANTS = "05", "15", "20"  # WordNet's lexicographer files of nouns
VOWEL_SOUND = re.compile(
    r"(?!eu|ew|one\b|once\b)([aeio]|u(?!n(i[^mnd]|anim)|s[aeu]|t[ei])|hono|hones|hour|heir)", re.IGNORECASE
)
TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": " - ", "–": "-", "…": "...", "\xa0": " "})

# The Greek editions repeat most of Esther and Daniel word for word; one telling of each is enough.
REPEATED_BOOKS = {"Esther (Greek)", "Daniel (Greek)"}

MAX_TURN_CHARACTERS = 140
MAX_TURNS = 6
REJECTED_TALK = re.compile(
    r"https?:|www\.|[@#<>*{}\[\]_\\^~|]|\d{3}|\b(damn|hell|crap|fuck\w*|shit\w*|bitch\w*|ass|sex\w*|porn|kill\w*|die[ds]?|dead|"
    r"suicid\w*|drugs?|drunk|beer|gay|hate[ds]?|stupid|dumb|idiot|sucks?|trump|politic\w*|god|jesus|church|mission|temple|"
    r"byu|eve|bot|chatbot|robot|app|class project|survey|kiss\w*|dating|girlfriend|boyfriend|lol|lmao|omg|wtf|haha\w*|"
    r"hehe\w*|ur|u|r|idk|tbh|gonna|wanna|yup|ya|yah|nah|cuz|rn|ok{2,}|h+m+|jk|prompt|conversation|rat(e|ing)|button)\b",
    re.IGNORECASE,
)
BROKEN_TALK = re.compile(r"(\w)\1\1|\b[A-Z]{3}|[:;][^ ]|[ (][:;=]|[()/\"]|\w[.?!,][A-Za-z]|^\W|[?!]\.|[.?!] ?[.,]")
MISSING_APOSTROPHE = {
    "im": "I'm", "ive": "I've", "id": "I'd", "dont": "don't", "didnt": "didn't", "doesnt": "doesn't", "cant": "can't",
    "wont": "won't", "isnt": "isn't", "wasnt": "wasn't", "thats": "that's", "whats": "what's", "youre": "you're",
    "theyre": "they're", "havent": "haven't", "couldnt": "couldn't", "wouldnt": "wouldn't", "hows": "how's",
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """One text with the name of its source; documents that share a `key` go to the same side of the hold-out."""

    text: str
    source: str
    key: str


@dataclass(frozen=True)
class Synset:
    """One WordNet meaning: its place, its words, its definition and its example sentences."""

    offset: int
    word_class: str
    subject: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]

    @property
    def is_name(self) -> bool:
        """Whether the first word is a proper name."""
        return self.words[0][0].isupper() or self.words[0][0].isdigit()

    @property
    def is_specialist(self) -> bool:
        """Whether only specialists look for it: a plant, or a proper name other than a place's."""
        return self.word_class == "noun" and (self.subject == PLANTS or (self.is_name and self.subject != PLACES))


def wordnet_documents(folder: Path) -> Iterator[Document]:
    """Yield an entry for each WordNet meaning, a second one for those that tagged texts use.

    Plants and persons that no tagged text uses are left out: a tiny model has no room for them.

    Args:
        folder: holds data.noun, index.noun and their three siblings.
    """
    for suffix, word_class in WORD_CLASSES.items():
        common = common_offsets((folder / f"index.{suffix}").read_text(encoding="utf-8"))
        for line in (folder / f"data.{suffix}").read_text(encoding="utf-8").splitlines():
            synset = None if line.startswith("  ") else parse_synset(line, word_class)
            if synset is None or (synset.is_specialist and synset.offset not in common):
                continue
            wordings = entry_wordings(synset)
            for copy in range(2 if synset.offset in common else 1):
                text = wordings[(synset.offset + copy) % len(wordings)]
                yield Document(text, "wordnet", f"{word_class} {synset.offset}")


def common_offsets(index: str) -> set[int]:
    """Return the offsets of meanings that occur in WordNet's hand-tagged texts.

    An index line ends in: number of senses, number of tagged senses, offsets with the tagged ones first.
    """
    offsets = set()
    for line in index.splitlines():
        if line.startswith("  "):
            continue
        fields = line.split()
        first_offset = len(fields) - int(fields[2])
        num_tagged = int(fields[first_offset - 1])
        offsets.update(int(offset) for offset in fields[first_offset : first_offset + num_tagged])
    return offsets


def parse_synset(line: str, word_class: str) -> Synset | None:
    """Read one line of a WordNet data file; None for taxonomy labels, coarse words and empty definitions."""
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    num_words = int(fields[3], 16)
    words = tuple(clean_word(fields[4 + 2 * i]) for i in range(num_words))
    definition, examples = split_gloss(gloss)
    is_label = word_class == "noun" and fields[1] in (ANIMALS, PLANTS) and TAXON.match(words[0])
    if len(definition) < 4 or is_label or REJECTED_GLOSS.search(f"{words} {gloss}"):
        return None
    stem = words[0][:4].lower()
    shown = tuple(example for example in examples if stem in example.lower())[:2]
    return Synset(int(fields[0]), word_class, fields[1], tuple(dict.fromkeys(words)), definition, shown)


def clean_word(lemma: str) -> str:
    """Turn a WordNet lemma into running text: `same(p)` becomes `same`, `breathe_out` becomes `breathe out`."""
    return re.sub(r"\((a|p|ip)\)$", "", lemma).replace("_", " ")


def split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Separate a gloss into its definition and its example sentences."""
    gloss = space_punctuation(" ".join(re.sub(r"`|''", "'", gloss.replace("_", " ")).split()))
    if gloss.count('"') % 2:
        return tidy_definition(gloss.split('"')[0]), ()
    head, *rest = re.split(r"[;:,]?\s*(?=\")", gloss, maxsplit=1)
    if rest and not re.match(r'"[^"]*"\s*([;,.:-]|$)', rest[0]):
        head, rest = re.sub(r"[;:]\s*\"[^\"]*\".*$", "", gloss), []
    examples = [as_sentence(example) for example in re.findall(r'"([^"]*)"', rest[0] if rest else "")]
    examples = [example for example in examples if " " in example and ".." not in example]
    return tidy_definition(head), tuple(examples)


def tidy_definition(text: str) -> str:
    """Drop the loose punctuation that a cut leaves behind."""
    text = text.strip(" ;:,.-")
    if text.count("(") != text.count(")"):
        text = re.sub(r"[()]", "", text)
    return text.strip(" ;:,.-")


def space_punctuation(text: str) -> str:
    """Put no space before a punctuation mark and one after it, where a letter follows."""
    text = re.sub(r" +([,;:?!)])", r"\1", text)
    return re.sub(r"([,;:?!])(?=[A-Za-z])|(?<=[a-z]{2})\.(?=[A-Z])", lambda mark: f"{mark.group()} ", text)


def as_sentence(text: str) -> str:
    """Begin with a capital and end with a full stop, unless the text already closes itself."""
    text = text.strip(" ;,")
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def with_article(noun: str) -> str:
    """Put `a` or `an` before a noun."""
    return f"{'an' if VOWEL_SOUND.match(noun) else 'a'} {noun}"


def is_countable(synset: Synset) -> bool:
    """Whether the noun's definition names one thing, so that the noun takes an article."""
    return bool(re.match(r"(an?|any|one|someone|something) ", synset.definition)) and not synset.words[0].endswith("s")


def statement(synset: Synset) -> str:
    """Say what the first word means in one sentence."""
    word, definition = synset.words[0], synset.definition
    if synset.word_class == "verb":
        return f"To {word} is to {definition}."
    if synset.is_name and synset.word_class == "noun":
        return f"{word}{' is' if re.match('(an?|the|one of|any) ', definition) else ':'} {definition}."
    if synset.word_class == "noun" and is_countable(synset):
        return as_sentence(f"{with_article(word)} is {definition}")
    if synset.word_class == "noun":
        return as_sentence(f"{word} {'is' if definition.startswith('the ') else 'means'} {definition}")
    return f'"{word[0].upper() + word[1:]}" means {definition}.'


def question(synset: Synset) -> str:
    """Ask what the first word means."""
    word = synset.words[0]
    if synset.word_class == "verb":
        return f"What does it mean to {word}?"
    if synset.word_class != "noun":
        return f'What does "{word}" mean?'
    return f"What is {with_article(word) if is_countable(synset) and not synset.is_name else word}?"


def inverse(synset: Synset) -> str:
    """Go from the definition to the word."""
    word, definition = synset.words[0], synset.definition
    if synset.is_name:
        return as_sentence(f"{definition}: {word}")
    if synset.word_class == "verb":
        return f"A verb that means to {definition} is {word}."
    if synset.word_class == "noun":
        return f"The word for {definition} is {word}."
    return f"{with_article(synset.word_class).capitalize()} that means {definition} is {word}."


def entry_wordings(synset: Synset) -> list[str]:
    """Write one meaning in ten ways, some of them alike, so that common forms are drawn more often."""
    word, examples = synset.words[0], " ".join(synset.examples)
    plain = f"{word} ({synset.word_class}): {synset.definition}."
    same = f"Another word for {word} is {synset.words[1]}." if len(synset.words) > 1 and not synset.is_name else ""
    shown = f"Example: {examples}" if len(synset.examples) == 1 else f"Examples: {examples}" if examples else ""
    entry = [plain, shown]
    stated = [statement(synset), examples]
    asked = [question(synset), statement(synset), same]
    turned = [inverse(synset), examples]
    forms = [entry, asked, stated, turned, [*entry, same], [*stated, same], asked, turned, stated, [same, *stated]]
    if synset.definition.startswith("("):  # such as "(chemistry) of or containing an acid"
        forms = [entry, [plain, same, shown]]
    return [" ".join(part for part in form if part) for form in forms]


def bible_documents(folder: Path) -> Iterator[Document]:
    """Yield the chapters of the World English Bible as plain paragraphs under a heading such as `Genesis 1`.

    Args:
        folder: holds ot.bzs, ot.bzz, nt.bzs and nt.bzz (SWORD's zText form of OSIS text).
    """
    book = ""
    pattern = r'<milestone n="([^"]*)" type="x-usfm-h"/>|<chapter n="(\d+)"[^>]*sID=[^>]*>(.*?)<chapter eID='
    for title, number, markup in re.findall(pattern, read_ztext(folder), re.DOTALL):
        book = title or book
        if number and book not in REPEATED_BOOKS:
            heading = "Psalm 151" if book == "Psalm 151" else f"{'Psalm' if book == 'Psalms' else book} {number}"
            yield Document(f"{heading}\n\n{plain_verses(markup)}", "bible", heading)


def read_ztext(folder: Path) -> str:
    """Unpack both testaments. The .bzs table lists each block's offset, size and unpacked size as 32-bit integers."""
    blocks = []
    for testament in ("ot", "nt"):
        table, packed = (folder / f"{testament}.bzs").read_bytes(), (folder / f"{testament}.bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", table):
            blocks.append(zlib.decompress(packed[offset : offset + size]).decode("utf-8") if size else "")
    return "".join(blocks)


def plain_verses(markup: str) -> str:
    """Strip OSIS markup: notes, headings and speakers go; paragraphs and lines of verse become lines."""
    dropped = r"<note\b.*?</note>|<speaker>.*?</speaker>|<title (?!canonical)[^>]*>.*?</title>"
    text = re.sub(dropped, " ", markup, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"</title>|<(div|l|lg|item|list|lb)\b[^>]*(type=\"x-p\"|level=|sID=|<lb)[^>]*>", mark_line, text)
    text = re.sub(r"<[^>]*>", "", text).translate(TYPOGRAPHIC).replace("&amp;", "&")
    text = space_punctuation(re.sub(r" +\.", ".", re.sub(r"[ \t]+", " ", text)))
    return "\n".join(line.strip() for line in text.split("\n") if line.strip())


def mark_line(tag: re.Match) -> str:
    """Replace a tag by a line break where it opens or closes a paragraph or a line, by nothing otherwise."""
    return "" if "x-milestone" in tag.group() else "\n"


def chat_documents(dataset: Path, known_words: set[str]) -> Iterator[Document]:
    """Yield short stretches of clean, friendly talk, one turn a line, marked `A:` and `B:`.

    Args:
        dataset: dataset.json of the chitchat-dataset package.
        known_words: lower-case words; a turn with any other word (a slip, a name, slang) is left out.
    """
    for name, conversation in json.loads(dataset.read_text(encoding="utf-8")).items():
        turns = (clean_turn((message["text"] for message in turn), known_words) for turn in conversation["messages"])
        for stretch in clean_stretches(turns):
            lines = (f"{'AB'[i % 2]}: {turn}" for i, turn in enumerate(stretch))
            yield Document("\n".join(lines), "chitchat", name)


def clean_turn(messages: Iterable[str], known_words: set[str]) -> str | None:
    """Join one speaker's messages into tidy sentences; None where they are coarse, private, long or slangy."""
    text = " ".join(as_sentence(" ".join(message.translate(TYPOGRAPHIC).split())) for message in messages)
    text = re.sub(r"[A-Za-z]+(?!')", lambda word: MISSING_APOSTROPHE.get(word.group().lower(), word.group()), text)
    text = re.sub(r"(^|[.?!] +)([a-z])", lambda start: start[1] + start[2].upper(), re.sub(r"\bi\b", "I", text))
    text = re.sub(r"([.?!,])\1+", r"\1", re.sub(r"\s+([,.?!])", r"\1", text))
    names_someone = re.search(r"[^.?!\"] (?!I\b)[A-Z]", text)
    is_short = 2 <= len(text) <= MAX_TURN_CHARACTERS
    if not is_short or not text.isascii() or REJECTED_TALK.search(text) or BROKEN_TALK.search(text) or names_someone:
        return None
    return text if words_of(text) <= known_words else None


def words_of(text: str) -> set[str]:
    """Return the lower-case words of a text, contractions whole."""
    return set(re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower()))


def clean_stretches(turns: Iterable[str | None]) -> Iterator[list[str]]:
    """Yield runs of two to `MAX_TURNS` clean turns; a rejected turn ends a run."""
    stretch: list[str] = []
    for turn in [*turns, None]:
        if turn is not None:
            stretch.append(turn)
        if len(stretch) == MAX_TURNS or (turn is None and len(stretch) >= 2):
            yield stretch
        if turn is None or len(stretch) == MAX_TURNS:
            stretch = []
