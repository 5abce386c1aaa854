"""Writes results of evaluations into a model card's metadata, in the form the Hub reads; the card's text stays."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from llada_core.records import EvaluationRecord

CARD_NAME = "README.md"
TASK_TYPE = "text-generation"
_HEAD = re.compile(rb"\A---[ \t]*(\r?\n)(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def evaluation_results(records: Sequence[EvaluationRecord]) -> list[EvalResult]:
    """Spell records out as the Hub's results, one for each metric.

    Scores are given as the metric has them (an accuracy in [0, 1]). Among the metric's arguments stand its standard
    error (`stderr`), the number of questions, the seed and the settings.
    """
    return [
        EvalResult(
            task_type=TASK_TYPE,
            dataset_type=record.dataset or record.name,
            dataset_name=record.name,
            metric_type=metric.split(",")[0],
            # The Hub puts results of one data set together, under the name of the first.
            metric_name=f"{record.name}: {metric}",
            metric_value=score.value,
            metric_args={"stderr": score.standard_error, "num_questions": record.num_questions, "seed": record.seed}
            | record.settings,
        )
        for record in records
        for metric, score in record.results.items()
    ]


def model_index(records: Sequence[EvaluationRecord], model_name: str) -> list[dict[str, Any]]:
    """Make the value of `model-index` in a card's metadata."""
    return eval_results_to_model_index(model_name, evaluation_results(records))


def write_model_index(records: Sequence[EvaluationRecord], folder: str | Path) -> Path:
    """Add results to the metadata of the card in a model's folder; everything below the metadata stays byte for byte.

    A result of the same benchmark and metric is replaced, others stay. Other metadata keep their values; YAML
    comments among them are lost.

    Args:
        records: what to add.
        folder: a model's, with a README.md.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: if the folder has no card.
        ValueError: if there are no records, or the card's head is no YAML mapping.
    """
    if not records:
        raise ValueError("`records` must hold at least one record, got none.")
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        raise FileNotFoundError(f"`{folder}` has no {CARD_NAME}; write the model's card first, or name another folder.")
    content = path.read_bytes()
    head = _HEAD.match(content)
    metadata = _read_metadata(path, head[2] if head else b"")
    name, results = _known_results(metadata, path)
    added = evaluation_results(records)
    replaced = {(new.dataset_type, new.metric_name) for new in added}
    kept = [old for old in results if (old.dataset_type, old.metric_name) not in replaced]
    metadata["model-index"] = eval_results_to_model_index(name, [*kept, *added])
    newline = head[1].decode() if head else "\n"
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=2**16).replace("\n", newline)
    rest = content[head.end() :] if head else content
    path.write_bytes(f"---{newline}{text}---{newline}".encode() + rest)
    return path


def _read_metadata(path: Path, head: bytes) -> dict[str, Any]:
    try:
        metadata = yaml.safe_load(head.decode("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The metadata at the head of `{path}` are no YAML: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"The metadata at the head of `{path}` must map names to values, got {metadata!r}.")
    return metadata


def _known_results(metadata: dict[str, Any], path: Path) -> tuple[str, list[EvalResult]]:
    """Read the model's name and the results that the card has."""
    if not metadata.get("model-index"):
        return path.resolve().parent.name, []
    try:
        return model_index_to_eval_results(metadata["model-index"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`model-index` of `{path}` is not in the Hub's form ({error!r}); correct or remove it."
        ) from None
