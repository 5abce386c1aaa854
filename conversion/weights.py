"""Reads, copies and renames the tensors of safetensors files without loading them."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, and its bytes from `start` to `end` there."""

    path: Path
    dtype: str  # as safetensors spells it: F32, BF16 …
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def sha256(self) -> str:
        """Checksum of the tensor's bytes, as hexadecimal digits."""
        return _digest(self.path, self.start, self.end)


def weight_files(folder: Path) -> list[Path]:
    """List the weight files of a checkpoint: the only file, or the shards its index names.

    Raises:
        FileNotFoundError: if there are none, or the index names shards that are not there (all are listed).
        ValueError: for an index that cannot be read.
    """
    if is_sharded(folder):
        names = sorted(set(read_index(folder).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"`{folder}` lacks {', '.join(missing)}; download or copy the whole checkpoint.")
        return [folder / name for name in names]
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    raise FileNotFoundError(
        f"`{folder}` has no `{WEIGHTS_NAME}` and no `{INDEX_NAME}`; weights in another format must be saved as "
        "safetensors first (`save_pretrained`)."
    )


def is_sharded(folder: Path) -> bool:
    """Whether the index says where the weights are; where there is a single file too, transformers reads that."""
    return (folder / INDEX_NAME).is_file() and not (folder / WEIGHTS_NAME).is_file()


def read_index(folder: Path) -> dict[str, str]:
    """Read which file holds which tensor.

    Raises:
        ValueError: for an index that is no JSON with a `weight_map`, or that names a file outside the folder.
    """
    try:
        weight_map = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
        names = {str(file) for file in weight_map.values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"The index `{folder / INDEX_NAME}` is corrupt; download or save it again.") from None
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise ValueError(f"The index `{folder / INDEX_NAME}` may name files beside it only, got {outside[0]!r}.")
    return weight_map


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a checkpoint, by name.

    Raises:
        FileNotFoundError: as `weight_files`.
        ValueError: for files that are cut off or corrupt (all are listed), tensors in two files, and an index that
            tells otherwise than the files.
    """
    files, problems = weight_files(folder), []
    found: dict[str, StoredTensor] = {}
    for path in files:
        try:
            header = read_header(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        problems += [f"`{name}` is in two files." for name in sorted(header.keys() & found.keys())]
        found |= header
    if is_sharded(folder) and not problems:
        index = read_index(folder)
        astray = [
            n for n in sorted(index.keys() | found.keys()) if n not in found or index.get(n) != found[n].path.name
        ]
        problems += [f"`{name}` is not where `{INDEX_NAME}` says." for name in astray]
    if problems:
        raise ValueError(
            " ".join([f"The weights of `{folder}` are damaged.", *problems, "Download or save them again."])
        )
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one file, in the file's order.

    Raises:
        ValueError: for a file that is no safetensors, or shorter than its header promises.
    """
    header, start = _read_raw_header(path)
    try:
        tensors = {
            name: StoredTensor(
                path, entry["dtype"], tuple(entry["shape"]), *(start + offset for offset in entry["data_offsets"])
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
        end = max((tensor.end for tensor in tensors.values()), default=start)
    except (KeyError, TypeError, AttributeError):
        raise _corrupt(path) from None
    size = path.stat().st_size
    if size < end:
        raise ValueError(f"`{path.name}` is cut off: it has {size:,} bytes of {end:,}.")
    return tensors


def copy_file(source: Path, target: Path, rename: Callable[[str], str]) -> None:
    """Copy a safetensors file, a piece at a time; its tensors get the names that `rename` gives.

    A file whose names all stay is copied byte for byte; otherwise its header is written anew.
    """
    header, start = _read_raw_header(source)
    renamed = {name if name == "__metadata__" else rename(name): entry for name, entry in header.items()}
    if renamed.keys() == header.keys():
        shutil.copyfile(source, target)
        return
    text = json.dumps(renamed, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    with source.open("rb") as reader, target.open("wb") as writer:
        writer.write(len(text).to_bytes(8, "little") + text)
        reader.seek(start)
        shutil.copyfileobj(reader, writer, _CHUNK_BYTES)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name, so that no byte is copied; a symbolic link is followed.

    Raises:
        OSError: if the two names would lie on different disks.
    """
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
            raise
        raise OSError(
            f"`{source}` cannot be linked into `{target.parent.parent}`: hard links need one disk that knows them; "
            "leave out `--link` to copy."
        ) from error


def file_sha256(path: Path) -> str:
    """Checksum of a whole file, as hexadecimal digits."""
    return _digest(path, 0, path.stat().st_size)


def _read_raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the JSON in front of the data, and where the data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise _corrupt(path)
        try:
            return json.loads(file.read(length)), 8 + length
        except ValueError:
            raise _corrupt(path) from None


def _corrupt(path: Path) -> ValueError:
    return ValueError(f"`{path.name}` is cut off or no safetensors file.")


def _digest(path: Path, start: int, end: int) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(path, start, end):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (piece := file.read(min(_CHUNK_BYTES, end - start))):
            start += len(piece)
            yield piece
