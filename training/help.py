"""The help of `llada train`: options in sections, read from the source of their classes, so that it waits for no torch.

The classes are dataclasses: ours, TRL's and those of transformers. Importing them takes ten seconds; parsing their
files takes a fraction of one, and says the same of whatever versions are installed.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

ADAPTER = ("llada_training.adapters", "AdapterOptions")
# The classes whose fields are a command's options, in the order in which the command reads them.
CLASSES: dict[str, list[tuple[str, str]]] = {
    "pretrain": [("llada_training.pretraining", "LLaDAPretrainingConfig")],
    "sft": [("llada_training.sft", "LLaDASFTConfig"), ADAPTER],
    "dpo": [("llada_training.dpo", "LLaDADPOConfig"), ADAPTER],
    "kto": [("llada_training.kto", "LLaDAKTOConfig"), ADAPTER],
    "grpo": [("llada_training.grpo", "LLaDAGRPOConfig"), ADAPTER, ("llada_training.grpo_command", "PromptOptions")],
}
# What `--help` shows: the options that most runs set. A command shows those that it has.
SECTIONS: dict[str, list[str]] = {
    "Model and data": [
        "model", "model_config", "tokenizer", "train_data", "validation_data", "streaming", "text_column", "rewards",
        "prompt_column", "as_chat", "sequence_length", "max_length", "packing",
    ],
    "Run": [
        "output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
        "resume_from_checkpoint", "save_steps", "save_total_limit", "save_dtype", "seed",
    ],
    "Learning": [
        "learning_rate", "warmup_steps", "decay_steps", "weight_decay", "bf16", "gradient_checkpointing",
        "attention_annealing_steps", "loss_normalization", "turns", "eos_fill", "beta", "objective",
        "num_generations", "max_completion_length",
    ],
    "Noise": ["exact_count", "low_discrepancy", "num_noise_samples", "complementary_masks"],
    "LoRA": ["use_peft", "lora_r", "lora_alpha", "lora_target_modules", "dtype", "load_in_4bit", "merge_adapter"],
    "Log": ["logging_steps", "eval_strategy", "eval_steps", "report_to", "run_name", "disable_tqdm"],
}  # fmt: skip
# Headings of the others, by the package that defines them.
PACKAGES = {"llada_training": "More of LLaDA", "trl": "More of TRL", "transformers": "More of transformers"}
METAVARS = {"bool": "", "int": "INT", "float": "NUMBER", "list[str]": "TEXT …"}
UNKNOWN = object()


@dataclass(frozen=True)
class Option:
    """A field of a class of options.

    Attributes:
        name: the field's.
        kind: its type as it is written, without None.
        default: its value, or `UNKNOWN` where the source computes it.
        help: what the option does.
        package: the package that defines it.
    """

    name: str
    kind: str
    default: Any
    help: str
    package: str


def print_help(command: str, summary: str, everything: bool = False) -> None:
    """Print the options of `llada train COMMAND` in sections.

    Args:
        command: one of `CLASSES`.
        summary: what the command does.
        everything: all options, not only those that most runs set.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(f"\n Usage: llada train {command} \\[--config RECIPE.yaml] \\[--option VALUE ...]\n", style="bold")
    console.print(f" {summary}\n")
    console.print(" Options may also stand in a recipe, a YAML file; the command line wins.")
    console.print(" Hyphens and underscores are the same. --traceback shows the whole of an error.")
    if not everything:
        console.print(f" All options: llada train {command} --help-all")
    console.print()
    for title, options in sections_of(command, everything):
        table = Table(box=None, show_header=False, pad_edge=False, expand=True)
        table.add_column(no_wrap=True, style="bold cyan")
        table.add_column(no_wrap=True, style="yellow")
        table.add_column(ratio=1)
        for option in options:
            # Others' first sentence says what an option does; ours are short.
            is_whole = everything or option.package == "llada_training"
            help_text = option.help if is_whole else option.help.partition(". ")[0].rstrip(".") + "."
            text = Text(help_text).append(_shown_default(option), style="dim")
            table.add_row(f"--{option.name.replace('_', '-')}", _metavar(option), text)
        console.print(Panel(table, title=title, title_align="left", border_style="dim"))


def sections_of(command: str, everything: bool = False) -> Iterator[tuple[str, list[Option]]]:
    """The headings of a command's help with their options; with `everything`, what no section names comes last."""
    options = options_of_command(command)
    for title, names in SECTIONS.items():
        if shown := [options.pop(name) for name in names if name in options]:
            yield title, shown
    for package, title in PACKAGES.items():
        rest = [option for option in options.values() if option.package == package]
        if everything and rest:
            yield title, sorted(rest, key=lambda option: option.name)


def options_of_command(command: str) -> dict[str, Option]:
    """All options of a command by name, in the order of the classes."""
    return {name: option for home in CLASSES[command] for name, option in options_of(*home).items()}


def options_of(module: str, name: str) -> dict[str, Option]:
    """The fields of the dataclass `name` and of its bases, read from the source."""
    home, node = _find(module, name)
    if not isinstance(node, ast.ClassDef):
        return {}
    options: dict[str, Option] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            options |= options_of(home, base.id)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _is_field(item):
            options[item.target.id] = _read_field(home, item.target.id, item)
    return options


def _is_field(item: ast.AnnAssign) -> bool:
    is_call = isinstance(item.value, ast.Call) and ast.unparse(item.value.func) in ("field", "option")
    return is_call and not ast.unparse(item.annotation).startswith("ClassVar")


def _read_field(module: str, name: str, item: ast.AnnAssign) -> Option:
    """Read `name: type = option(default, help)`, or the same with `field` of dataclasses."""
    call: Any = item.value
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    given |= dict(zip(("default", "help"), call.args))
    default = _value(module, given["default"]) if "default" in given else UNKNOWN
    text: Any = _value(module, given["help"]) if "help" in given else UNKNOWN
    if "metadata" in given:
        texts = {_value(module, key): value for key, value in zip(given["metadata"].keys, given["metadata"].values)}
        text = _value(module, texts["help"]) if "help" in texts else UNKNOWN
    # argparse's own help doubles the percent sign.
    text = "" if text is UNKNOWN else " ".join(text.replace("%%", "%").split())
    kind = ast.unparse(item.annotation).removesuffix(" | None")
    if kind.startswith("Optional["):
        kind = kind.removeprefix("Optional[").removesuffix("]")
    return Option(name, kind, default, text, module.split(".")[0])


class _Names(dict):
    """The constants of a module, evaluated when they are asked for."""

    def __init__(self, module: str):
        self.module = module

    def __missing__(self, name: str) -> Any:
        home, node = _find(self.module, name)
        if isinstance(node, ast.ClassDef):
            return _Members(home, node)
        if isinstance(node, ast.FunctionDef):
            return node.name
        if node is None:
            raise KeyError(name)
        return _evaluate(home, node)


class _Members:
    """The members of an Enum, by their values; each is its own `value`."""

    def __init__(self, module: str, node: ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                setattr(self, item.targets[0].id, _Member(_evaluate(module, item.value)))


class _Member(str):
    value = property(str)


def _value(module: str, node: ast.expr) -> Any:
    """What an expression of a module is, or `UNKNOWN` if it is more than constants."""
    try:
        return _evaluate(module, node)
    except (NameError, KeyError, AttributeError, TypeError, ValueError):
        return UNKNOWN


def _evaluate(module: str, node: ast.expr) -> Any:
    return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": {"str": str}}, _Names(module))


@functools.cache
def _find(module: str, name: str) -> tuple[str, Any]:
    """Where `name` is defined, seen from `module`: that module, and its class or the value of its constant."""
    path = _path_of(module)
    if path is None:
        return module, None
    tree = _tree(path)
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module, node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return module, getattr(node, "value", None)
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if name == (alias.asname or alias.name):
                    return _find(_source_of(module, path, statement), alias.name)
    return module, None


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _source_of(module: str, path: Path, node: ast.ImportFrom) -> str:
    """The module that an import reads, by its full name."""
    if not node.level:
        return str(node.module)
    parts = module.split(".")
    if path.name == "__init__.py":
        parts.append("")
    return ".".join([*parts[: len(parts) - node.level], *([node.module] if node.module else [])])


def _path_of(module: str) -> Optional[Path]:
    """The file of a module; nothing is imported."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(spec.submodule_search_locations[0], *rest)
    paths = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((path for path in paths if path.is_file()), None)


def _metavar(option: Option) -> str:
    return METAVARS.get(option.kind, "TEXT")


def _shown_default(option: Option) -> str:
    if option.default is UNKNOWN or option.default in (None, "", False):
        return ""
    return f" [default: {'true' if option.default is True else option.default}]"
