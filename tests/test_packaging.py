"""What a wheel carries and declares, and what the installed command loads before it does anything."""

import ast
import functools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

import llada
import llada_cli.main
import modeling_llada
from tests.helpers import CODE_FILES, ROOT

FOLDERS = {
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
PRESENT = {folder: name for folder, name in FOLDERS.items() if (ROOT / folder / "__init__.py").exists()}
BUNDLED = ROOT / "checkpoints" / "llada-tiny"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Folder -> the extras whose packages it may import besides the dependencies.
EXTRAS = {
    "core": {"train", "eval", "demo"},  # several processes, adapters, GIF
    "training": {"train"},
    "conversion": {"onnx", "openvino", "gguf", "optimum"},
    "evaluation": {"eval"},
    "serving": {"serve", "demo"},
    "cli": {"eval", "demo"},
}
# Declared and imported by no file of ours, with the reason.
NEVER_IMPORTED = {
    "bitsandbytes": "transformers imports it",
    "deepspeed": "transformers' Trainer imports it",
    "ipykernel": "runs the notebook",
    "mkdocs-material": "a theme",
    "mkdocstrings": "a plugin",
    "mypy": "a command",
    "nbclient": "the notebook's test skips without it",
    "nbformat": "the notebook's test skips without it",
    "openai": "transformers' server imports it",
    "onnxscript": "torch.onnx imports it",
    "optimum-intel": "registers itself with optimum",
    "optimum-onnx": "registers itself with optimum",
    "parameterized": "transformers' own tests import it",
    "pyte": "the tests of the chat skip without it",
    "pytest-timeout": "a plugin",
    "pytest-xdist": "a plugin",
    "requests": "optimum imports it",
    "ruff": "a command",
    "setuptools": "builds the wheel",
    "tensorboard": "torch and transformers' Trainer import it",
    "trackio": "transformers' Trainer imports it",
}

# Prints which heavy modules `--help` of every command loads; that of `llada train NAME` is a configuration's, and long.
HELPS = """
import sys
import typer
from click.testing import CliRunner
from llada_cli import main

def shown(command, words):
    if "train" not in words[:-1]:
        sys.argv = ["llada", *words, "--help"]
        assert CliRunner().invoke(root, sys.argv[1:]).exit_code == 0, words
        for name, below in getattr(command, "commands", {}).items():
            shown(below, [*words, name])

def refuse():
    raise AssertionError("--help probes the CPU")

main.avoid_broken_amx = refuse
root = typer.main.get_command(main.app)
shown(root, [])
heavy = {"torch", "transformers", "datasets", "lm_eval", "modeling_llada"}
heavy |= {"llada_training", "llada_conversion", "llada_evaluation", "llada_serving"}
print(sorted(heavy & set(sys.modules)))
"""


def run(*command: str, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The names of the files in a wheel, built without the network from a copy: a build writes into its folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in PRESENT:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "optimum", source / "optimum")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "tests").mkdir()
    shutil.copy(__file__, source / "tests")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--wheel-dir", str(out))
    run(sys.executable, "-m", "pip", "wheel", *options, str(source))
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_import_names_and_nothing_else(wheel):
    expected = {*PRESENT.values(), "optimum"}
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == expected


def test_the_wheel_puts_one_file_into_the_namespace_of_optimum(wheel):
    """An `__init__.py` there would hide Optimum's own packages."""
    assert {name for name in wheel if name.startswith("optimum/")} == {"optimum/commands/register/register_llada.py"}


def test_the_wheel_holds_every_source_file(wheel):
    expected = {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, name in PRESENT.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    found = {name for name in wheel if name.endswith(".py") and not name.startswith("optimum/")}
    assert found == expected


def test_the_wheel_holds_the_chat_template(wheel):
    templates = {f"llada_core/{path.name}" for path in (ROOT / "core").glob("*.jinja")}
    assert templates
    assert templates <= wheel


def test_the_wheel_holds_the_card_template(wheel):
    assert "llada_core/model_card.md" in wheel


def test_the_wheel_holds_the_bundled_model(wheel):
    files = {f"llada_checkpoints/llada-tiny/{path.name}" for path in BUNDLED.iterdir()}
    assert {Path(name).name for name in files} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert {name for name in wheel if name.startswith("llada_checkpoints/llada-tiny/")} == files


def test_the_wheel_holds_the_licence(wheel):
    assert any(re.fullmatch(r"llada_hf-.*\.dist-info/licenses/LICENSE", name) for name in wheel)


def test_the_bundled_model_is_found_and_small():
    from llada_checkpoints import BUNDLED_MODEL

    assert BUNDLED_MODEL.is_dir()
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.rglob("*")) <= 17 * 2**20


def test_the_help_of_every_command_loads_nothing_heavy():
    assert run(sys.executable, "-c", HELPS).stdout.strip() == "[]"


def test_every_command_switches_broken_amx_off_before_it_runs(monkeypatch):
    calls = []
    monkeypatch.setattr(llada_cli.main, "avoid_broken_amx", lambda: calls.append(True))
    assert CliRunner().invoke(llada_cli.main.app, ["evaluate", "compare", "nowhere", "nowhere"]).exit_code == 2
    assert calls == [True]


@functools.cache
def providers() -> dict[str, list[str]]:
    """The distributions that bring an import name; ours has a file in Optimum's namespace, and does not bring that."""
    return packages_distributions() | {"optimum": ["optimum"]}


def imported_packages(*folders: str) -> dict[str, str]:
    """The distributions that the folders' files import, inside functions too, each with a file that does."""
    found = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
            found |= {canonicalize_name(name): path.name for root in roots for name in providers().get(root, [root])}
    return found


def declared_packages(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@pytest.mark.parametrize("folder", PRESENT)
def test_every_imported_package_is_declared(folder):
    project = PYPROJECT["project"]
    allowed = declared_packages(project["dependencies"]) | {"llada-hf", *PRESENT, *PRESENT.values()}
    for extra in EXTRAS.get(folder, ()):
        allowed |= declared_packages(project["optional-dependencies"][extra])
    assert {name: file for name, file in imported_packages(folder).items() if name not in allowed} == {}


def test_every_declared_package_is_imported_somewhere():
    project = PYPROJECT["project"]
    extras = (requirement for extra in project["optional-dependencies"].values() for requirement in extra)
    declared = declared_packages([*project["dependencies"], *extras])
    used = imported_packages(*PRESENT, "experiments", "examples", "benchmarks", "docs", "tests")
    assert declared - set(used) == set(NEVER_IMPORTED)


@pytest.mark.parametrize(
    "file, left_out",
    [
        ("newest", {"optimum"}),
        ("optimum", {"eval", "onnx", "deepspeed", "quantization", "serve", "demo", "docs", "track"}),
    ],
)
def test_every_declared_package_has_a_tested_version(file, left_out):
    lines = (ROOT / "constraints" / f"{file}.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    project = PYPROJECT["project"]
    for extra, requirements in project["optional-dependencies"].items():
        if extra not in left_out:
            assert declared_packages(requirements) - pinned == set(), extra
    assert declared_packages(project["dependencies"]) - pinned == set()


def test_the_readme_and_the_classifiers_name_the_required_python():
    required = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    prefix = "Programming Language :: Python :: "
    classifiers = [name.removeprefix(prefix) for name in PYPROJECT["project"]["classifiers"] if name.startswith(prefix)]
    assert min((name for name in classifiers if "." in name), key=lambda name: int(name.split(".")[1])) == required
    assert f"Python {required}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_version_stands_in_one_place():
    declared = PYPROJECT["project"]["version"]
    assert version("llada-hf") == declared
    assert llada.__version__ == modeling_llada.__version__ == declared
    assert run(str(Path(sys.executable).with_name("llada")), "--version").stdout.split()[-1] == declared
    copies = [
        str(path.relative_to(ROOT))
        for folder in PRESENT
        for path in (ROOT / folder).rglob("*.py")
        if f'"{declared}"' in path.read_text(encoding="utf-8")
    ]
    assert copies == []
    assert f"\nversion: {declared}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {declared}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_bundled_model_carries_the_code_of_the_package():
    ours = {name: (ROOT / "modeling_llada" / name).read_text() for name in CODE_FILES}
    theirs = {path.name: path.read_text() for path in BUNDLED.glob("*.py")}
    stale = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    assert not stale, f"copy these from modeling_llada/ to {BUNDLED.relative_to(ROOT)}/: {', '.join(sorted(stale))}"
