"""The tensors of safetensors checkpoints: found, named in official or Llama's way, and copied without being loaded."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from modeling_llada.configuration_llada import read_weight_index
from modeling_llada.llama_layout_llada import name_in_file, name_in_memory

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, known by the file's header alone."""

    path: Path
    name: str
    dtype: str  # as safetensors spells it: F32, BF16 …
    shape: tuple[int, ...]

    def load(self) -> Tensor:
        """Read the tensor itself."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.name)


# What gives a tensor its name in each layout of LLaDA.
LAYOUTS: dict[str, Callable[[str], str]] = {"official": name_in_memory, "llama": name_in_file}


# --- files -----------------------------------------------------------------------------------------------------------


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
        ValueError: as `read_weight_index`.
    """
    return read_weight_index(folder / INDEX_NAME)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a checkpoint, by name.

    Raises:
        FileNotFoundError: as `weight_files`.
        ValueError: for files that are cut off or corrupt (all are listed), tensors in two files, and an index that
            does not agree with the files.
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
        differing = read_index(folder).items() ^ {name: tensor.path.name for name, tensor in found.items()}.items()
        problems += [f"`{name}` is not where `{INDEX_NAME}` says." for name in sorted({name for name, _ in differing})]
    if problems:
        raise ValueError(
            " ".join([f"The weights of `{folder}` are damaged.", *problems, "Download or save them again."])
        )
    return found


def read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one file.

    Raises:
        ValueError: for a file that is not safetensors, or shorter than its header promises.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(path, name, part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"`{path.name}` is cut off or not a safetensors file ({error}).") from None


def copy_file(source: Path, target: Path, rename: Callable[[str], str]) -> None:
    """Copy a safetensors file, a piece at a time; its tensors get the names that `rename` gives.

    A file whose names all stay is copied byte for byte; otherwise its header is written anew.
    """
    with source.open("rb") as reader:
        header = json.loads(reader.read(int.from_bytes(reader.read(8), "little")))
        renamed = {name if name == "__metadata__" else rename(name): entry for name, entry in header.items()}
        if renamed.keys() == header.keys():
            shutil.copyfile(source, target)
            return
        text = json.dumps(renamed, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data aligned
        with target.open("wb") as writer:
            writer.write(len(text).to_bytes(8, "little") + text)
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
