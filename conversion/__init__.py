"""Checkpoints in and out: autoregressive and official checkpoints, publishing, and export through Optimum."""

from importlib import import_module
from typing import Any

# The module that holds each public name; it is imported when the name is first used.
_HOMES = {
    "convert_autoregressive": ".autoregressive",
    "convert_official": ".official",
    "verify_folder": ".official",
    "CardFacts": ".publish",
    "Upload": ".publish",
    "prepare_upload": ".publish",
    "push_upload": ".publish",
    "export_model": ".export",
    "export_gguf": ".gguf_file",
    "load_exported": ".exported_model",
    "ORTModelForLLaDA": ".ort_model",
    "OVModelForLLaDA": ".ov_model",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
