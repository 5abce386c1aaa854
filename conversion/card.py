"""Fills the model card from what a folder's files say and what its publisher adds."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

TEMPLATE = Path(__file__).with_name("model_card.md")
# What a recipe holds beside the training: places and names of the machine it ran on.
_PLACES = re.compile(r"(output|logging)_dir|run_name|report_to|.*token|hub_.*|push_to_hub|tokenizer|model|.*_data")
# What a trainer's evaluation logs beside its results.
_SPEEDS = re.compile(r"epoch|step|.*_(runtime|per_second)")
# Signs of a card that a library wrote and nobody filled in.
_PLACEHOLDERS = ("generated_from_trainer", "[More Information Needed]")


@dataclass(frozen=True)
class CardFacts:
    """What the files of a folder do not say.

    Attributes:
        license: licence of the weights, as the Hub spells it: apache-2.0, mit, other. Needed.
        base_model: Hub id of the checkpoint it was trained or converted from.
        datasets: Hub ids of the training data.
        languages: language codes.
        tags: further tags of the card.
        recipe: YAML file of the training's options.
        results: JSON files of evaluations: lm-evaluation-harness's, or one mapping of measures to numbers.
        prompt: text that the usage example continues.
        is_chat: the usage example puts `prompt` as a user's turn too.
    """

    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    recipe: Path | None = None
    results: tuple[Path, ...] = ()
    prompt: str = "The capital of France is"
    is_chat: bool = False


class Result(NamedTuple):
    """One number of an evaluation."""

    dataset: str
    metric: str
    value: float


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
    """Write the card of a folder: its own README.md with `facts.tags` added, else the template filled.

    A README.md that a trainer or peft left as a placeholder counts as none.

    Args:
        folder: a model's or an adapter's; a `trainer_state.json` in it gives steps and the last evaluation.
        repo_id: where it is going to be published.
        facts: what else to say.
        num_parameters: of the weights in the folder.
        is_adapter: whether it is a LoRA adapter of `facts.base_model`.

    Raises:
        ValueError: if the card needs a licence and got none, and for files that cannot be read as facts.
    """
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if text and not any(sign in text for sign in _PLACEHOLDERS):
        return _add_tags(text, facts.tags)
    if facts.license is None:
        raise ValueError(
            f"`{folder}` has no README.md, and a card needs a licence, got none; pass --license apache-2.0, mit, other "
            "… (as the base model's licence allows)."
        )
    state = _read_mapping(folder / "trainer_state.json") if (folder / "trainer_state.json").is_file() else {}
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


def read_results(path: Path) -> list[Result]:
    """Read the numbers of an evaluation, from lm-evaluation-harness's file or one mapping of measures to numbers.

    Raises:
        ValueError: for a file that is neither.
    """
    found = _read_mapping(path)
    tasks = found.get("results", {path.stem: found})
    rows = [
        Result(task, metric.removesuffix(",none"), float(value))
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
        if _is_number(value) and "_stderr" not in metric and not _SPEEDS.fullmatch(metric)
    ]
    if not rows:
        raise ValueError(f"`{path}` must hold numbers of an evaluation, got none; name an lm-eval results file.")
    return rows


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the options of a training from its YAML file, without the places of the machine it ran on.

    Raises:
        ValueError: for a file that is no YAML mapping.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe `{path}` is no YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe `{path}` must map options to values, got {type(recipe).__name__}.")
    return {name: value for name, value in recipe.items() if not _PLACES.fullmatch(name)}


def model_index(repo_id: str, results: Iterable[Result]) -> list[dict[str, Any]]:
    """Spell results out as the Hub's metadata; empty if there are none."""
    entries = [
        EvalResult(
            task_type="text-generation",
            dataset_type=row.dataset,
            dataset_name=row.dataset,
            metric_type=row.metric,
            metric_value=row.value,
        )
        for row in results
    ]
    return eval_results_to_model_index(repo_id.split("/")[-1], entries) if entries else []


def _add_tags(text: str, tags: tuple[str, ...]) -> str:
    if not tags:
        return text
    card: Any = ModelCard(text)
    known = card.data.tags or []
    card.data.tags = [*known, *(tag for tag in tags if tag not in known)]
    return str(card)


def _logged_results(state: dict[str, Any]) -> list[Result]:
    """The last evaluation that a trainer logged."""
    rows = [row for row in state.get("log_history", []) if "eval_loss" in row]
    return [
        Result("validation", name.removeprefix("eval_"), float(value))
        for name, value in (rows[-1] if rows else {}).items()
        if name.startswith("eval_") and _is_number(value) and not _SPEEDS.fullmatch(name)
    ]


def _name_sources(state: dict[str, Any], files: tuple[Path, ...]) -> str | None:
    sources = ["the trainer's last evaluation"] if _logged_results(state) else []
    sources += [f"`{path.name}`" for path in files]
    return f"From {', '.join(sources)}." if sources else None


def _list_datasets(datasets: tuple[str, ...]) -> str | None:
    return "\n".join(f"- [{name}](https://huggingface.co/datasets/{name})" for name in datasets) or None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"`{path}` must hold a JSON object, got {type(found).__name__}.")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
