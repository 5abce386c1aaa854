"""The model card: written for a new model, completed where there is one, and given the results of evaluations.

huggingface_hub's card classes read and write the YAML head. The text of a new card is the template `model_card.md`.
"""

import datetime
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union

import jinja2
import jinja2.meta
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .hub import is_hub_id

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = ("llada", "masked-diffusion", "diffusion-language-model", "custom_code")
TASK_TYPE = "text-generation"
PROMPT = "The capital of France is"
INFILL_PROMPT = "The capital ofMASK is Rome."
# What a card says of the licence of the weights.
LICENSE_NOTE = "The weights are licensed under {}."
NO_LICENSE_NOTE = "No licence was named for the weights; those of the base model and of the data apply."
# Signs of a card that a library wrote and nobody filled in.
PLACEHOLDERS = ("generated_from_trainer", "[More Information Needed]")
# Options that decide what was learnt, in the order of the card; those that a run does not have are left out.
OPTIONS_SHOWN = (
    "sequence_length", "max_length", "random_length_probability", "attention_annealing_steps", "turns", "eos_fill",
    "packing", "loss_normalization", "noise_eps", "exact_count", "low_discrepancy", "num_noise_samples",
    "complementary_masks", "objective", "levels", "prompt_mask_rate", "block_length", "threshold", "fallback",
    "denoising_steps", "max_completion_length", "temperature", "num_generations", "num_iterations", "epsilon",
    "beta", "loss_type", "loss_weights", "desirable_weight", "undesirable_weight",
    "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs", "max_steps",
    "optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "decay_steps", "decay_type", "min_lr_ratio",
    "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16", "fp16", "seed",
)  # fmt: skip
ADAPTER_OPTIONS_SHOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules")
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")
# Columns of training data that hold token ids, of the row or of its parts.
TOKEN_COLUMNS = ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")
# What stands in the usage example of an adapter whose model has no name.
UNNAMED_BASE = "path/to/the/base/model"
# Rows whose tokens are counted at once.
COUNT_BATCH = 10_000

# A place to load from, in a call of the usage example.
_LOADED_FROM = re.compile(r'(from_pretrained\((?:base, )?)"([^"\n]+)"')
# What a recipe holds beside the training: places and names of the machine it ran on.
_PLACES = re.compile(
    r"(output|logging)_dir|run_name|report_to|.*token|hub_.*|push_to_hub|tokenizer|model|.*_data|resume_from_checkpoint"
    r"|.*(secret|passw(or)?d|pwd|credential).*",
    re.IGNORECASE,
)
# Options whose text is a key, a token or a password.
_KEYS = re.compile(r".*(key|token|secret|passw(or)?d|pwd|credential).*", re.IGNORECASE)
# A place on a machine: ~/x, ./x, C:\x, \\host, and a file by its ending. Other text with a slash is an id or a place.
_PLACE = re.compile(
    r"~.*|\.{1,2}([/\\].*)?|[A-Za-z]:[/\\].*|\\.*|.*\.(jsonl?|ya?ml|py|txt|pt|bin|safetensors|csv|parquet)"
)
# What stands in a card's head as a word: licences and languages.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
# What a trainer's evaluation logs beside its results.
_SPEEDS = re.compile(r"epoch|step|.*_(runtime|per_second)")
_LOGGED = re.compile(r"(eval_(\w+_)?)?(loss|masked_accuracy|rewards/(accuracies|margins))")

Names = Union[str, Sequence[str], None]


# --- a new card ------------------------------------------------------------------------------------------------------


def new_card(
    *,
    model_name: str,
    model_id: str,
    summary: str,
    prompt: str = PROMPT,
    is_adapter: bool = False,
    license: Optional[str] = None,
    base_model: Optional[str] = None,
    languages: Names = None,
    datasets: Names = None,
    tags: Names = None,
    results: Sequence[EvalResult] = (),
    **text: Any,
) -> ModelCard:
    """Fill the template.

    Args:
        model_name, model_id, summary, prompt, is_adapter: as the head of `model_card.md` describes them.
        license: of the weights, as the Hub spells it: apache-2.0, mit, other.
        base_model: Hub id or folder of the checkpoint it was trained from; an adapter needs it. Only an id goes into
            the metadata.
        languages: language codes.
        datasets: Hub ids of the training data.
        tags: further tags beside `TAGS`.
        results: of evaluations, for the metadata.
        text: the template's other variables. What is left out, None or empty is left out of the card.

    Raises:
        TypeError: for a variable that the template does not have.
    """
    source = TEMPLATE.read_text(encoding="utf-8")
    unknown = text.keys() - jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source))
    if unknown:
        raise TypeError(f"Unknown variables of the model card: {', '.join(sorted(unknown))}; see {TEMPLATE.name}.")
    metadata = ModelCardData(
        license=license,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=TASK_TYPE,
        language=_joined(languages) or None,
        base_model=base_model if _is_on_hub(base_model) else None,
        datasets=_joined(datasets) or None,
        tags=_joined(TAGS, tags),
        model_name=model_name if results else None,
        eval_results=list(results) or None,
    )
    text |= {"model_name": model_name, "model_id": model_id, "summary": summary, "prompt": prompt}
    text |= {"is_adapter": is_adapter, "base_model": base_model}
    text["training_arguments"] = {_cell(k): _cell(v) for k, v in (text.get("training_arguments") or {}).items()}
    text["evaluation"] = [(_cell(measure), _cell(value)) for measure, value in text.get("evaluation") or ()]
    text["license_note"] = LICENSE_NOTE.format(license) if license else NO_LICENSE_NOTE
    # Jinja drops the last line break of a template.
    return ModelCard.from_template(metadata, template_str=source + "\n", **text)


def _joined(*lists: Names) -> list[str]:
    """All names in one list, each once."""
    return list(dict.fromkeys(name for names in lists for name in ([names] if isinstance(names, str) else names or [])))


def _cell(value: Any) -> str:
    """Spell a value so that it stays in its cell of a table: on one line, its bars escaped, and no half characters."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return " ".join(text.split()).replace("|", r"\|")


def _is_on_hub(name: Optional[str]) -> bool:
    return is_hub_id(name, with_owner=True) and not Path(str(name)).exists()


# --- results of evaluations ------------------------------------------------------------------------------------------


def eval_result(
    benchmark: str, metric: str, value: float, dataset: Optional[str] = None, args: Optional[dict[str, Any]] = None
) -> EvalResult:
    """Spell a result as the Hub's metadata.

    Args:
        benchmark: what was asked.
        metric: its name, perhaps with lm-evaluation-harness's filter behind a comma: `acc,none`.
        value: as the metric gives it (an accuracy in [0, 1]).
        dataset: Hub id of the data, or package and file. Default: `benchmark`.
        args: what else to say of the metric, e.g. its `stderr`.

    Raises:
        ValueError: for a value that is not a finite number.
    """
    if not _is_finite(value):
        raise ValueError(
            f"The result `{benchmark}: {metric}` must be a finite number, got {str(value)[:40]}; evaluate again, or "
            "leave it out."
        )
    return EvalResult(
        task_type=TASK_TYPE,
        dataset_type=dataset or benchmark,
        dataset_name=benchmark,
        metric_type=metric.split(",")[0],
        # The Hub puts results of one data set together, under the name of the first.
        metric_name=f"{benchmark}: {metric}",
        metric_value=value,
        metric_args=args,
    )


def record_results(record: Mapping[str, Any]) -> list[EvalResult]:
    """Spell a record of `llada evaluate` as the Hub's metadata: one result for each metric.

    Args:
        record: the fields of an `EvaluationRecord`. Standard error (`stderr`), number of questions, seed and settings
            become the metric's arguments.
    """
    settings = {"num_questions": record.get("num_questions"), "seed": record.get("seed"), **record.get("settings", {})}
    return [
        eval_result(
            record["name"],
            metric,
            score["value"],
            record.get("dataset"),
            {"stderr": score.get("standard_error"), **settings},
        )
        for metric, score in record["results"].items()
    ]


def read_results(path: Path) -> list[EvalResult]:
    """Read the numbers of an evaluation.

    Args:
        path: a record of `llada evaluate`, lm-evaluation-harness's file, or one mapping of measures to numbers.

    Raises:
        ValueError: for a file that is none of these, and for a result that is not a finite number.
    """
    found = read_json_object(path)
    if path.name.endswith(".record.json"):
        _check_record(found, path)
        return record_results(found)
    tasks = found.get("results", {path.stem: found})
    if not isinstance(tasks, dict) or not all(isinstance(metrics, dict) for metrics in tasks.values()):
        raise ValueError(f"`results` in `{path}` must map tasks to their metrics; pass an lm-eval results file.")
    results = [
        eval_result(benchmark, metric, value)
        for benchmark, metrics in tasks.items()
        for metric, value in metrics.items()
        if _is_result(metric, value) and "_stderr" not in metric
    ]
    if not results:
        raise ValueError(f"`{path}` must hold numbers of an evaluation, got none; pass an lm-eval results file.")
    return results


def _check_record(fields: dict[str, Any], path: Path) -> None:
    """Raise unless `fields` have what `record_results` reads."""
    name, scores, dataset = fields.get("name"), fields.get("results"), fields.get("dataset")
    problems = {
        "`name` must be text": isinstance(name, str) and bool(name),
        "`results` must map metrics to scores with a `value`": isinstance(scores, dict)
        and all(isinstance(score, dict) and "value" in score for score in scores.values()),
        "`dataset` must be text or null": isinstance(dataset, (str, type(None))),
        "`settings` must be an object": isinstance(fields.get("settings", {}), dict),
    }
    wrong = [problem for problem, is_right in problems.items() if not is_right]
    if wrong:
        raise ValueError(f"`{path}` is not an evaluation record: {', '.join(wrong)}; name a file of `llada evaluate`.")


def write_results(results: Sequence[EvalResult], folder: Union[str, Path]) -> Path:
    """Add results to the metadata of the card in a model's folder; everything below the metadata stays byte for byte.

    A result of the same benchmark and metric is replaced, others stay. Other metadata keep their values; YAML comments
    among them are lost.

    Returns:
        The card's path.

    Raises:
        FileNotFoundError: if the folder has no card.
        ValueError: if there are no results, or the card's metadata cannot be read.
    """
    if not results:
        raise ValueError("`results` must hold at least one result, got none.")
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        raise FileNotFoundError(f"`{folder}` has no {CARD_NAME}; write the model's card first, or name another folder.")
    card = _read_card(path.read_bytes().decode("utf-8"), path)
    _add_results(card, results, path.resolve().parent.name)
    path.write_bytes(str(card).encode("utf-8"))
    return path


def _read_card(text: str, path: Path) -> Any:
    try:
        return ModelCard(text)
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"The metadata at the head of `{path}` cannot be read ({error}); correct them.") from None


def _add_results(card: Any, results: Sequence[EvalResult], model_name: str) -> None:
    """Put results into a card's metadata, in place of older ones of the same benchmark and metric."""
    added = {_identity(result): result for result in results}
    kept = [result for result in card.data.eval_results or [] if _identity(result) not in added]
    card.data.model_name = card.data.model_name or model_name
    card.data.eval_results = [*kept, *added.values()]


def _identity(result: EvalResult) -> tuple[Optional[str], ...]:
    """What a result measures: task, benchmark with configuration and split, and metric.

    The benchmark is read from the metric's name, where `eval_result` puts it: the Hub's form gives all results of a
    data set the name of the first.
    """
    metric = str(result.metric_name or result.metric_type)
    if ": " not in metric:
        metric = f"{result.dataset_name}: {metric}"
    return (result.task_type, result.dataset_config, result.dataset_split, metric.removesuffix(",none"))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        ValueError: for any other file, named.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair can be read and not be written
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"`{path}` must hold a JSON object, got {type(found).__name__}.")
    return found


def _is_result(name: str, value: Any) -> bool:
    """Whether a logged value is a number that measures the model, and not the run's speed."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not _SPEEDS.fullmatch(name)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value) and not isinstance(value, bool)
    except (TypeError, OverflowError):  # no number, or an integer beyond every float
        return False


# --- the card of a folder that is published --------------------------------------------------------------------------


@dataclass(frozen=True)
class CardFacts:
    """What the files of a folder do not say.

    Attributes:
        license: licence of the weights, as the Hub spells it: apache-2.0, mit, other. A new card needs it.
        base_model: Hub id of the checkpoint it was trained or converted from.
        datasets: Hub ids of the training data.
        languages: language codes.
        tags: further tags of the card.
        recipe: YAML file of the training's options.
        results: JSON files of evaluations; see `read_results`.
        prompt: text that the usage example continues.
        is_chat: the usage example puts `prompt` as a user's turn too.

    Raises:
        ValueError: for a licence or language that is not a word, a tag of several lines, and what is not a Hub id.
    """

    license: Optional[str] = None
    base_model: Optional[str] = None
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    recipe: Optional[Path] = None
    results: tuple[Path, ...] = ()
    prompt: str = PROMPT
    is_chat: bool = False

    def __post_init__(self) -> None:
        _check_words("license", [self.license] if self.license is not None else [])
        _check_words("languages", self.languages)
        bad_tags = [tag for tag in self.tags if not (isinstance(tag, str) and tag.strip() and tag.isprintable())]
        if bad_tags:
            raise ValueError(f"`tags` must be printable text on one line, got {bad_tags[0]!r}; leave it out.")
        bases = [self.base_model] if self.base_model is not None else []
        for name, ids in (("base_model", bases), ("datasets", self.datasets)):
            bad_ids = [hub_id for hub_id in ids if not is_hub_id(hub_id)]
            if bad_ids:
                raise ValueError(f"`{name}` must be a Hub id such as user/name, got {bad_ids[0]!r}; correct it.")


def _check_words(name: str, words: Sequence[str]) -> None:
    bad = [word for word in words if not (isinstance(word, str) and _WORD.fullmatch(word))]
    if bad:
        raise ValueError(
            f"`{name}` must be letters, digits and .+_- as the Hub spells it (apache-2.0, en), got {bad[0]!r}; "
            "correct it."
        )


def published_card(folder: Path, repo_id: str, facts: CardFacts, num_parameters: int, is_adapter: bool) -> str:
    """Write the card of a folder: its own README.md with `facts` added, else a new one.

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
    readme = folder / CARD_NAME
    text = _read_text(readme) if readme.is_file() else ""
    if text and not any(sign in text for sign in PLACEHOLDERS):
        return update_card(text, folder, repo_id, facts)
    if facts.license is None:
        raise ValueError(
            f"`{folder}` has no README.md, and a card needs a licence, got none; pass --license apache-2.0, mit, other "
            "… (as the base model's licence allows)."
        )
    state = _trainer_state(folder)
    logged = _logged_results(state)
    results = [*logged, *(row for path in facts.results for row in read_results(path))]
    sources = ["the trainer's last evaluation"] * bool(logged) + [f"`{_cell(path.name)}`" for path in facts.results]
    card = new_card(
        model_name=repo_id.split("/")[-1],
        model_id=repo_id,
        is_adapter=is_adapter,
        summary=f"A LLaDA {'LoRA adapter' if is_adapter else 'model'} (masked diffusion language model, "
        f"arXiv:2502.09992) of {num_parameters / 1e6:,.1f} million parameters.",
        license=facts.license,
        languages=facts.languages,
        base_model=facts.base_model,
        datasets=facts.datasets,
        tags=facts.tags,
        results=results,
        prompt=facts.prompt,
        infill_prompt=None if is_adapter else INFILL_PROMPT,
        chat_question=facts.prompt if facts.is_chat else None,
        training_data="\n".join(f"- [{name}](https://huggingface.co/datasets/{name})" for name in facts.datasets),
        training_arguments=read_recipe(facts.recipe) if facts.recipe else {},
        training_steps=state.get("global_step"),
        training_tokens=state.get("num_input_tokens_seen"),
        evaluation=[(str(row.metric_name).removesuffix(",none"), f"{row.metric_value:.4g}") for row in results],
        evaluation_method=f"From {', '.join(sources)}.",
    )
    return str(card)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` must be UTF-8 text ({error}); save it again.") from None


def update_card(text: str, folder: Path, repo_id: str, facts: CardFacts) -> str:
    """Add `facts` to a card; without any, and without places of this machine in it, it stays byte for byte.

    Args:
        text: the card.
        folder: where it lies; a usage example that loads from there, or an adapter's base model from a folder, loads
            from the Hub afterwards.
        repo_id: where it is going to be published.
        facts: what to add; what they leave out stays as the card has it.

    Raises:
        ValueError: for facts that only a new card can hold, for results that cannot be read, and for a card whose
            metadata cannot.
    """
    _refuse_what_needs_a_new_card(folder, facts)
    text = _LOADED_FROM.sub(lambda call: f'{call[1]}"{_hub_place(call[2], folder, repo_id, facts.base_model)}"', text)
    if facts.license:
        text = text.replace(NO_LICENSE_NOTE, LICENSE_NOTE.format(facts.license))
    card = _read_card(text, folder / CARD_NAME)
    before = card.data.to_dict()
    for name, value in (("license", facts.license), ("base_model", facts.base_model)):
        card.data[name] = value or card.data.get(name)
    for name, more in (("datasets", facts.datasets), ("language", facts.languages), ("tags", facts.tags)):
        if more:
            card.data[name] = _joined(_names_in(card, name, folder / CARD_NAME), more)
    results = [row for path in facts.results for row in read_results(path)]
    if results:
        _add_results(card, results, repo_id.split("/")[-1])
    return text if card.data.to_dict() == before else str(card)


def _names_in(card: Any, name: str, path: Path) -> Names:
    names = card.data.get(name)
    if not isinstance(names, (str, type(None))) and not (
        isinstance(names, list) and all(isinstance(each, str) for each in names)
    ):
        raise ValueError(
            f"`{name}` at the head of `{path}` must be text or a list of texts, got {names!r}; correct it."
        )
    return names


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the options of a training from its YAML file, without the machine's places, keys and passwords.

    Options are left out by their names (`output_dir`, `hub_token`, `wandb_api_key` …) and by their values: whatever
    names a file or a folder. A Hub id is kept.

    Raises:
        ValueError: for a file that is not a YAML mapping of names.
    """
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        json.dumps(recipe, default=str, skipkeys=True)  # an alias can make a list hold itself
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"The recipe `{path}` is not valid YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe `{path}` must map options to values, got {type(recipe).__name__}.")
    names = [name for name in recipe if not isinstance(name, str)]
    if names:
        raise ValueError(f"The options of the recipe `{path}` must be names, got {names[0]!r}; put it in quotes.")
    return {
        name: value
        for name, value in recipe.items()
        if not _PLACES.fullmatch(name) and not any(_is_private(*pair) for pair in _texts_in(value, name))
    }


def _texts_in(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every text in an option's value, however deep, with the name it stands under."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield name, str(key)
            yield from _texts_in(inner, str(key))
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _texts_in(inner, name)


def _is_private(name: str, text: str) -> bool:
    """Whether an option's text is a key or names a place on this machine."""
    is_place = _PLACE.fullmatch(text) or ("/" in text and not _is_on_hub(text))
    return bool(is_place or _KEYS.fullmatch(name))


def _trainer_state(folder: Path) -> dict[str, Any]:
    """What a trainer left in `folder` of its steps and evaluations; empty without it."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return {}
    state = read_json_object(path)
    history = state.get("log_history", [])
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise ValueError(f"`log_history` in `{path}` must be a list of objects; save the training again, or remove it.")
    for name in ("global_step", "num_input_tokens_seen"):
        if not isinstance(state.get(name), (int, type(None))):
            raise ValueError(f"`{name}` in `{path}` must be an integer, got {state[name]!r}; correct or remove it.")
    return state


def _logged_results(state: dict[str, Any]) -> list[EvalResult]:
    """The last evaluation that a trainer logged."""
    rows = [row for row in state.get("log_history", []) if "eval_loss" in row]
    return [
        eval_result("validation", name.removeprefix("eval_"), value)
        for name, value in (rows[-1] if rows else {}).items()
        if name.startswith("eval_") and _is_result(name, value)
    ]


def _refuse_what_needs_a_new_card(folder: Path, facts: CardFacts) -> None:
    options = {"--recipe": "recipe", "--prompt": "prompt", "--chat": "is_chat"}
    given = [option for option, name in options.items() if getattr(facts, name) != getattr(CardFacts, name)]
    if given:
        raise ValueError(
            f"`{folder}` has a README.md of its own, and {', '.join(given)} cannot be added to its text; write it "
            "there, or remove the file to get a new card."
        )


def _hub_place(place: str, folder: Path, repo_id: str, base_model: Optional[str]) -> str:
    """The Hub id for a place that a usage example loads from, where it is this folder or the adapter's base model."""
    if Path(place).exists() and Path(place).resolve() == folder.resolve():
        return repo_id
    adapter = folder / "adapter_config.json"
    if base_model and adapter.is_file() and place == read_json_object(adapter).get("base_model_name_or_path"):
        return base_model
    return place


# --- the card of a training run --------------------------------------------------------------------------------------


def write_card(
    trainer: Any,
    folder: Union[str, Path],
    model_name: Optional[str] = None,
    license: Optional[str] = None,
    language: Names = None,
    dataset: Names = None,
    tags: Names = None,
) -> Optional[Path]:
    """Write the card of a folder that a trainer saved into, in place of the one that a library may have left there.

    A folder with a `config.json` holds a whole model, merged perhaps; one with an adapter alone gets an adapter's card.
    A `loss_curve.png` in it is shown.

    Args:
        trainer: one of our trainers, in any state; its options, data sets and log are described.
        folder: what the card is about.
        model_name: title. Default: the name of the Hub repository, else of the run's folder.
        license: licence of the weights, as the Hub spells it; it is not guessed.
        language: language code, or several.
        dataset: Hub id of the training data, or several, beside those among the option `train_data`.
        tags: further tags.

    Returns:
        The card's path, or None, with nothing written, if the folder holds neither model nor adapter.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return None
    # Hub id or folder that the model, or the one under the adapter, was loaded from; None for a fresh one.
    args, base = trainer.args, getattr(trainer.model.config, "_name_or_path", None) or None
    is_adapter, hub_id = not (folder / "config.json").is_file(), trainer.hub_model_id
    card = new_card(
        model_name=model_name or (hub_id or Path(args.output_dir).resolve().name).split("/")[-1],
        model_id=hub_id or folder.as_posix(),
        is_adapter=is_adapter,
        summary=_summary(trainer.model.config, base, is_adapter),
        license=license,
        languages=language,
        base_model=base or (UNNAMED_BASE if is_adapter else None),
        datasets=_joined([name for name in args.train_data or [] if _is_on_hub(name)], dataset),
        tags=_joined(getattr(trainer, "_tag_names", None), tags),
        **_usage(trainer, is_adapter),
        training_data=_describe_data(trainer),
        training_arguments=_options_shown(args) | _adapter_options_shown(trainer.model),
        training_steps=trainer.state.global_step,
        compute=_describe_machine(args),
        loss_curve="loss_curve.png" if (folder / "loss_curve.png").is_file() else None,
        evaluation=_last_results(trainer.state.log_history),
        evaluation_method=f"The last values that the trainer logged: losses are {trainer.loss_description}; "
        "`masked_accuracy` is the share of masked tokens guessed right. `eval_` marks held-out data.",
    )
    path = folder / CARD_NAME
    path.write_text(str(card), encoding="utf-8")
    return path


def _public_name(source: str) -> str:
    """A Hub id, or the last part of a place on this machine."""
    return source if _is_on_hub(source) else Path(source).name


def _summary(config: Any, base: Optional[str], is_adapter: bool) -> str:
    return (
        f"A LLaDA {'LoRA adapter' if is_adapter else 'model'} (masked diffusion language model, arXiv:2502.09992), "
        f"trained from {f'`{_public_name(base)}`' if base else 'scratch'}: {config.n_layers} layers, width "
        f"{config.d_model}, {config.n_heads} heads, a vocabulary of {config.vocab_size:,}."
    )


def _usage(trainer: Any, is_adapter: bool) -> dict[str, Any]:
    """What the usage example shows beside a completion."""
    tokenizer = trainer.processing_class
    can_infill = getattr(tokenizer, "mask_token", None) and not is_adapter
    can_chat = trainer.learns_responses and getattr(tokenizer, "chat_template", None)
    return {
        "infill_prompt": INFILL_PROMPT if can_infill else None,
        "chat_question": "What is the capital of France?" if can_chat else None,
    }


def _describe_data(trainer: Any) -> str:
    args, evaluated = trainer.args, trainer.eval_dataset
    parts = [("Training", trainer.train_dataset, args.train_data)]
    if isinstance(evaluated, dict):
        parts += [(f"Evaluation ({name})", rows, None) for name, rows in evaluated.items()]
    else:
        parts.append(("Evaluation", evaluated, args.validation_data))
    return "\n".join(_describe_part(*part) for part in parts if part[1] is not None)


def _describe_part(title: str, rows: Any, sources: Optional[list[str]]) -> str:
    size = f"{len(rows):,} rows" if hasattr(rows, "__len__") else "a stream"
    facts = [*(f"`{_public_name(name)}`" for name in sources or []), size]
    # A `datasets.Dataset`, tokenised
    columns = [name for name in TOKEN_COLUMNS if name in rows.column_names] if hasattr(rows, "with_format") else []
    if columns:
        facts.append(f"{sum(_count_tokens(rows, column) for column in columns):,} tokens")
    return f"- {title}: {', '.join(facts)}."


def _count_tokens(rows: Any, column: str) -> int:
    """Tokens of all rows under `column`; a packed row is a list of documents."""
    from pyarrow.compute import list_flatten

    tables = rows.with_format("arrow").iter(COUNT_BATCH)
    return sum(len(list_flatten(table[column], recursive=True)) for table in tables)


def _options_shown(args: Any) -> dict[str, str]:
    values = {name: getattr(args, name, None) for name in OPTIONS_SHOWN}
    # One of the two decides how long the training is.
    del values["num_train_epochs" if args.max_steps > 0 else "max_steps"]
    return {name: str(getattr(value, "value", value)) for name, value in values.items() if value is not None}


def _adapter_options_shown(model: Any) -> dict[str, str]:
    """Options of the adapter that is trained; empty without one."""
    if not hasattr(model, "peft_config"):
        return {}
    config = model.peft_config[model.active_adapter]
    shown = {name: getattr(config, name) for name in ADAPTER_OPTIONS_SHOWN if getattr(config, name, None)}
    names = shown.get("target_modules")
    if isinstance(names, (set, list)):
        shown["target_modules"] = ", ".join(sorted(names))
    return {f"LoRA {name}": str(value) for name, value in shown.items()}


def _last_results(history: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """The last value of every loss and accuracy in the log."""
    found = {name: value for row in history for name, value in row.items() if _LOGGED.fullmatch(name)}
    return [(f"`{name}`", f"{value:.4f}") for name, value in found.items()]


def _describe_machine(args: Any) -> str:
    versions = [f"{name} {sys.modules[name].__version__}" for name in LIBRARIES if name in sys.modules]
    processes = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
    return f"{processes} on {args.device.type}, {', '.join(versions)}; {datetime.date.today()}."
