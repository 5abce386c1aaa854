"""Laws of the host probe: AMX is switched off exactly where it is advertised and ends a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llada_core import host

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
LIVES = "pass"
COUNTS = "import pathlib; path = pathlib.Path({!r}); path.write_text(path.read_text() + 'x')"


@pytest.fixture(autouse=True)
def amx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CPU that advertises AMX, an unset variable and an empty cache; returns the file that describes the CPU."""
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("model name\t: A CPU\nmodel\t\t: 143\nflags\t\t: fpu amx_bf16 amx_tile\n\nprocessor\t: 1\n")
    monkeypatch.setattr(host, "CPU_INFO", cpu)
    monkeypatch.setenv(host.VARIABLE, "")  # so that what a test sets is undone
    monkeypatch.delenv(host.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cpu


def test_where_the_probe_dies_amx_is_switched_off_with_one_line(capfd):
    host.avoid_broken_amx(DIES)
    assert os.environ[host.VARIABLE] == "AVX512_CORE_FP16"
    shown, errors = capfd.readouterr()
    assert shown == ""
    assert errors.splitlines() == [
        "llada: AMX does not work on this machine (SIGILL); continuing with ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16."
    ]


def test_where_the_probe_finishes_nothing_is_set(capfd):
    host.avoid_broken_amx(LIVES)
    assert host.VARIABLE not in os.environ
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("description", ["flags\t: fpu avx512f\n", "", None])
def test_without_amx_nothing_is_probed(amx, description):
    if description is None:
        amx.unlink()  # not Linux
    else:
        amx.write_text(description)
    host.avoid_broken_amx(DIES)
    assert host.VARIABLE not in os.environ


@pytest.mark.parametrize("value", ["AVX2", "DEFAULT", ""])
def test_a_variable_that_is_set_is_kept(monkeypatch, value):
    monkeypatch.setenv(host.VARIABLE, value)
    host.avoid_broken_amx(DIES)
    assert os.environ[host.VARIABLE] == value


@pytest.mark.parametrize("end, setting", [(DIES, "AVX512_CORE_FP16"), (LIVES, None)])
def test_a_machine_is_probed_once(tmp_path, monkeypatch, capfd, end, setting):
    counter = tmp_path / "counter"
    counter.write_text("")
    for _ in range(3):
        monkeypatch.delenv(host.VARIABLE, raising=False)
        host.avoid_broken_amx(COUNTS.format(str(counter)) + "\n" + end)
        assert os.environ.get(host.VARIABLE) == setting
    assert counter.read_text() == "x"
    assert len(capfd.readouterr().err.splitlines()) == (setting is not None)


@pytest.mark.parametrize("change", ["cpu", "boot", "corrupt cache"])
def test_another_cpu_another_boot_or_a_corrupt_cache_is_probed_again(tmp_path, amx, monkeypatch, change):
    boot = tmp_path / "boot"
    boot.write_text("first")
    monkeypatch.setattr(host, "BOOT_ID", boot)
    host.avoid_broken_amx(LIVES)
    (cached,) = (tmp_path / "cache" / "llada").iterdir()
    if change == "cpu":
        amx.write_text(amx.read_text().replace("143", "207"))
    elif change == "boot":
        boot.write_text("second")
    else:
        cached.write_text("[]")
    host.avoid_broken_amx(DIES)
    assert os.environ[host.VARIABLE] == "AVX512_CORE_FP16"


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        monkeypatch.delenv(host.VARIABLE, raising=False)
        host.avoid_broken_amx(DIES)
        assert os.environ[host.VARIABLE] == "AVX512_CORE_FP16"


def test_a_probe_that_fails_without_a_signal_says_nothing_about_amx(tmp_path):
    host.avoid_broken_amx("raise ImportError")
    assert host.VARIABLE not in os.environ
    assert not (tmp_path / "cache").exists()


def test_the_module_prints_the_setting_for_a_shell_and_loads_no_torch():
    code = "import sys, llada_core.host; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    ours = {**os.environ, host.VARIABLE: "AVX2"}
    command = [sys.executable, "-m", "llada_core.host"]
    done = subprocess.run(command, env=ours, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_real_probe_runs():
    """Whether it ends with a signal is the machine's affair; a mistake in its code would say nothing about AMX."""
    done = subprocess.run([sys.executable, "-c", host.PROBE], capture_output=True, text=True, check=False)
    assert done.returncode <= 0, done.stderr


def test_the_cache_of_kernels_is_limited_unless_somebody_chose_its_size(monkeypatch):
    monkeypatch.setenv(host.KERNEL_CACHE, "7")
    host.limit_kernel_cache()
    assert os.environ[host.KERNEL_CACHE] == "7"
    monkeypatch.delenv(host.KERNEL_CACHE)
    host.limit_kernel_cache()
    assert os.environ[host.KERNEL_CACHE] == "64"
