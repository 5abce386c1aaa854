"""What a wheel carries, and what the installed command costs before it does anything."""

import re
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "modeling_llada": "modeling_llada",
    "core": "llada_core",
    "training": "llada_training",
    "conversion": "llada_conversion",
    "evaluation": "llada_evaluation",
    "cli": "llada_cli",
    "checkpoints": "llada_checkpoints",
}
PRESENT = {folder: name for folder, name in FOLDERS.items() if (ROOT / folder / "__init__.py").exists()}
BUNDLED = ROOT / "checkpoints" / "llada-tiny"


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
    assert {"llada_conversion/model_card.md", "llada_training/model_card.md"} <= wheel


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


def test_help_answers_in_under_one_and_a_half_seconds():
    command = [str(Path(sys.executable).with_name("llada")), "--help"]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert "generate" in run(*command).stdout
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 1.5, seconds


def test_importing_the_command_imports_neither_torch_nor_transformers():
    code = "import sys, llada_cli.main; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"


def test_the_version_stands_in_one_place():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (declared,) = re.findall(r'^version = "(.+)"$', text, flags=re.MULTILINE)
    assert version("llada-hf") == declared
    assert run(str(Path(sys.executable).with_name("llada")), "--version").stdout.split()[-1] == declared
    copies = [
        str(path.relative_to(ROOT))
        for folder in PRESENT
        for path in (ROOT / folder).rglob("*.py")
        if f'"{declared}"' in path.read_text(encoding="utf-8")
    ]
    assert copies == []


def test_the_bundled_model_carries_the_code_of_the_package():
    ours = {path.name: path.read_text() for path in (ROOT / "modeling_llada").glob("*.py") if path.stem != "__init__"}
    theirs = {path.name: path.read_text() for path in BUNDLED.glob("*.py")}
    stale = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    assert not stale, f"copy these from modeling_llada/ to {BUNDLED.relative_to(ROOT)}/: {', '.join(sorted(stale))}"
