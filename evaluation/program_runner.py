"""Runs a program that a model wrote, and says whether it reached its end: a process with limits, not a sandbox.

`run_program` starts this file in an interpreter of its own. That process supervises: it forks the program, waits for
it, and kills whatever the program has started. Only the supervisor's exit code is the verdict.

What a program cannot do by accident or by a simple trick: end early and count as passed, outlive its time, fill memory
or disk, leave processes behind. What it can do, with the rights of the user: read files, write files of up to
`FILE_LIMIT` wherever the user may, reach the network, kill processes, and, by searching its own memory, claim that it
passed. Run code of models only where that does no harm, such as in a container.
"""

import collections
import contextlib
import functools
import gc
import operator
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

# Address space and largest file of the program, bytes; processes and threads besides those that the user runs already.
MEMORY_LIMIT = 1 << 30
FILE_LIMIT = 1 << 20
PROCESS_LIMIT = 64
# Seconds for the supervisor to start, and to kill what the program has started.
GRACE = 10.0
# Seconds between two looks at the program.
INTERVAL = 0.005
# Exit code of the supervisor for a program that reached its end. An interpreter that fails ends with 1.
PASSED, FAILED = 0, 2
# Of Linux's prctl: orphaned descendants become children of this process; die with the parent.
PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG = 36, 1


def run_program(program: str, time_limit: float) -> bool:
    """Run a Python program and say whether it reached its end without an error.

    It runs in an empty folder that is removed, without environment variables, installed packages and input, and is
    killed in the end with all that it started (on Linux also what left its process group). For POSIX systems; see the
    top of this file for what a program can do.

    Args:
        program: source text.
        time_limit: seconds before it is killed.

    Returns:
        False for an error, an exit before the end (whatever its code), and too much time or memory.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(time_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(program.encode("utf-8", "replace"), timeout=time_limit + GRACE)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == PASSED


def supervise(program: bytes, time_limit: float) -> Iterator[Any]:
    """Fork; the parent waits for the program and exits with the verdict, the child gets the program's steps.

    A random token in a pipe tells the parent that the last step was reached. In the child only the iterator that is
    returned holds it: no variable, no frame below the program, and no object that the garbage collector lists.
    """
    token, (reading, writing) = os.urandom(16), os.pipe()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _limit()
        os.close(reading)
        code = compile(program, "program", "exec")
        steps: Any = (
            functools.partial(exec, code, {"__name__": "program"}),
            functools.partial(os.write, writing, token),
            functools.partial(os._exit, 0),
        )
        iterator = map(operator.call, steps)
        gc.freeze()
        return iterator
    os.close(writing)
    exit_code = _wait(child, time.monotonic() + time_limit)
    _kill_descendants(time.monotonic() + GRACE / 2)
    os.set_blocking(reading, False)
    with contextlib.suppress(BlockingIOError):
        if exit_code == 0 and os.read(reading, len(token)) == token:
            sys.exit(PASSED)
    sys.exit(FAILED)


def _wait(child: int, deadline: float) -> int | None:
    """The exit code of the child, or None if it was killed at the deadline."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(INTERVAL)


def _kill_descendants(deadline: float) -> None:
    """Kill what the program has started: its orphans are children of this process, and theirs will be."""
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in _children(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(INTERVAL)


def _children(parent: int) -> list[int]:
    """The child processes of `parent`, from Linux's /proc."""
    children = []
    for pid in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            # The name, which stands in brackets, may hold anything.
            if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                children.append(pid)
    return children


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def _limit() -> None:
    """Limit this process and what it starts."""
    import resource  # Windows has none, and the other test sets of offline.py are for it too

    num_tasks = 0
    for pid in _processes():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                num_tasks += len(os.listdir(f"/proc/{pid}/task"))
    limits = {"AS": MEMORY_LIMIT, "FSIZE": FILE_LIMIT, "CORE": 0}
    if num_tasks:
        limits["NPROC"] = num_tasks + PROCESS_LIMIT  # the system does not apply it to root
    for name, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a limit that is lower already
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    # A child runs the steps from here, where no variable holds them.
    collections.deque(supervise(sys.stdin.buffer.read(), float(sys.argv[1])), maxlen=0)
