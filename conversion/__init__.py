"""Checkpoints in and out: autoregressive and official checkpoints, publishing, and export through Optimum."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autoregressive import convert_autoregressive
    from .card_facts import CardFacts
    from .export import export_model
    from .exported_model import EXPORTED_FILES, find_exported, load_exported
    from .gguf_file import export_gguf
    from .official import convert_official
    from .ort_model import ORTModelForLLaDA
    from .ov_model import OVModelForLLaDA
    from .publish import Upload, prepare_upload, push_upload
    from .verify import verify_folder

__all__ = [
    "convert_autoregressive",
    "convert_official",
    "verify_folder",
    "CardFacts",
    "Upload",
    "prepare_upload",
    "push_upload",
    "export_model",
    "export_gguf",
    "EXPORTED_FILES",
    "find_exported",
    "load_exported",
    "ORTModelForLLaDA",
    "OVModelForLLaDA",
]

# The file that holds each name; it is imported when the name is first used.
_HOMES = {
    "convert_autoregressive": "autoregressive",
    "convert_official": "official",
    "verify_folder": "verify",
    "CardFacts": "card_facts",
    "Upload": "publish",
    "prepare_upload": "publish",
    "push_upload": "publish",
    "export_model": "export",
    "export_gguf": "gguf_file",
    "EXPORTED_FILES": "exported_model",
    "find_exported": "exported_model",
    "load_exported": "exported_model",
    "ORTModelForLLaDA": "ort_model",
    "OVModelForLLaDA": "ov_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
