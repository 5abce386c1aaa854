"""Tells transformers' Auto classes about LLaDA, so that libraries can reload a model by its name."""

import transformers
from transformers import AutoConfig

from modeling_llada import LLaDAConfig, LLaDAModelLM
from modeling_llada.configuration_llada import AUTO_MAP


def register_auto_classes() -> None:
    """Let AutoConfig, AutoModel, AutoModelForCausalLM and AutoModelForMaskedLM build the installed classes.

    TRL reloads a reference model through them. Calling it again changes nothing.
    """
    AutoConfig.register(LLaDAConfig.model_type, LLaDAConfig, exist_ok=True)
    for name in AUTO_MAP:
        if name != AutoConfig.__name__:
            getattr(transformers, name).register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
