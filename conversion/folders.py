"""Makes a folder whole or not at all: it is written beside its place and renamed when it is finished."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How libraries say it that wrap the system's error: safetensors with its text, numpy with the numbers of items.
_NO_SPACE_TEXT = re.compile(rf"{re.escape(os.strerror(errno.ENOSPC))}|\d+ requested and \d+ written")


@contextmanager
def complete_folder(target: str | Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write into, and give it the name `target` when the block ends.

    Until then it is called `.NAME.XXXX.partial` and lies beside `target`. If the block raises, it is removed and
    `target` stays as it was; a killed process leaves the hidden folder behind, which can be deleted.

    Args:
        target: the folder to make; its parents are made too.
        force: as `check_target`; the old folder is removed once the new one stands.

    Raises:
        FileExistsError: as `check_target`.
        OSError: if the disk gets full.
    """
    target = Path(os.path.abspath(Path(target).expanduser()))
    check_target(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    scratch.mkdir()
    try:
        with full_disk_named(target.parent):
            yield scratch
            _put_in_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def full_disk_named(place: Path) -> Iterator[None]:
    """Say that the disk of `place` is full, whichever way a library says so; the caller removes what was written.

    Raises:
        OSError: if so. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE_TEXT.search(str(error)):
            raise OSError(
                f"The disk of `{place}` is full; free space, or name a folder on another disk. Nothing was left behind."
            ) from error
        raise


def check_target(target: str | Path, force: bool = False, source: str | Path | None = None) -> None:
    """Refuse a place where no folder can be made; worth asking before the work begins.

    Args:
        target: the folder to make.
        force: it may be there, if it is empty or holds a `config.json` or an `adapter_config.json`.
        source: a folder that is going to be read, if it is one: `target` may not be it, hold it or lie in it.

    Raises:
        FileExistsError: if `target` exists and may not be replaced.
        ValueError: if `target` and `source` overlap.
    """
    target = Path(target).expanduser()
    if source is not None:
        ours, theirs = target.resolve(), Path(source).resolve()
        if ours == theirs or ours in theirs.parents or theirs in ours.parents:
            raise ValueError(
                f"`{target}` and `{source}` must not overlap, but one lies in the other; name another target."
            )
    if not os.path.lexists(target):
        return
    if not target.is_dir() or target.is_symlink():
        raise FileExistsError(f"`{target}` exists and is not a folder; name another, or remove it.")
    if not force:
        raise FileExistsError(f"The folder `{target}` exists; name another, or pass `--force` to replace it.")
    names = os.listdir(target)
    if names and not {"config.json", "adapter_config.json"}.intersection(names):
        raise FileExistsError(
            f"The folder `{target}` holds no `config.json`, so it is not a checkpoint, and `--force` replaces only "
            "checkpoints; name another, or remove it yourself."
        )


def check_space(target: str | Path, num_bytes: int) -> None:
    """Refuse to begin where the disk of `target` has less than `num_bytes` free.

    Raises:
        OSError: if so; both numbers are named.
    """
    parents = Path(os.path.abspath(Path(target).expanduser())).parents
    free = shutil.disk_usage(next(parent for parent in parents if parent.exists())).free
    if num_bytes > free:
        raise OSError(
            f"`{target}` needs {_size(num_bytes)}, but its disk has {_size(free)} free; free space, or name a folder "
            "on another disk."
        )


def _size(num_bytes: int) -> str:
    """Spell a size in the unit that leaves one to three digits before the point; small sizes are exact."""
    size, units = float(num_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.95 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{num_bytes} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _put_in_place(scratch: Path, target: Path) -> None:
    """Rename `scratch` to `target`; a folder that is there is put aside first and deleted last."""
    if not target.exists():
        scratch.rename(target)
        return
    aside = scratch.with_suffix(".replaced")
    target.rename(aside)
    try:
        scratch.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside)
