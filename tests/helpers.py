"""What several test files share: places, scripts run in this process, processes that know nothing of this package."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import transformers

from llada_core.host import VARIABLE

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests" / "reference"

# The Hub code: the files beside every saved model.
CODE_FILES = {
    "batching_manager_llada.py",
    "batching_results_llada.py",
    "cache_llada.py",
    "canvas_llada.py",
    "constraints_llada.py",
    "configuration_llada.py",
    "continuous_batching_llada.py",
    "generation_config_llada.py",
    "generation_llada.py",
    "modeling_llada.py",
    "prepacking_llada.py",
    "speculation_llada.py",
    "unmasking_llada.py",
}


def other_python() -> Path:
    """The interpreter of the environment with the other transformers; the test is skipped where there is none."""
    name = ".venv" if transformers.__version__.startswith("4.") else ".venv-optimum"
    python = ROOT / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not there; `make setup setup-optimum` makes both environments")
    return python


def run_script(script: Path, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script as `python SCRIPT ARGUMENTS` does, but in this process, which has torch loaded already.

    The working folder, `sys.path`, environment variables, number of threads and random state are those of before
    afterwards, and the script's neighbours are forgotten. An exception of the script is not caught.

    Args:
        script: the file.
        arguments: what follows it on the command line.
        folder: where to run; the present folder unless given.
    """
    shown, errors, code = io.StringIO(), io.StringIO(), 0
    threads, neighbours = torch.get_num_threads(), {path.stem for path in script.parent.glob("*.py")}
    with (
        contextlib.chdir(folder or Path.cwd()),
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
        mock.patch.dict(os.environ),
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(errors),
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            errors.write(end.code if isinstance(end.code, str) else "")
        finally:
            torch.set_num_threads(threads)
            for name in neighbours & set(sys.modules):
                del sys.modules[name]
    return subprocess.CompletedProcess([str(script), *arguments], code, shown.getvalue(), errors.getvalue())


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
