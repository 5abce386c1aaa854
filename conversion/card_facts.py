"""What a model card says that the weights do not: its publisher's facts, the results of evaluations, a recipe."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult

# What a recipe holds beside the training: places and names of the machine it ran on.
_PLACES = re.compile(r"(output|logging)_dir|run_name|report_to|.*token|hub_.*|push_to_hub|tokenizer|model|.*_data")
# What a trainer's evaluation logs beside its results.
_SPEEDS = re.compile(r"epoch|step|.*_(runtime|per_second)")


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
        results: JSON files of evaluations; see `read_results`.
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


def read_results(path: Path) -> list[Result]:
    """Read the numbers of an evaluation.

    Args:
        path: a record of `llada evaluate`, lm-evaluation-harness's file, or one mapping of measures to numbers.

    Raises:
        ValueError: for a file that is none of these.
    """
    found = read_mapping(path)
    tasks = found.get("results", {path.stem: found})
    if path.name.endswith(".record.json"):
        tasks = {found["name"]: {metric: score["value"] for metric, score in tasks.items()}}
    rows = [
        Result(task, metric.removesuffix(",none"), float(value))
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
        if is_result(metric, value) and "_stderr" not in metric
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


def eval_results(results: Iterable[Result]) -> list[EvalResult]:
    """Spell results out as the Hub's metadata."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=row.dataset,
            dataset_name=row.dataset,
            metric_type=row.metric,
            metric_value=row.value,
        )
        for row in results
    ]


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"`{path}` must hold a JSON object, got {type(found).__name__}.")
    return found


def is_result(name: str, value: Any) -> bool:
    """Whether a logged value is a number that measures the model, and not the run's speed."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not _SPEEDS.fullmatch(name)
