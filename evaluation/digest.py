"""Tells models apart by what they compute, wherever they were loaded from."""

import hashlib
import json
from typing import Any

# Values of each tensor that enter a digest: enough that any training shows.
NUM_VALUES = 64


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
