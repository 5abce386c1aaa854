"""LLaDA for transformers: configuration, model and diffusion sampling.

AutoConfig, AutoModel, AutoModelForCausalLM and AutoModelForMaskedLM build these classes once the package is imported.
"""

from importlib.metadata import version

import transformers

from .batching_manager_llada import LLaDABatchingManager
from .batching_results_llada import LLaDABatchOutput
from .configuration_llada import LLaDAConfig
from .configuration_llada_relatives import ILLaDAConfig, LLaDAMoEConfig
from .continuous_batching_llada import LLaDAAnswer, generate_many
from .generation_config_llada import LLaDAGenerationConfig
from .generation_llada import LLaDAGenerationOutput
from .modeling_illada import ILLaDAForCausalLM
from .modeling_llada import LLaDAModel, LLaDAModelLM
from .modeling_llada_moe import LLaDAMoEModelLM

__all__ = [
    "LLaDAConfig",
    "LLaDAModel",
    "LLaDAModelLM",
    "ILLaDAConfig",
    "ILLaDAForCausalLM",
    "LLaDAMoEConfig",
    "LLaDAMoEModelLM",
    "LLaDAGenerationConfig",
    "LLaDAGenerationOutput",
    "LLaDAAnswer",
    "LLaDABatchOutput",
    "LLaDABatchingManager",
    "generate_many",
]


def __getattr__(name: str) -> str:
    # Asked for late: the folder also runs where the distribution is not installed.
    if name == "__version__":
        return version("llada-hf")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# For libraries that load by the auto classes, as TRL loads a reference model. LLaDA-MoE has LLaDA's model type, and
# `LLaDAConfig` makes its config.
for _config, _model in (
    (LLaDAConfig, LLaDAModelLM),
    (ILLaDAConfig, ILLaDAForCausalLM),
    (LLaDAMoEConfig, LLaDAMoEModelLM),
):
    if _config is not LLaDAMoEConfig:
        transformers.AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto_class in (transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM):
        _auto_class.register(_config, _model, exist_ok=True)
