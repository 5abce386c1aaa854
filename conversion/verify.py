"""Compares a converted folder with its source: every tensor's bytes, the code, and the logits on fixed ids."""

import filecmp
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import modeling_llada.modeling_llada as modeling
from modeling_llada import LLaDAConfig, LLaDAModelLM

from .layout import llada_name
from .weights import StoredTensor, file_sha256, stored_tensors, weight_files

NUM_IDS = 16
# Both sides compute the same thing in float32; tensors that lie elsewhere in memory may be summed in another order.
TOLERANCE = 1e-5
_SHA256 = re.compile(r"[0-9a-f]{64}")


def verify_folder(source: str | Path, folder: str | Path) -> float:
    """Check that `folder` holds the weights of `source` and computes the same logits.

    1. A source file in the Hub's cache has the SHA-256 that the Hub knows it by.
    2. Every tensor has the same type, shape and bytes in both, by SHA-256, under whichever of the two names.
    3. The logits of `source` (its config and weights) and of `folder` (its own) agree on `NUM_IDS` fixed ids, in
       float32. One block, or the embedding, is in memory at a time.

    Args:
        source: a checkpoint folder.
        folder: what `convert_official` made of it, in either layout.

    Returns:
        The largest difference of the logits.

    Raises:
        ValueError: naming every tensor or file that differs, or the difference of the logits.
    """
    source, folder = Path(source), Path(folder)
    problems = _changed_in_cache(source) + _different_tensors(source, folder) + _different_code(folder)
    if problems:
        raise ValueError(f"`{folder}` is not what was converted: {' '.join(problems)} Convert again.")
    difference = (fixed_logits(source) - fixed_logits(folder)).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"`{folder}` and `{source}` have the same weights, but their logits differ by {difference:.2g}: their "
            "config.json differ in what the model computes. Convert again."
        )
    return difference


@torch.no_grad()
def fixed_logits(folder: Path) -> Tensor:
    """Compute a checkpoint's logits on ids spread over the vocabulary, every fourth one masked.

    Weights are read when the module that holds them runs, and let go after it.

    Returns:
        float32 [1, NUM_IDS, embedding_size].
    """
    config: Any = LLaDAConfig.from_pretrained(folder)
    tensors = {llada_name(name): (name, tensor) for name, tensor in stored_tensors(folder).items()}
    with torch.device("meta"):
        model = LLaDAModelLM(config).eval()
    parts = dict(model.model.transformer.named_children())
    blocks = {f"blocks.{i}": block for i, block in enumerate(parts.pop("blocks"))}
    for name, module in {**parts, **blocks}.items():
        shared = "wte" if name == "ff_out" and config.weight_tying else name
        _read_on_demand(module, {k: tensors[f"model.transformer.{shared}.{k}"] for k in module.state_dict()})
    ids = torch.arange(NUM_IDS)[None] * (config.vocab_size // NUM_IDS)
    ids[:, ::4] = config.mask_token_id
    return model(ids).logits


def _read_on_demand(module: nn.Module, tensors: dict[str, tuple[str, StoredTensor]]) -> None:
    """Let `module` read its weights before it runs, and drop them after."""

    def read(*_: Any) -> None:
        weights = {key: _load(name, tensor) for key, (name, tensor) in tensors.items()}
        module.load_state_dict(weights, assign=True)

    def drop(*_: Any) -> None:
        module.to("meta")

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop)


def _load(name: str, tensor: StoredTensor) -> Tensor:
    with safe_open(tensor.path, framework="pt") as file:
        return file.get_tensor(name).float()


def _changed_in_cache(source: Path) -> list[str]:
    """Files whose bytes are not those of the name that the Hub's cache gave them."""
    names = {path: path.resolve().name for path in weight_files(source) if path.is_symlink()}
    return [
        f"The downloaded `{path.name}` has another SHA-256 than on the Hub; delete it from the cache."
        for path, name in names.items()
        if _SHA256.fullmatch(name) and file_sha256(path) != name
    ]


def _different_tensors(source: Path, folder: Path) -> list[str]:
    theirs = {llada_name(name): tensor for name, tensor in stored_tensors(source).items()}
    ours = {llada_name(name): tensor for name, tensor in stored_tensors(folder).items()}
    problems = [f"`{name}` is in one of the two only." for name in sorted(theirs.keys() ^ ours.keys())]
    for name in sorted(theirs.keys() & ours.keys()):
        before, after = theirs[name], ours[name]
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            problems.append(f"`{name}` has another type or shape.")
        elif before.sha256() != after.sha256():
            problems.append(f"`{name}` has other bytes.")
    return problems


def _different_code(folder: Path) -> list[str]:
    ours = Path(modeling.__file__).parent
    changed = [p.name for p in sorted(folder.glob("*_llada.py")) if not filecmp.cmp(p, ours / p.name, shallow=False)]
    return [f"`{name}` is not this package's." for name in changed]
