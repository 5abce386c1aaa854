"""Laws of the card: no name can add a field to its metadata, or break them."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from llada_core.card import TAGS, CardFacts, published_card, update_card

from .profiles import cases

# What YAML gives a meaning, alone or in the middle of a word.
SYNTAX = ["\n", "---", "...", ": ", "- ", " #", "no", "null", "1e3", "[a", "{{", "{%", "*a", "&a", "!!python/none",
          "| a", "%", "\t", "\r", "\x85", "\u2028", "\ufeff", "\x00", "'", '"', "`", "@", "](", "~", "=", "<<", "\\",
          "a/b", "\nlicense: gpl", "---\n", "é"]  # fmt: skip
NAMES = st.lists(st.sampled_from(SYNTAX) | st.text(max_size=4), min_size=1, max_size=3).map("".join)
WORDS = st.sampled_from(["mit", "en", "no", "null", "3", "1e3", "true", "2026-11-21", "cc-by-4.0", "a.b_c"]) | NAMES
IDS = st.sampled_from(["me/data", "me/no", "1/2", "a-b/c.d"]) | NAMES
FACTS = st.fixed_dictionaries(
    {"license": WORDS},
    optional={
        "base_model": IDS,
        "datasets": st.lists(IDS, max_size=2).map(tuple),
        "languages": st.lists(WORDS, max_size=2).map(tuple),
        "tags": st.lists(WORDS, max_size=2).map(tuple),
        "prompt": NAMES,
    },
)
FOLDER = Path("no-such-folder")
HEAD = {"license": "mit", "tags": ["llada", "mine"], "own": {"field": [1]}}


def head_of(card: str) -> Any:
    """The metadata as the Hub reads them: what stands between the first two lines of three dashes."""
    lines = card.split("\n")
    assert lines[0] == "---"
    return yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))


def joined(*lists: tuple) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


@cases(80)
@given(FACTS)
def test_a_new_card_has_the_fields_that_were_given_and_no_other(fields: dict[str, Any]) -> None:
    try:
        facts = CardFacts(**fields)
        card = published_card(FOLDER, "me/model", facts, num_parameters=1000, is_adapter=False)
    except ValueError:
        event("refused")
        return
    head = head_of(card)
    expected: dict[str, Any] = {
        "license": facts.license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": joined(TAGS, facts.tags),
    }
    expected |= {"language": joined(facts.languages)} if facts.languages else {}
    expected |= {"datasets": joined(facts.datasets)} if facts.datasets else {}
    if "base_model" in head:  # a folder is not named
        expected["base_model"] = facts.base_model
    event("written")
    assert head == expected


@cases(150)
@given(FACTS)
def test_a_card_that_is_there_keeps_its_fields_and_gets_those_that_were_given(fields: dict[str, Any]) -> None:
    text = f"---\n{yaml.safe_dump(HEAD)}---\n\n# Mine\n\n---\nlicense: other\n"
    fields.pop("prompt", None)
    try:
        facts = CardFacts(**fields)
        card = update_card(text, FOLDER, "me/model", facts)
    except ValueError:
        event("refused")
        return
    expected = HEAD | {"license": facts.license, "tags": joined(HEAD["tags"], facts.tags)}
    expected |= {"base_model": facts.base_model} if facts.base_model else {}
    expected |= {"language": joined(facts.languages)} if facts.languages else {}
    expected |= {"datasets": joined(facts.datasets)} if facts.datasets else {}
    event("written")
    assert head_of(card) == expected
    assert card.endswith("# Mine\n\n---\nlicense: other\n")
