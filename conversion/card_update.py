"""Completes a card that lies in the folder already: its metadata, and the places its usage example loads from."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .card_facts import CardFacts, eval_results, read_results

# What the template says where no licence was named, and what it says of one.
_NO_LICENSE = "No licence was named for the weights; those of the base model and of the data apply."
_LICENSE = "The weights are licensed under {}."
# A place to load from, in a call of the usage example.
_LOADED_FROM = re.compile(r"""(?<=from_pretrained\()(?P<base>base, )?"(?P<place>[^"\n]+)\"""")


def update_card(text: str, folder: Path, repo_id: str, facts: CardFacts) -> str:
    """Add `facts` to a card; without any, and without places of this machine in it, it stays byte for byte.

    Args:
        text: the card.
        folder: where it lies; a usage example that loads from there, or an adapter's base model from a folder, loads
            from the Hub afterwards.
        repo_id: where it is going to be published.
        facts: what to add; what they leave out stays as the card has it.

    Raises:
        ValueError: for facts that only a new card can hold, and for results that cannot be read.
    """
    _refuse_what_needs_a_new_card(folder, facts)
    text = _LOADED_FROM.sub(lambda match: _load_from_the_hub(match, folder, repo_id, facts), text)
    if facts.license:
        text = text.replace(_NO_LICENSE, _LICENSE.format(facts.license))
    card: Any = ModelCard(text)
    before = card.data.to_dict()
    for name, value in (("license", facts.license), ("base_model", facts.base_model)):
        if value:
            card.data[name] = value
    for name, more in (("datasets", facts.datasets), ("language", facts.languages), ("tags", facts.tags)):
        if more:
            card.data[name] = list(dict.fromkeys([*_as_list(card.data.get(name)), *more]))
    results = [row for path in facts.results for row in read_results(path)]
    if results:
        card.data.model_name = card.data.model_name or repo_id.split("/")[-1]
        card.data.eval_results = [*(card.data.eval_results or []), *eval_results(results)]
    return text if card.data.to_dict() == before else str(card)


def _refuse_what_needs_a_new_card(folder: Path, facts: CardFacts) -> None:
    unset = CardFacts()
    options = {"--recipe": "recipe", "--prompt": "prompt", "--chat": "is_chat"}
    given = [option for option, name in options.items() if getattr(facts, name) != getattr(unset, name)]
    if given:
        raise ValueError(
            f"`{folder}` has a README.md of its own, and {', '.join(given)} cannot be added to its text; write it "
            "there, or remove the file to get a new card."
        )


def _load_from_the_hub(match: re.Match[str], folder: Path, repo_id: str, facts: CardFacts) -> str:
    """The call's first arguments, from the Hub where they named this folder or the base model's."""
    place = match["place"]
    if Path(place).exists() and Path(place).resolve() == folder.resolve():
        place = repo_id
    elif facts.base_model and place == _recorded_base(folder):
        place = facts.base_model
    return f'{match["base"] or ""}"{place}"'


def _recorded_base(folder: Path) -> str | None:
    """Where the adapter in `folder` was trained from, if it is one."""
    path = folder / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") if path.is_file() else None


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
