"""SHA-256 digests: of JSON values, files, checkpoints, and of models by what they compute."""

import hashlib
import json
from pathlib import Path
from typing import Any, Optional

# Values of each tensor that enter a model's digest: enough that any training shows.
NUM_VALUES = 64
# What a checkpoint's hash covers: the weights and the sizes that give them meaning.
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.onnx", "*.onnx_data", "*.pt")
_BLOCK_BYTES = 2**20


def json_digest(value: Any) -> str:
    """Hash a JSON value; the order of an object's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path, start: int = 0, end: Optional[int] = None) -> str:
    """Hash a file, or its bytes from `start` up to but without `end`."""
    digest = hashlib.sha256()
    _update(digest, path, start, path.stat().st_size if end is None else end)
    return digest.hexdigest()


def checkpoint_hash(folder: str | Path) -> str:
    """Hash the weights and the configuration of a checkpoint: names, sizes and contents, in order of the names.

    Raises:
        FileNotFoundError: if the folder holds no weights.
    """
    folder = Path(folder)
    weights = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    if not weights:
        raise FileNotFoundError(f"`{folder}` holds no weights to hash; name the folder of a checkpoint.")
    digest = hashlib.sha256()
    for path in [*(path for path in [folder / "config.json"] if path.is_file()), *weights]:
        # The length keeps the files apart: moving bytes from one into the next changes the hash.
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        _update(digest, path, 0, size)
    return digest.hexdigest()


def model_digest(model: Any, tokenizer: Any) -> str:
    """Hash configuration, tokenizer, dtype and a sample of every tensor.

    Args:
        model: a `LLaDAModelLM`.
        tokenizer: a fast tokenizer.

    Returns:
        SHA-256 in hexadecimal digits. It does not depend on where the files lie, nor on the device.

    Not handled: a change of single values of a tensor, which the sample may miss.
    """
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(str(tokenizer.chat_template).encode())
    for name, tensor in model.state_dict().items():
        sample = tensor.flatten()[:: max(1, tensor.numel() // NUM_VALUES)]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {sample.tolist()}".encode())
    return digest.hexdigest()


def _update(digest: Any, path: Path, start: int, end: int) -> None:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(_BLOCK_BYTES, end - file.tell())):
            digest.update(block)
