"""The model card that the trainers write beside the weights: data, options, last results, and usage that runs."""

import datetime
import re
import sys
from pathlib import Path
from typing import Any, Optional, Union

import jinja2
import pyarrow.compute
from datasets import Dataset
from huggingface_hub import ModelCard

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md")
# Options that decide what was learnt, in the order of the card; those that a run does not have are left out.
OPTIONS_SHOWN = (
    "sequence_length", "max_length", "random_length_probability", "attention_annealing_steps", "turns", "eos_fill",
    "packing", "loss_normalization", "noise_eps", "exact_count", "low_discrepancy", "num_noise_samples",
    "complementary_masks", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size",
    "num_train_epochs", "max_steps", "optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "decay_steps",
    "decay_type", "min_lr_ratio", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16", "fp16", "seed",
)  # fmt: skip
ADAPTER_OPTIONS_SHOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules")
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")
# What stands in the usage example of an adapter whose model has no name.
UNNAMED_BASE = "path/to/the/base/model"
# Rows whose tokens are counted at once.
COUNT_BATCH = 10_000

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_RESULTS = re.compile(r"(eval_(\w+_)?)?(loss|masked_accuracy)")


def write_card(
    trainer: Any,
    folder: Union[str, Path],
    model_name: Optional[str] = None,
    license: Optional[str] = None,
    language: Union[str, list[str], None] = None,
    dataset: Union[str, list[str], None] = None,
    tags: Union[str, list[str], None] = None,
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
    variables = _card_variables(trainer, folder)
    variables["model_name"] = model_name or variables["model_name"]
    variables["datasets"] = _joined(variables["datasets"], dataset)
    variables["tags"] = _joined(getattr(trainer, "_tag_names", []), tags)
    variables |= {"license": license, "languages": _joined([], language)}
    path = folder / CARD_NAME
    path.write_text(_render(variables), encoding="utf-8")
    return path


def _render(variables: dict[str, Any]) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    card: Any = ModelCard(environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(variables))
    # The Hub takes no folders here; the usage example still names it.
    if not _is_hub_id(card.data.base_model):
        card.data.base_model = None
    return str(card)


def _card_variables(trainer: Any, folder: Path) -> dict[str, Any]:
    """Gather what the template asks for; see its head for the meaning of each."""
    args, config, tokenizer = trainer.args, trainer.model.config, trainer.processing_class
    is_adapter = not (folder / "config.json").is_file()
    hub_id = trainer.hub_model_id
    has_chat = trainer.learns_responses and getattr(tokenizer, "chat_template", None)
    has_mask = getattr(tokenizer, "mask_token", None)
    results = _last_results(trainer.state.log_history)
    return dict.fromkeys(("training_commands", "training_tokens", "training_log", "model_index", "samples")) | {
        "model_name": (hub_id or Path(args.output_dir).resolve().name).split("/")[-1],
        "model_id": hub_id or folder.as_posix(),
        "is_adapter": is_adapter,
        "summary": f"A LLaDA {'LoRA adapter' if is_adapter else 'model'} (masked diffusion language model, "
        f"arXiv:2502.09992){_origin(trainer.model)}: {config.n_layers} layers, width {config.d_model}, "
        f"{config.n_heads} heads, a vocabulary of {config.vocab_size:,}.",
        "base_model": _base_of(trainer.model) or (UNNAMED_BASE if is_adapter else None),
        "datasets": [name for name in args.train_data or [] if _is_hub_id(name)],
        "prompt": "The capital of France is",
        "infill_prompt": "The capital ofMASK is Rome." if has_mask and not is_adapter else None,
        "chat_question": "What is the capital of France?" if has_chat else None,
        "training_data": _describe_data(trainer),
        "training_arguments": _options_shown(args) | _adapter_options_shown(trainer.model),
        "training_steps": trainer.state.global_step,
        "compute": _describe_machine(args),
        "loss_curve": "loss_curve.png" if (folder / "loss_curve.png").is_file() else None,
        "evaluation": list(results.items()),
        "evaluation_method": "The last values that the trainer logged: losses are those of the diffusion objective, in "
        "nats per token; `masked_accuracy` is the share of masked tokens guessed right. `eval_` marks held-out data.",
        "samples_method": None,
        "limits": None,
        "notices": None,
    }


def _joined(known: list[str], more: Union[str, list[str], None]) -> list[str]:
    """Both lists in one, each name once."""
    return list(dict.fromkeys([*known, *([more] if isinstance(more, str) else more or [])]))


def _is_hub_id(name: Optional[str]) -> bool:
    return name is not None and bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def _public_name(source: str) -> str:
    """A Hub id, or the last part of a place on this machine."""
    return source if _is_hub_id(source) else Path(source).name


def _base_of(model: Any) -> Optional[str]:
    """Hub id or folder that the model, or the one under the adapter, was loaded from; None for a fresh one."""
    return getattr(model.config, "_name_or_path", None) or None


def _origin(model: Any) -> str:
    base = _base_of(model)
    return f", trained from `{_public_name(base)}`" if base else ", trained from scratch"


def _describe_data(trainer: Any) -> str:
    args, evaluated = trainer.args, trainer.eval_dataset
    parts = [("Training", trainer.train_dataset, args.train_data)]
    if isinstance(evaluated, dict):
        parts += [(f"Evaluation ({name})", rows, None) for name, rows in evaluated.items()]
    else:
        parts.append(("Evaluation", evaluated, args.validation_data))
    return "\n".join(_describe_part(*part) for part in parts if part[1] is not None)


def _describe_part(title: str, rows: Any, sources: Optional[list[str]]) -> str:
    names = [f"`{_public_name(name)}`" for name in sources or []]
    size = f"{len(rows):,} rows"
    if isinstance(rows, Dataset):
        size += f", {_count_tokens(rows):,} tokens"
    return f"- {title}: {', '.join([*names, size])}."


def _count_tokens(rows: Dataset) -> int:
    """Tokens of all rows; a packed row is a list of documents."""
    total = 0
    for table in rows.with_format("arrow").iter(COUNT_BATCH):
        ids = table["input_ids"]
        while not pyarrow.types.is_integer(ids.type):
            lengths, ids = pyarrow.compute.list_value_length(ids), pyarrow.compute.list_flatten(ids)
        total += pyarrow.compute.sum(lengths).as_py() or 0
    return total


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
    # A bar would end the cell of the table.
    return {f"LoRA {name}": str(value).replace("|", r"\|") for name, value in shown.items()}


def _last_results(history: list[dict[str, Any]]) -> dict[str, str]:
    """The last value of every loss and accuracy in the log."""
    found = {name: value for row in history for name, value in row.items() if _RESULTS.fullmatch(name)}
    return {f"`{name}`": f"{value:.4f}" for name, value in found.items()}


def _describe_machine(args: Any) -> str:
    versions = [f"{name} {sys.modules[name].__version__}" for name in LIBRARIES if name in sys.modules]
    processes = "1 process" if args.world_size == 1 else f"{args.world_size} processes"
    return f"{processes} on {args.device.type}, {', '.join(versions)}; {datetime.date.today()}."
