"""The names of LLaDA's weights, official and Llama's: one table, read in both directions."""

import re

# Official name, Llama's name; {i} is the block. Both hold the same matrix, element by element.
NAMES = (
    ("model.transformer.wte.weight", "model.embed_tokens.weight"),
    ("model.transformer.blocks.{i}.attn_norm.weight", "model.layers.{i}.input_layernorm.weight"),
    ("model.transformer.blocks.{i}.q_proj.weight", "model.layers.{i}.self_attn.q_proj.weight"),
    ("model.transformer.blocks.{i}.k_proj.weight", "model.layers.{i}.self_attn.k_proj.weight"),
    ("model.transformer.blocks.{i}.v_proj.weight", "model.layers.{i}.self_attn.v_proj.weight"),
    ("model.transformer.blocks.{i}.attn_out.weight", "model.layers.{i}.self_attn.o_proj.weight"),
    ("model.transformer.blocks.{i}.ff_norm.weight", "model.layers.{i}.post_attention_layernorm.weight"),
    ("model.transformer.blocks.{i}.ff_proj.weight", "model.layers.{i}.mlp.gate_proj.weight"),
    ("model.transformer.blocks.{i}.up_proj.weight", "model.layers.{i}.mlp.up_proj.weight"),
    ("model.transformer.blocks.{i}.ff_out.weight", "model.layers.{i}.mlp.down_proj.weight"),
    ("model.transformer.ln_f.weight", "model.norm.weight"),
    ("model.transformer.ff_out.weight", "lm_head.weight"),
)
_TO_LLADA = {llama: official for official, llama in NAMES}
_TO_LLAMA = dict(NAMES)
_BLOCK = re.compile(r"(?<=\.)\d+(?=\.)")


def llada_name(name: str) -> str:
    """Give a tensor its official name.

    Args:
        name: Llama's name, e.g. `model.layers.3.mlp.up_proj.weight`.

    Returns:
        The official name. Any other name (an official one, a bias, a buffer) comes back as it is.

    Example:
        >>> llada_name("model.layers.3.mlp.gate_proj.weight")
        'model.transformer.blocks.3.ff_proj.weight'
    """
    return _look_up(name, _TO_LLADA)


def llama_name(name: str) -> str:
    """Give a tensor Llama's name: the inverse of `llada_name`, with other names as they are.

    Example:
        >>> llama_name("model.transformer.ff_out.weight")
        'lm_head.weight'
    """
    return _look_up(name, _TO_LLAMA)


# What gives a tensor its name in each layout.
LAYOUTS = {"official": llada_name, "llama": llama_name}


def _look_up(name: str, table: dict[str, str]) -> str:
    """Look a name up with its block's number taken out, and put the number back."""
    block = _BLOCK.search(name)
    renamed = table.get(_BLOCK.sub("{i}", name, count=1), name)
    return renamed.replace("{i}", block.group()) if block else renamed
