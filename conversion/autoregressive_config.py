"""Reads the configuration of an autoregressive checkpoint, refuses what LLaDA does not compute, and translates it."""

from pathlib import Path
from typing import Any, Optional

from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase

from modeling_llada import LLaDAConfig

SUPPORTED_TYPES = ("llama", "mistral")
# Relatives of Llama, and what LLaDA lacks for them.
REFUSED_TYPES = {
    "qwen2": "its queries, keys and values have biases (`qkv_bias`)",
    "qwen3": "its queries and keys are normalised (`q_norm`, `k_norm`)",
    "llada": "it is a LLaDA checkpoint already",
}
# Fields that change the computation, with the values that LLaDA computes; None is unset.
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
# The same for the rotary embedding.
SUPPORTED_ROPE: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default", None),
    "type": ("default", None),  # the older spelling
    "partial_rotary_factor": (1.0, None),
}


def read_source_config(source: Path, gguf_file: Optional[str] = None) -> Any:
    """Read the configuration of the checkpoint in the folder `source` and refuse what cannot become LLaDA.

    Raises:
        ValueError: for another kind of model, and for a field that LLaDA does not compute; both are named.
        OSError: if there is no configuration.
    """
    fields, _ = PretrainedConfig.get_config_dict(source, gguf_file=gguf_file)
    if not fields:
        raise OSError(f"`{source}` has no `config.json`; name the folder of a checkpoint, or a GGUF file in it.")
    model_type = fields.get("model_type")
    if model_type not in SUPPORTED_TYPES:
        reason = REFUSED_TYPES.get(model_type, "only the layers of Llama are known to be LLaDA's")
        raise ValueError(
            f"`{source}` has the `model_type` {model_type!r}, which cannot be converted: {reason}; choose a "
            f"checkpoint of type {' or '.join(SUPPORTED_TYPES)}."
        )
    config = CONFIG_MAPPING[model_type].from_dict(fields)
    _check_fields(config)
    return config


def llada_config(source: Any, tokenizer: PreTrainedTokenizerBase, num_rows: int) -> LLaDAConfig:
    """Translate a configuration that `read_source_config` let pass.

    Args:
        source: the Llama or Mistral configuration.
        tokenizer: the new model's tokenizer; it gives the token ids.
        num_rows: rows of the new embedding.
    """
    return LLaDAConfig(
        d_model=source.hidden_size,
        n_layers=source.num_hidden_layers,
        n_heads=source.num_attention_heads,
        n_kv_heads=source.num_key_value_heads,
        mlp_hidden_size=source.intermediate_size,
        vocab_size=len(tokenizer),
        embedding_size=num_rows,
        max_sequence_length=source.max_position_embeddings,
        rope_theta=_rope(source)["rope_theta"],
        rms_norm_eps=source.rms_norm_eps,
        weight_tying=source.tie_word_embeddings,
        init_fn="normal",
        init_std=source.initializer_range,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _check_fields(config: Any) -> None:
    fields = {name: (getattr(config, name, None), values) for name, values in SUPPORTED_VALUES.items()}
    fields |= {name: (_rope(config).get(name), values) for name, values in SUPPORTED_ROPE.items()}
    head_dim = config.hidden_size // config.num_attention_heads
    fields["head_dim"] = (getattr(config, "head_dim", None), (head_dim, None))
    for name, (value, supported) in fields.items():
        if value not in supported:
            raise ValueError(
                f"`{name}` of this {config.model_type} checkpoint must be {supported[0]!r}, got {value!r}: LLaDA does "
                "not compute that variant; choose another checkpoint."
            )


def _rope(config: Any) -> dict[str, Any]:
    """The rotary embedding's parameters: one mapping in transformers 5, two fields in 4.57."""
    if hasattr(config, "rope_parameters"):
        return config.rope_parameters
    return {"rope_theta": config.rope_theta, **(getattr(config, "rope_scaling", None) or {})}
