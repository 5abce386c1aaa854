"""The arrows between the packages and inside the Hub code, read from the source: nothing is imported here."""

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Folder -> installed name. A folder that does not exist yet is skipped.
PACKAGES = {
    "llada": "llada",
    "modeling_llada": "modeling_llada",
    "core": "llada_core",
    "training": "llada_training",
    "conversion": "llada_conversion",
    "evaluation": "llada_evaluation",
    "serving": "llada_serving",
    "cli": "llada_cli",
    "checkpoints": "llada_checkpoints",
}
BARE_NAMES = {folder for folder, name in PACKAGES.items() if folder != name}

# Installed name -> the packages it may import.
ARROWS = {
    "llada": set(PACKAGES.values()) - {"llada_cli"},
    "modeling_llada": set(),
    "llada_checkpoints": set(),
    "llada_core": {"modeling_llada", "llada_checkpoints"},
    "llada_training": {"modeling_llada", "llada_core"},
    "llada_conversion": {"modeling_llada", "llada_core"},
    "llada_evaluation": {"modeling_llada", "llada_core", "llada_checkpoints"},
    "llada_serving": {"modeling_llada", "llada_core", "llada_checkpoints"},
    "llada_cli": set(PACKAGES.values()),
}

# The Hub code from the leaves up: a file imports only files that stand before it, and never one forbidden below.
HUB_ORDER = [
    "configuration_llada",
    "unmasking_llada",
    "cache_llada",
    "prepacking_llada",
    "generation_config_llada",
    "canvas_llada",
    "speculation_llada",
    "constraints_llada",
    "generation_llada",
    "continuous_batching_llada",
    "batching_results_llada",
    "batching_manager_llada",
    "modeling_llada",
    "configuration_llada_relatives",
    "llama_layout_llada",
    "modeling_illada",
    "modeling_llada_moe",
]
HUB_LEAVES = {
    "configuration_llada",
    "unmasking_llada",
    "cache_llada",
    "prepacking_llada",
}
HUB_THIRD_PARTY = {"torch", "transformers"}
HEAVY = {"torch", "transformers", "modeling_llada"} | {
    f"llada_{name}" for name in ("training", "conversion", "evaluation", "serving")
}


class Import(NamedTuple):
    """One imported module: its dotted name, the dots in front of it, the names taken from it, where it stands."""

    module: str
    level: int
    names: tuple[str, ...]
    at_top: bool
    where: str

    @property
    def root(self) -> str:
        return self.module.split(".")[0]


def source_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> list[Import]:
    """List every import of a file, those inside functions and those by `import_module("…")` too."""
    tree, found = parse(path), []
    inside = {
        id(node)
        for part in ast.walk(tree)
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_type_checking(part)
        for node in ast.walk(part)
    }
    for node in ast.walk(tree):
        where, at_top = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", id(node) not in inside
        if isinstance(node, ast.Import):
            found += [Import(alias.name, 0, (), at_top, where) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            found.append(Import(node.module or "", node.level, names, at_top, where))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append(Import(node.args[0].value, 0, (), at_top, where))
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def hub_files() -> list[Path]:
    return source_files("modeling_llada")


def docstrings(path: Path) -> list[tuple[str, str]]:
    """Every string constant that spans lines, with its place: docstrings and texts alike."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node.value)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value
    ]


@pytest.mark.parametrize("folder", [folder for folder in PACKAGES if (ROOT / folder).is_dir()])
def test_a_package_imports_only_what_its_arrow_allows(folder):
    name = PACKAGES[folder]
    allowed = ARROWS[name] | {name}
    wrong = [
        f"{found.where}: {name} imports {found.module}"
        for path in source_files(folder)
        for found in imports_of(path)
        if found.level == 0 and found.root in set(PACKAGES.values()) - allowed
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("folder", [folder for folder in PACKAGES if (ROOT / folder).is_dir()])
def test_a_package_imports_itself_relatively_and_never_above_itself(folder):
    wrong = []
    for path in source_files(folder):
        depth = len(path.relative_to(ROOT / folder).parts)  # 1 in the package's own folder
        for found in imports_of(path):
            if found.level == 0 and found.root == PACKAGES[folder]:
                wrong.append(f"{found.where}: {found.module} is this package; import it relatively")
            if found.level > depth:
                wrong.append(f"{found.where}: reaches above its package")
    assert not wrong, wrong


def test_nobody_imports_a_folder_by_its_bare_name():
    folders = [*PACKAGES, "tests", "examples", "benchmarks", "docs"]
    wrong = [
        f"{found.where}: imports {found.module}; the installed name is {PACKAGES[found.root]}"
        for path in source_files(*folders)
        for found in imports_of(path)
        if found.level == 0 and found.root in BARE_NAMES
    ]
    assert not wrong, wrong


def test_nobody_outside_asks_for_an_instance_of_our_classes():
    """A model loaded from the Hub is another class of the same name: ask `config.model_type`."""
    wrong = []
    for path in source_files(*(folder for folder in PACKAGES if folder != "modeling_llada"), "examples", "benchmarks"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                kinds = ast.unparse(node.args[-1])
                if re.search(r"\bLLaDA(Config|Model|PreTrainedModel|Generation)\w*", kinds):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, wrong


def test_hub_code_imports_only_torch_transformers_and_the_standard_library():
    allowed = HUB_THIRD_PARTY | set(sys.stdlib_module_names)
    wrong = [
        f"{found.where}: {found.module}"
        for path in hub_files()
        for found in imports_of(path)
        if found.level == 0 and found.root not in allowed
    ]
    assert not wrong, wrong


def test_hub_code_has_no_sub_folder():
    assert [path for path in hub_files() if path.parent != ROOT / "modeling_llada"] == []


def test_hub_code_imports_its_files_only_as_from_file_import_name():
    modules = {path.stem for path in hub_files()}
    wrong = [
        f"{found.where}: from {'.' * found.level}{found.module} import {', '.join(found.names)}"
        for path in hub_files()
        for found in imports_of(path)
        if found.level and (found.level > 1 or found.module not in modules or "*" in found.names)
    ]
    assert not wrong, wrong


def test_no_text_in_hub_code_looks_like_a_relative_import():
    """transformers finds relative imports by a regular expression over the raw text, so a docstring's count too."""
    wrong = [
        f"{where}: {line.strip()}"
        for path in hub_files()
        for where, text in docstrings(path)
        for line in text.splitlines()
        if re.match(r"\s*(from|import)\s+\.", line)
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("path", [path for path in hub_files() if path.stem != "__init__"], ids=lambda path: path.stem)
def test_hub_files_import_only_files_below_them(path):
    assert path.stem in HUB_ORDER, f"give {path.name} its place in HUB_ORDER"
    below = HUB_ORDER[: HUB_ORDER.index(path.stem)]
    wrong = [
        f"{found.where}: {path.stem} imports {found.module}"
        for found in imports_of(path)
        if found.level and (path.stem in HUB_LEAVES or found.module not in below)
    ]
    assert not wrong, wrong


def test_generation_never_names_the_model():
    """Nor does anything that generation uses: the loop calls `self(...)`."""
    wrong = [
        f"{found.where}: {found.module}"
        for path in hub_files()
        if path.stem in HUB_ORDER[: HUB_ORDER.index("modeling_llada")]
        for found in imports_of(path)
        if found.module.endswith("modeling_llada")
    ]
    assert not wrong, wrong


def test_unmasking_and_cache_take_no_model_no_tokenizer_and_no_configuration():
    """Strategies see tensors, so of transformers they need nothing."""
    wrong = [
        f"{found.where}: {found.module}"
        for path in hub_files()
        if path.stem in ("unmasking_llada", "cache_llada")
        for found in imports_of(path)
        if found.root == "transformers"
    ]
    assert not wrong, wrong


def test_the_command_loads_nothing_heavy_before_a_sub_command_runs():
    """Follow the imports at the top of files from cli/main.py on: `llada --help` reads only these."""
    waiting, seen, wrong = ["main", "__init__"], set(), []
    while waiting:
        stem = waiting.pop()
        path = ROOT / "cli" / f"{stem}.py"
        if stem in seen or not path.exists():
            continue
        seen.add(stem)
        for found in imports_of(path):
            if not found.at_top:
                continue
            if found.level:
                waiting += [found.module] if found.module else list(found.names)
            elif found.root in HEAVY:
                wrong.append(f"{found.where}: {found.module}")
    assert "main" in seen
    assert not wrong, wrong
