"""What several test files share: places, and processes that know nothing of this package."""

import os
import subprocess
from pathlib import Path

import pytest
import transformers

from llada_core.host import VARIABLE

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests" / "reference"

# The Hub code: the files beside every saved model.
CODE_FILES = {
    "cache_llada.py",
    "canvas_llada.py",
    "configuration_llada.py",
    "generation_config_llada.py",
    "generation_llada.py",
    "layers_llada.py",
    "modeling_llada.py",
    "packing_llada.py",
    "plan_llada.py",
    "prompt_llada.py",
    "unmasking_llada.py",
}


def other_python() -> Path:
    """The interpreter of the environment with the other transformers; the test is skipped where there is none."""
    name = ".venv" if transformers.__version__.startswith("4.") else ".venv-optimum"
    python = ROOT / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not there; `make setup setup-optimum` makes both environments")
    return python


def run_stranger(python: Path | str, work: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -I -c ARGUMENTS` in a folder that is also its home, offline and with no variable of ours.

    Args:
        python: the interpreter.
        work: folder for the process and its caches.
        arguments: code, and what `sys.argv[1:]` holds.
        variables: environment variables besides.
    """
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1"}
    environment |= {name: os.environ[name] for name in (VARIABLE,) if name in os.environ}
    command = [str(python), "-I", "-c", *arguments]
    return subprocess.run(
        command, cwd=work, env={**environment, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
