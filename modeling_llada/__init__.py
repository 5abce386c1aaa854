"""LLaDA for transformers: configuration, model and diffusion sampling."""

from .configuration_llada import LLaDAConfig
from .continuous_batching_llada import LLaDAAnswer, generate_many
from .generation_config_llada import LLaDAGenerationConfig
from .generation_llada import LLaDAGenerationOutput
from .modeling_llada import LLaDAModel, LLaDAModelLM

__all__ = [
    "LLaDAConfig",
    "LLaDAModel",
    "LLaDAModelLM",
    "LLaDAGenerationConfig",
    "LLaDAGenerationOutput",
    "LLaDAAnswer",
    "generate_many",
]
