"""Training of LLaDA models on the tools of Hugging Face: configuration, data, loss and trainers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import LORA_TARGET_MODULES, merge_adapter
    from .batch import LLaDACollator
    from .card import write_card
    from .data import load_documents, pack_documents
    from .diffusion_trainer import register_auto_classes
    from .log_probability import draw_noises, elbo_log_probability
    from .loss import pretraining_loss, score_masked, sft_loss
    from .noise import draw_noise, random_lengths, training_noise_levels
    from .plots import plot_loss_curve
    from .pretrain_command import pretrain_main
    from .pretraining import LLaDAPretrainingConfig, LLaDAPretrainingTrainer
    from .sft import LLaDASFTConfig, LLaDASFTTrainer
    from .sft_command import sft_main

__all__ = [
    "LLaDACollator",
    "LLaDAPretrainingConfig",
    "LLaDAPretrainingTrainer",
    "LLaDASFTConfig",
    "LLaDASFTTrainer",
    "draw_noise",
    "draw_noises",
    "elbo_log_probability",
    "LORA_TARGET_MODULES",
    "load_documents",
    "merge_adapter",
    "pack_documents",
    "plot_loss_curve",
    "pretrain_main",
    "pretraining_loss",
    "random_lengths",
    "register_auto_classes",
    "score_masked",
    "sft_loss",
    "sft_main",
    "training_noise_levels",
    "write_card",
]

# The file that holds each name; it is imported when the name is first used.
_HOMES = {
    "LLaDACollator": "batch",
    "LLaDAPretrainingConfig": "pretraining",
    "LLaDAPretrainingTrainer": "pretraining",
    "LLaDASFTConfig": "sft",
    "LLaDASFTTrainer": "sft",
    "draw_noise": "noise",
    "draw_noises": "log_probability",
    "elbo_log_probability": "log_probability",
    "LORA_TARGET_MODULES": "adapters",
    "load_documents": "data",
    "merge_adapter": "adapters",
    "pack_documents": "data",
    "plot_loss_curve": "plots",
    "pretrain_main": "pretrain_command",
    "pretraining_loss": "loss",
    "random_lengths": "noise",
    "register_auto_classes": "diffusion_trainer",
    "score_masked": "loss",
    "sft_loss": "loss",
    "sft_main": "sft_command",
    "training_noise_levels": "noise",
    "write_card": "card",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
