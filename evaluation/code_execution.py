"""Runs a program that a model wrote, in a process of its own with limits; that is no sandbox."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Address space of the program, and the largest file it may write; bytes.
MEMORY_LIMIT = 1 << 30
FILE_LIMIT = 1 << 20
# What the process runs. The file is opened first, since the program may change the folder; that the token lies in it
# says that the end was reached: an exit code of 0 alone does not.
_RUNNER = f"""
import resource, sys
program, token = sys.stdin.read().split("\\0")
finished = open("finished", "w")
for limit, value in (("AS", {MEMORY_LIMIT}), ("FSIZE", {FILE_LIMIT}), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
exec(compile(program, "program", "exec"), {{"__name__": "program"}})
finished.write(token)
"""


def run_program(program: str, time_limit: float) -> bool:
    """Run a Python program and say whether it reached its end without an error.

    It runs in an empty folder that is removed, without environment variables, installed packages and input, and its
    whole process group is killed in the end. It can still read files and reach the network: run code of models only
    where that does no harm. For POSIX systems.

    Args:
        program: source text.
        time_limit: seconds before it is killed.

    Returns:
        False for an error, an exit before the end (whatever its code), and too much time or memory.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(f"{program}\0{token}", timeout=time_limit)
        _kill_group(process)
        finished = Path(folder) / "finished"
        return finished.is_file() and finished.read_text(errors="replace") == token


def _kill_group(process: "subprocess.Popen[str]") -> None:
    """Kill the program and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
