"""Weights prepacked for the CPU: a call of `generate` reads every weight many times, so it reorders them once.

`torch.nn.functional.linear` takes a weight as it lies in memory, and its library reorders it in every call or does
without. oneDNN's kernels read weights in blocks of their own; with the weights in that order they are several times
faster on CPUs, most of all for the few rows of a cached block. The products are the same up to float rounding.

The prepacked weights are a second copy, kept for the length of the call. Calls that run at once share it.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any, Optional
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Largest copy, in bytes, that is made without being asked for: 0.5 billion parameters in float32.
AUTO_PREPACK_BYTES = 2 * 2**30
PREPACKABLE_DTYPES = (torch.float32, torch.bfloat16)

# Packed layer -> calls that use it; changed under the lock only.
_USERS: WeakKeyDictionary[nn.Linear, int] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextlib.contextmanager
def prepacked_weights(model: Any, pack: Optional[bool]) -> Iterator[None]:
    """Run a model's linear layers on packed weights inside the `with` block.

    Args:
        model: the model; its weights must not change inside the block.
        pack: True packs, or says why it cannot; False does not; None packs where it can and where the copy takes at
            most `AUTO_PREPACK_BYTES`.

    Raises:
        ValueError: if `pack` is True and nothing can be packed.

    Not handled: layers that are quantised, sharded, offloaded or on another device; they run as they are.
    """
    used: list[nn.Linear] = []
    try:
        with _LOCK:
            packed = filter(_USERS.__contains__, model.modules())
            layers = [] if pack is False else [*prepackable_layers(model), *packed]
            reason = _reason_against(model, layers)
            if pack and reason is not None:
                raise ValueError(f"`pack_weights=True` is not available here: {reason}; leave it out.")
            num_bytes = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
            if reason is not None or (pack is None and num_bytes > AUTO_PREPACK_BYTES):
                layers = []
            for layer in layers:
                if layer not in _USERS:
                    packed_weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, None)
                    # An instance's attribute hides the method of its class.
                    vars(layer)["forward"] = functools.partial(_prepacked_linear, layer, packed_weight)
                _USERS[layer] = _USERS.get(layer, 0) + 1
                used.append(layer)
        yield
    finally:
        with _LOCK:
            # Memory may have run out before the last one was packed.
            for layer in used:
                _USERS[layer] -= 1
                if not _USERS[layer]:
                    del _USERS[layer]
                    vars(layer).pop("forward", None)


def prepackable_layers(model: Any) -> list[nn.Linear]:
    """The model's plain linear layers on the CPU, without those that something else has already taken over."""
    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype in PREPACKABLE_DTYPES
        and "forward" not in vars(layer)
    ]


def _reason_against(model: Any, layers: list[nn.Linear]) -> Optional[str]:
    """Why packed weights cannot be used here, or None."""
    if not layers:
        return "the model has no plain linear layers in float32 or bfloat16 on the CPU"
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return "this CPU, or this build of PyTorch, has no kernels for it"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the data type of every product"
    if getattr(model, "_compiled_call_impl", None) is not None or "forward" in vars(model):
        return "the model is compiled, or its `forward` replaced"
    return None


def _prepacked_linear(layer: nn.Linear, packed: Tensor, states: Tensor) -> Tensor:
    """What `layer` computes from `states`, [..., in_features], with the packed copy of its weight."""
    if states.dtype != layer.weight.dtype or states.numel() == 0:
        return F.linear(states, layer.weight, layer.bias)
    return torch.ops.mkldnn._linear_pointwise(states, packed, layer.bias, "none", [], "")
