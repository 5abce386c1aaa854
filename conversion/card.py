"""Fills the model card from what a folder's files say and what its publisher adds."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from .card_facts import CardFacts, Result, eval_results, is_result, read_mapping, read_recipe, read_results
from .card_update import update_card

TEMPLATE = Path(__file__).with_name("model_card.md")
# Signs of a card that a library wrote and nobody filled in.
_PLACEHOLDERS = ("generated_from_trainer", "[More Information Needed]")


def render_card(variables: dict[str, Any]) -> str:
    """Fill the template; a variable that is missing raises, and so does a head that is no YAML mapping.

    Args:
        variables: what the head of `model_card.md` lists.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(variables)
    ModelCard(card)
    return card


def fill_card(folder: Path, repo_id: str, facts: CardFacts, num_parameters: int, is_adapter: bool) -> str:
    """Write the card of a folder: its own README.md with `facts` added, else the template filled.

    A README.md that a trainer or peft left as a placeholder counts as none.

    Args:
        folder: a model's or an adapter's; a `trainer_state.json` in it gives steps and the last evaluation.
        repo_id: where it is going to be published.
        facts: what else to say.
        num_parameters: of the weights in the folder.
        is_adapter: whether it is a LoRA adapter of `facts.base_model`.

    Raises:
        ValueError: if the card needs a licence and got none, for files that cannot be read as facts, and for facts
            that a card which is there cannot hold.
    """
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if text and not any(sign in text for sign in _PLACEHOLDERS):
        return update_card(text, folder, repo_id, facts)
    if facts.license is None:
        raise ValueError(
            f"`{folder}` has no README.md, and a card needs a licence, got none; pass --license apache-2.0, mit, other "
            "… (as the base model's licence allows)."
        )
    state = read_mapping(folder / "trainer_state.json") if (folder / "trainer_state.json").is_file() else {}
    results = _logged_results(state) + [row for path in facts.results for row in read_results(path)]
    kind = "LoRA adapter" if is_adapter else "model"
    return render_card(
        dict.fromkeys(("compute", "loss_curve", "training_log", "samples", "samples_method", "limits", "notices"))
        | {
            "model_name": repo_id.split("/")[-1],
            "model_id": repo_id,
            "is_adapter": is_adapter,
            "summary": f"A LLaDA {kind} (masked diffusion language model, arXiv:2502.09992) of "
            f"{num_parameters / 1e6:,.1f} million parameters.",
            "license": facts.license,
            "languages": facts.languages,
            "base_model": facts.base_model,
            "datasets": facts.datasets,
            "tags": facts.tags,
            "prompt": facts.prompt,
            "infill_prompt": None if is_adapter else "The capital ofMASK is Rome.",
            "chat_question": facts.prompt if facts.is_chat else None,
            "training_data": _list_datasets(facts.datasets),
            "training_commands": [],
            "training_arguments": read_recipe(facts.recipe) if facts.recipe else {},
            "training_steps": state.get("global_step"),
            "training_tokens": state.get("num_input_tokens_seen"),
            "evaluation": [(f"{row.dataset}: {row.metric}", f"{row.value:.4g}") for row in results],
            "evaluation_method": _name_sources(state, facts.results),
            "model_index": model_index(repo_id, results),
        }
    )


def model_index(repo_id: str, results: Iterable[Result]) -> list[dict[str, Any]]:
    """Spell results out as the Hub's metadata; empty if there are none."""
    entries = eval_results(results)
    return eval_results_to_model_index(repo_id.split("/")[-1], entries) if entries else []


def _logged_results(state: dict[str, Any]) -> list[Result]:
    """The last evaluation that a trainer logged."""
    rows = [row for row in state.get("log_history", []) if "eval_loss" in row]
    return [
        Result("validation", name.removeprefix("eval_"), float(value))
        for name, value in (rows[-1] if rows else {}).items()
        if name.startswith("eval_") and is_result(name, value)
    ]


def _name_sources(state: dict[str, Any], files: tuple[Path, ...]) -> str | None:
    sources = ["the trainer's last evaluation"] if _logged_results(state) else []
    sources += [f"`{path.name}`" for path in files]
    return f"From {', '.join(sources)}." if sources else None


def _list_datasets(datasets: tuple[str, ...]) -> str | None:
    return "\n".join(f"- [{name}](https://huggingface.co/datasets/{name})" for name in datasets) or None
