"""LLaDA for transformers: configuration, model and diffusion sampling.

AutoConfig, AutoModel, AutoModelForCausalLM and AutoModelForMaskedLM build these classes once the package is imported.
"""

import transformers

from .batching_manager_llada import LLaDABatchingManager
from .batching_results_llada import LLaDABatchOutput
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
    "LLaDABatchOutput",
    "LLaDABatchingManager",
    "generate_many",
]

# For libraries that load by the auto classes, as TRL loads a reference model.
transformers.AutoConfig.register(LLaDAConfig.model_type, LLaDAConfig, exist_ok=True)
for _auto_class in (transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM):
    _auto_class.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
