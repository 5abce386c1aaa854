"""Laws of the run of a program: only its end counts, and nothing of it is left."""

import time

import pytest

from llada_evaluation.program_runner import PROCESS_LIMIT, run_program


@pytest.mark.parametrize(
    "program, reaches_its_end",
    [
        ("x = 1", True),
        ("print('é' * 9)", True),
        ("import os, sys; os.chdir('/')", True),
        ("assert __name__ == 'program' and input is not None", True),
        ("import sys; assert sys.stdin.read() == ''", True),
        ("import builtins, os; builtins.exec = os.write = os._exit = None", True),
        ("import threading; threading.Thread(target=threading.Event().wait).start()", True),
        ("import os; pid = os.fork(); pid and os.waitpid(pid, 0)", True),
        ("raise SystemExit(0)", False),
        ("import os; os._exit(0)", False),
        ("import os, signal; os.kill(os.getppid(), signal.SIGKILL)", False),
        ("import os; os.closerange(3, 256)", False),
        ("assert False", False),
        ("x = (", False),
        ("x = '\0'", False),
        ("x = bytearray(8 << 30)", False),
        ("open('much', 'wb').write(bytes(2 << 20))", False),
        ("import torch", False),
    ],
)
def test_only_the_end_of_a_program_counts(program, reaches_its_end):
    assert run_program(program, time_limit=20) is reaches_its_end


# Writes what looks like a token of random bytes to every open file, and ends without an error.
CLAIM = """
import os
found = [value for value in candidates if isinstance(value, bytes) and len(value) == 16 and len(set(value)) > 12]
found = [value for value in found if any(byte > 127 for byte in value)]
for descriptor in map(int, os.listdir("/proc/self/fd")):
    for value in found:
        try:
            os.write(descriptor, value)
        except OSError:
            pass
os._exit(0)
"""
HIDING_PLACES = {
    "variables of the runner": """
        import __main__
        candidates = list(vars(__main__).values())""",
    "frames below the program": """
        import sys
        candidates, frame = [], sys._getframe()
        while frame:
            candidates += [*frame.f_locals.values(), *frame.f_globals.values()]
            frame = frame.f_back""",
    "frames of a traceback": """
        candidates = []
        try:
            1 / 0
        except ZeroDivisionError as error:
            frame = error.__traceback__.tb_frame
            while frame:
                candidates += [*frame.f_locals.values(), *frame.f_globals.values()]
                frame = frame.f_back""",
    "objects of the garbage collector": """
        import gc
        candidates = []
        for thing in gc.get_objects():
            for part in gc.get_referents(thing):
                candidates += part if isinstance(part, tuple) else [part]""",
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_a_program_cannot_claim_that_it_passed_with_what_python_shows_it(place):
    lines = [line[8:] for line in HIDING_PLACES[place].splitlines()]
    assert run_program("\n".join(lines) + CLAIM, time_limit=20) is False


CHILDREN = {
    "a child": "subprocess.Popen(command)",
    "a child in its own session": "subprocess.Popen(command, start_new_session=True)",
    "an orphan in its own session": "os.fork() or (os.setsid(), os.fork() and os._exit(0), os.execv(*run))",
}


@pytest.mark.parametrize("ending", ["while True: pass", "raise SystemExit", "x = 1"])
@pytest.mark.parametrize("start", CHILDREN.values(), ids=CHILDREN)
def test_what_a_program_has_started_ends_with_it(start, ending, tmp_path):
    late = f"import time; time.sleep(1); open({str(tmp_path / 'late')!r}, 'w')"
    head = f"import os, subprocess, sys\ncommand = [sys.executable, '-c', {late!r}]\nrun = command[0], command\n"
    program = f"{head}{start}\n{ending}"
    assert run_program(program, time_limit=0.5) is (ending == "x = 1")
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def test_processes_that_multiply_are_stopped():
    began = time.perf_counter()
    count = PROCESS_LIMIT
    program = f"import os, time\nfor _ in range({count}):\n    os.fork() or time.sleep(60)\nwhile True: pass"
    assert run_program(program, time_limit=1) is False
    assert time.perf_counter() - began < 20
