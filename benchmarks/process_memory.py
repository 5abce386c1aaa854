"""The peak memory of a case, measured in a process of its own.

A script with `--case` measures that case and prints its result as JSON on the last line.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

MIB = 2**20
# Linux counts in KiB, macOS in bytes.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
# Makes glibc return freed blocks of this size and more to the system at once, so that a peak is what was in use.
THRESHOLD_NAME = "MALLOC_MMAP_THRESHOLD_"


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # What `getrusage` tells begins at the memory of the parent process; this does not.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / MIB


def resident(process: int | str = "self") -> float:
    """Memory of a process now, this one or the one of a number, in MiB.

    Where the system does not tell, it is the peak of this process so far.
    """
    path = Path(f"/proc/{process}/statm")
    if not path.exists():
        return peak()
    return int(path.read_text().split()[1]) * resource.getpagesize() / MIB


def measure_in_process(case: list[Any], hint: str, threshold: int = MIB) -> dict[str, Any]:
    """Run this script once more with `--case`, and add `added_mib` = `peak_mib` - `before_mib` to its result.

    Args:
        case: what `--case` gets, as JSON.
        hint: what to change if there is too little memory.
        threshold: bytes of a block that is returned to the system as soon as it is freed.

    Raises:
        SystemExit: if the process fails.
    """
    child = [sys.executable, *sys.argv, "--case", json.dumps(case)]
    done = subprocess.run(
        child, capture_output=True, text=True, check=False, env={**os.environ, THRESHOLD_NAME: str(threshold)}
    )
    if done.returncode != 0:
        raise SystemExit(f"The case {', '.join(map(str, case))} failed; {hint} need less memory.\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    return {**result, "added_mib": result["peak_mib"] - result["before_mib"]}
