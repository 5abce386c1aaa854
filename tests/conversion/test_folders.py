"""Laws of making a folder: it appears whole, or what was there stays; a full disk is said in words."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError

from llada_conversion.folders import check_space, check_target, complete_folder

KILLED = """
import os, signal, sys
from llada_conversion.folders import complete_folder
with complete_folder(sys.argv[1]) as folder:
    (folder / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def checkpoint(folder: Path, text: str = "old") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(text)
    return folder


def write_and_raise(folder: Path, error: type[BaseException]) -> None:
    (folder / "config.json").write_text("new")
    raise error


def test_the_folder_appears_when_the_block_ends_and_nothing_is_left_beside_it(tmp_path) -> None:
    target = tmp_path / "deep" / "model"
    with complete_folder(target) as folder:
        (folder / "config.json").write_text("new")
        assert not target.exists()
        assert folder.name.startswith(".model.") and folder.name.endswith(".partial")
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "config.json").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_what_was_there(error, tmp_path) -> None:
    target = checkpoint(tmp_path / "model")
    with pytest.raises(error), complete_folder(target, force=True) as folder:
        write_and_raise(folder, error)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "config.json").read_text() == "old"


def test_a_killed_process_leaves_no_folder_of_that_name(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model")], timeout=60)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.") and left.suffix == ".partial"


def test_force_replaces_a_checkpoint_as_a_whole(tmp_path) -> None:
    target = checkpoint(tmp_path / "model")
    (target / "model-00009-of-00009.safetensors").touch()
    with complete_folder(target, force=True) as folder:
        (folder / "config.json").write_text("new")
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_and_an_adapter_are_replaced_with_force(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (checkpoint(tmp_path / "adapter") / "config.json").rename(tmp_path / "adapter" / "adapter_config.json")
    for name in ("empty", "adapter"):
        with complete_folder(tmp_path / name, force=True) as folder:
            (folder / "new").touch()
        assert (tmp_path / name / "new").exists()


def test_a_folder_that_is_there_is_refused_without_force(tmp_path) -> None:
    target = checkpoint(tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"`.*model` exists; name another, or pass `--force` to replace it"):
        check_target(target)
    with pytest.raises(FileExistsError, match="exists"), complete_folder(target):
        pytest.fail("the block must not run")


def test_force_replaces_nothing_but_checkpoints(tmp_path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"`.*home` holds no `config\.json`, .* replaces only checkpoints"):
        check_target(tmp_path / "home", force=True)
    (tmp_path / "link").symlink_to(checkpoint(tmp_path / "model"))
    for target in (tmp_path / "home" / "thesis.tex", tmp_path / "link"):
        with pytest.raises(FileExistsError, match="exists and is not a folder; name another, or remove it"):
            check_target(target, force=True)


@pytest.mark.parametrize("target", ["model", "model/inner", "."])
def test_a_target_may_not_overlap_what_is_read(target, tmp_path) -> None:
    source = checkpoint(tmp_path / "model")
    with pytest.raises(ValueError, match="must not overlap, but one lies in the other; name another target"):
        check_target(tmp_path / target, force=True, source=source)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path) -> None:
    check_space(tmp_path / "model", 1)
    with pytest.raises(OSError, match=r"`.*model` needs 1000000\.0 TB, but its disk has \d+\.\d [kMGT]B free; free"):
        check_space(tmp_path / "deep" / "model", 10**18)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "needed, words",
    [(2, "2 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (667_064, "667.1 kB"), (999_990, "1.0 MB"),
     (16 * 10**9, "16.0 GB")],
)  # fmt: skip
def test_sizes_stand_in_units_that_show_them(needed, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1))
    with pytest.raises(OSError, match=rf"`.*` needs {words}, but its disk has 1 bytes free; free space"):
        check_space(tmp_path / "model", needed)


def write_to_a_full_device() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def fail_as_safetensors_does() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def write_an_array_to_a_full_device() -> None:
    with open("/dev/full", "wb") as file:
        np.zeros(10_000).tofile(file)


@pytest.mark.parametrize("write", [write_to_a_full_device, fail_as_safetensors_does, write_an_array_to_a_full_device])
def test_a_disk_that_gets_full_is_said_and_leaves_nothing(write, tmp_path) -> None:
    words = r"The disk of `.*` is full; free space, or name .*Nothing was left behind"
    with pytest.raises(OSError, match=words), complete_folder(tmp_path / "model"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_another_error_passes_as_it_is(tmp_path) -> None:
    with pytest.raises(OSError, match=r"^something else$"), complete_folder(tmp_path / "model"):
        raise OSError("something else")
