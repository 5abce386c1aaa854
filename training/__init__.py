"""Training of LLaDA models on the tools of Hugging Face: configuration, data, loss and trainers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collator import LLaDACollator
    from .config import LLaDAPretrainingConfig
    from .data import load_documents, pack_documents
    from .loss import pretraining_loss, score_masked, sft_loss
    from .noise import draw_noise, random_lengths, training_noise_levels
    from .plots import plot_loss_curve
    from .pretrain_command import pretrain_main
    from .pretraining import LLaDAPretrainingTrainer

__all__ = [
    "LLaDACollator",
    "LLaDAPretrainingConfig",
    "LLaDAPretrainingTrainer",
    "draw_noise",
    "load_documents",
    "pack_documents",
    "plot_loss_curve",
    "pretrain_main",
    "pretraining_loss",
    "random_lengths",
    "score_masked",
    "sft_loss",
    "training_noise_levels",
]

# The file that holds each name; it is imported when the name is first used.
_HOMES = {
    "LLaDACollator": "collator",
    "LLaDAPretrainingConfig": "config",
    "LLaDAPretrainingTrainer": "pretraining",
    "draw_noise": "noise",
    "load_documents": "data",
    "pack_documents": "data",
    "plot_loss_curve": "plots",
    "pretrain_main": "pretrain_command",
    "pretraining_loss": "loss",
    "random_lengths": "noise",
    "score_masked": "loss",
    "sft_loss": "loss",
    "training_noise_levels": "noise",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
