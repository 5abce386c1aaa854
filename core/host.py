"""Keeps PyTorch away from CPU instructions that this machine advertises but cannot run. Imports no torch itself.

PyTorch's bfloat16 kernels use AMX where the CPU's flags name it. Some virtual machines name it without supporting it,
and there every bfloat16 product ends the process with SIGILL. `ONEDNN_MAX_CPU_ISA`, read by oneDNN at its first
kernel, limits the kernels to older instructions.

In a shell: `env $(python -m llada_core.host) python my_script.py`.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VARIABLE = "ONEDNN_MAX_CPU_ISA"
KERNEL_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
WITHOUT_AMX = "AVX512_CORE_FP16"  # the newest instructions before AMX
CPU_INFO = Path("/proc/cpuinfo")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Runs the kernels that use AMX: the products of linear layers and of attention.
PROBE = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import torch
x = torch.ones(64, 64, dtype=torch.bfloat16)
torch.nn.functional.linear(x, x)
torch.nn.functional.scaled_dot_product_attention(*[x.view(1, 1, 64, 64)] * 3)
"""


def avoid_broken_amx(probe: str = PROBE) -> None:
    """Set `ONEDNN_MAX_CPU_ISA` for this process and its children if AMX is advertised but ends a process.

    Call it before the first bfloat16 product; importing torch before is fine. A value that is already set is kept. On a
    CPU without AMX this costs a millisecond; with AMX a child process tries it (2 seconds), and the result is cached
    until the next boot.

    Args:
        probe: Python code for the child process.
    """
    if VARIABLE in os.environ:
        return
    facts = _amx_facts()
    if facts is None:
        return
    broken = _read_cache(facts)
    if broken is None:
        death = _signal_of(probe)
        broken = death not in ("", None)
        if broken:
            sys.stderr.write(
                f"llada: AMX does not work on this machine ({death}); continuing with {VARIABLE}={WITHOUT_AMX}.\n"
            )
        if death is not None:
            _write_cache(facts, broken)
    if broken:
        os.environ[VARIABLE] = WITHOUT_AMX


def limit_kernel_cache(num_kernels: int = 64) -> None:
    """Set `ONEDNN_PRIMITIVE_CACHE_CAPACITY` for this process, unless it is set.

    oneDNN keeps a kernel for each shape that it meets, up to 1,024. A server meets ever new ones, so its memory would
    grow for hours. Call it before the first pass of a model.
    """
    os.environ.setdefault(KERNEL_CACHE, str(num_kernels))


def _amx_facts() -> dict[str, str] | None:
    """Describe the CPU, the boot and torch, on which the result depends; None without AMX or torch."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        torch_version = version("torch")
    except (OSError, PackageNotFoundError):
        return None
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "amx_bf16" not in cpu.get("flags", "").split():
        return None
    # Machines of one CPU name differ in what their hypervisor supports, so the result holds for one boot.
    boot = BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else ""
    named = [cpu.get(name, "") for name in ("model name", "model", "stepping", "microcode", "flags")]
    return {"torch": torch_version, "cpu": hashlib.sha256("\n".join([*named, boot]).encode()).hexdigest()}


def _signal_of(probe: str) -> str | None:
    """Run the probe: the name of the signal that ended it, "" if it finished, None if it failed in another way."""
    if not sys.executable:
        return None
    command = [sys.executable, "-P", "-c", probe]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    code = done.returncode
    if code < 0:
        return signal.Signals(-code).name
    return "" if code == 0 else None


def _cache_file(facts: dict[str, str]) -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder) / "llada" / f"amx-torch-{facts['torch']}.json"


def _read_cache(facts: dict[str, str]) -> bool | None:
    """Whether AMX was found broken under the same facts; None if nothing is known."""
    try:
        known = json.loads(_cache_file(facts).read_text(encoding="utf-8"))
        return known["broken"] if known["cpu"] == facts["cpu"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(facts: dict[str, str], broken: bool) -> None:
    """Keep the result if the user's cache can be written; the next process probes again otherwise."""
    path = _cache_file(facts)
    if not path.is_absolute():  # the user has no home
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(json.dumps({"cpu": facts["cpu"], "broken": broken}), encoding="utf-8")
        own.replace(path)


if __name__ == "__main__":
    before = os.environ.get(VARIABLE)
    avoid_broken_amx()
    if os.environ.get(VARIABLE) != before:
        sys.stdout.write(f"{VARIABLE}={os.environ[VARIABLE]}\n")
