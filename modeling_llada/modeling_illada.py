"""iLLaDA: LLaDA's dense model with grouped heads and a tied head, its checkpoints under Llama's names.

Source: iLLaDA-8B (arXiv:2606.25331).
"""

import math
from typing import Any

from torch import nn

from .configuration_llada_relatives import ILLaDAConfig
from .llama_layout_llada import RelativeBlock, RelativeModelLM
from .modeling_llada import LLaDAModel, LLaDAPreTrainedModel

# transformers 4 finds the files of a checkpoint's code through the imports of its modelling file alone.
from .batching_manager_llada import LLaDABatchingManager as LLaDABatchingManager  # isort: skip
from .batching_results_llada import LLaDABatchOutput as LLaDABatchOutput  # isort: skip
from .cache_llada import BlockCache as BlockCache  # isort: skip
from .canvas_llada import Canvas as Canvas  # isort: skip
from .configuration_llada import LLaDAConfig as LLaDAConfig  # isort: skip
from .constraints_llada import Constraints as Constraints  # isort: skip
from .continuous_batching_llada import generate_many as generate_many  # isort: skip
from .generation_config_llada import LLaDAGenerationConfig as LLaDAGenerationConfig  # isort: skip
from .generation_llada import LLaDAGenerationMixin as LLaDAGenerationMixin  # isort: skip
from .prepacking_llada import prepacked_weights as prepacked_weights  # isort: skip
from .speculation_llada import Speculation as Speculation  # isort: skip
from .unmasking_llada import Proposer as Proposer  # isort: skip


class ILLaDAPreTrainedModel(LLaDAPreTrainedModel):
    """What transformers needs to know of an iLLaDA model."""

    config_class: Any = ILLaDAConfig
    _no_split_modules = ["RelativeBlock"]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module: embeddings with 1/sqrt(2 d), residual outputs divided by sqrt(2 layers)."""
        config = self.config
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=(2 * config.hidden_size) ** -0.5)
        elif isinstance(module, nn.Linear):
            is_residual = hasattr(module, "init_divisor")
            divisor = math.sqrt(2 * config.num_hidden_layers) if is_residual else 1.0
            nn.init.normal_(module.weight, std=config.initializer_range / divisor)
        else:
            super()._init_weights(module)


class ILLaDAModel(ILLaDAPreTrainedModel, LLaDAModel):
    """iLLaDA's Transformer: noisy ids to hidden states."""

    block_class = RelativeBlock


class ILLaDAForCausalLM(ILLaDAPreTrainedModel, RelativeModelLM):
    """iLLaDA with its head; everything that takes a `LLaDAModelLM` takes it.

    The name is the released one. The model is not causal: `labels` are never shifted, and `generate` unmasks.
    `max_new_tokens=None` gives the paper's answers of open length: a block of masks is appended and filled until an
    end of text.
    """

    backbone_class = ILLaDAModel
