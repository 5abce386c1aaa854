"""What LLaDA's relatives share: checkpoints with Llama's tensor names, and rotary embeddings in the model's dtype.

In memory a relative has the modules of LLaDA under LLaDA's names, so that generation, adapters and sharding treat all
of them alike; files are read and written under the released names. The names are one table, used in both directions.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Optional

import torch
import transformers
from torch import Tensor
from transformers.modeling_utils import safe_open

from .modeling_llada import LLaDABlock, LLaDAModelLM

# Name in memory -> name in a file; {i} is the number of the layer. A name that ends with a dot stands for all below it.
NAMES = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.blocks.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "model.transformer.blocks.{i}.q_proj.weight": "model.layers.{i}.self_attn.q_proj.weight",
    "model.transformer.blocks.{i}.k_proj.weight": "model.layers.{i}.self_attn.k_proj.weight",
    "model.transformer.blocks.{i}.v_proj.weight": "model.layers.{i}.self_attn.v_proj.weight",
    "model.transformer.blocks.{i}.q_norm.weight": "model.layers.{i}.self_attn.q_norm.weight",
    "model.transformer.blocks.{i}.k_norm.weight": "model.layers.{i}.self_attn.k_norm.weight",
    "model.transformer.blocks.{i}.attn_out.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "model.transformer.blocks.{i}.ff_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "model.transformer.blocks.{i}.ff_proj.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "model.transformer.blocks.{i}.up_proj.weight": "model.layers.{i}.mlp.up_proj.weight",
    "model.transformer.blocks.{i}.ff_out.weight": "model.layers.{i}.mlp.down_proj.weight",
    "model.transformer.blocks.{i}.mlp.gate.weight": "model.layers.{i}.mlp.gate.weight",
    "model.transformer.blocks.{i}.mlp.expert_bias": "model.layers.{i}.mlp.expert_bias",
    "model.transformer.blocks.{i}.mlp.experts.": "model.layers.{i}.mlp.experts.",
    "model.transformer.blocks.{i}.shared_expert.": "model.layers.{i}.shared_expert.",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
HEAD_NAME = "model.transformer.ff_out.weight"
EMBEDDING_NAME = "model.transformer.wte.weight"
# transformers 5 converts names and stacks experts by rules that are registered for a class; 4 asks the class itself.
CONVERTS_BY_RULES = not transformers.__version__.startswith("4.")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")
_TO_MEMORY = {stored: name for name, stored in NAMES.items()}


def name_in_memory(name: str) -> str:
    """Give a tensor of a file the name that it has in the model; other names come back as they are.

    Example:
        >>> name_in_memory("model.layers.3.mlp.gate_proj.weight")
        'model.transformer.blocks.3.ff_proj.weight'
    """
    return _look_up(name, _TO_MEMORY)


def name_in_file(name: str) -> str:
    """Give a tensor of the model the name that it has in files: the inverse of `name_in_memory`.

    Example:
        >>> name_in_file("model.transformer.ff_out.weight")
        'lm_head.weight'
    """
    return _look_up(name, NAMES)


def _look_up(name: str, table: Mapping[str, str]) -> str:
    """Look a name up with its layer's number taken out, and put the number back."""
    layer = _LAYER.search(name)
    template = _LAYER.sub("{i}", name, count=1)
    found = table.get(template)
    if found is None:
        for start, replacement in table.items():
            if start.endswith(".") and template.startswith(start):
                found = replacement + template[len(start) :]
    if found is None:
        return name
    return found.replace("{i}", layer.group()) if layer else found


def rotate_in_dtype(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + width / 2) of queries or keys by the tables' angles, in the dtype of the heads.

    Args:
        states: [batch, heads, seq, head_dim], any dtype.
        cos, sin: from `rotary_tables`; [batch or 1, 1, seq, width]. Columns from `width` on are not turned.

    Returns:
        [batch, heads, seq, head_dim] in the dtype of `states`.
    """
    cos, sin = cos.to(states.dtype), sin.to(states.dtype)
    width = cos.shape[-1]
    first, second = states[..., :width].chunk(2, dim=-1)
    turned = states[..., :width] * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, states[..., width:]), dim=-1) if width < states.shape[-1] else turned


class RelativeBlock(LLaDABlock):
    """LLaDA's block with the rotary embedding of its relatives: tables and product in the dtype of the heads.

    LLaDA itself computes both in float32; in float32 there is no difference.
    """

    place_query = place_key = staticmethod(rotate_in_dtype)


class RelativeModelLM(LLaDAModelLM):
    """A relative of LLaDA with its head, whose files have Llama's names.

    A file must hold exactly the tensors of the config: nothing is initialised in place of a missing one, and nothing
    is left out. `from_pretrained` raises a ValueError that lists what differs.
    """

    def __init__(self, config: Any):
        if CONVERTS_BY_RULES:
            register_rules(type(self).__name__, self.expert_rules())
        super().__init__(config)

    @staticmethod
    def expert_rules() -> list[Any]:
        """Rules of transformers 5 for tensors that are more than renamed."""
        return []

    # transformers 4 calls these two.
    @staticmethod
    def _fix_state_dict_key_on_load(key: str) -> tuple[str, bool]:
        return name_in_memory(key), name_in_memory(key) != key

    @staticmethod
    def _fix_state_dict_key_on_save(key: str) -> tuple[str, bool]:
        return name_in_file(key), name_in_file(key) != key

    @classmethod
    def _load_pretrained_model(
        cls, model: Any, state_dict: Optional[dict], checkpoint_files: Optional[list[str]], *args: Any, **kwargs: Any
    ) -> Any:
        files = [str(file) for file in checkpoint_files or ()]
        is_quantized = getattr(model.config, "quantization_config", None) is not None
        if files and not is_quantized and all(file.endswith(".safetensors") for file in files):
            check_files(model, files)
        load: Any = super()._load_pretrained_model
        return load(model, state_dict, checkpoint_files, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save under the released names, a tied head included, as released files have it."""
        state_dict = kwargs.get("state_dict")
        if self.config.weight_tying and getattr(self, "hf_device_map", None) is None:
            state_dict = dict(self.state_dict() if state_dict is None else state_dict)
            if EMBEDDING_NAME in state_dict:
                state_dict[HEAD_NAME] = state_dict[EMBEDDING_NAME].detach().clone()
                kwargs["state_dict"] = state_dict
        super().save_pretrained(save_directory, *args, **kwargs)


def register_rules(class_name: str, expert_rules: list[Any]) -> None:
    """Tell transformers 5 how tensors in files of a class become those of the model, and back."""
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [
        WeightRenaming(
            source_patterns="^" + re.escape(stored).replace(r"\{i\}", r"(\d+)"),
            target_patterns="^" + re.escape(name).replace(r"\{i\}", r"(\d+)"),
        )
        for name, stored in NAMES.items()
    ]
    register_checkpoint_conversion_mapping(class_name, [*renamings, *expert_rules], overwrite=True)


def stored_shapes(model: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name every tensor of a model as files do, with its shape; stacked experts are one tensor each."""
    for name, tensor in model.state_dict().items():
        parts = expert_parts(name)
        if not parts:
            yield name_in_file(name), tuple(tensor.shape)
            continue
        num_experts, rows, columns = tensor.shape
        for expert in range(num_experts):
            for part in parts:
                yield part.format(expert), (rows // len(parts), columns)


def expert_parts(name: str) -> tuple[str, ...]:
    """For a stack of experts, the names of its parts in a file, `{}` being the expert; for other tensors nothing.

    Example:
        >>> expert_parts("model.transformer.blocks.3.mlp.experts.down_proj")
        ('model.layers.3.mlp.experts.{}.down_proj.weight',)
    """
    start, _, last = name.rpartition(".")
    if not start.endswith(".mlp.experts"):
        return ()
    parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
    return tuple(name_in_file(f"{start}.") + "{}." + f"{part}.weight" for part in parts)


def check_files(model: Any, files: list[str]) -> None:
    """Compare the tensors of safetensors files with what the model's config makes of it.

    Raises:
        ValueError: listing everything that is missing, unexpected or of another shape, and for a tied head that
            differs from the embedding.
    """
    expected = dict(stored_shapes(model))
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    if found.keys() == set(model.state_dict()):
        return  # saved under the names in memory
    head, embedding = name_in_file(HEAD_NAME), name_in_file(EMBEDDING_NAME)
    if model.config.weight_tying and head not in found:
        del expected[head]
    problems = [f"`{name}` is missing." for name in sorted(expected.keys() - found.keys())]
    problems += [f"Unexpected tensor `{name}`." for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            problems.append(f"`{name}` has shape {list(found[name])}, not {list(expected[name])}.")
    is_doubled = not problems and model.config.weight_tying and head in found
    if is_doubled and not torch.equal(_read(files, head), _read(files, embedding)):
        problems.append(f"`{head}` differs from `{embedding}`, but config.json ties them (`tie_word_embeddings`).")
    if problems:
        more = f" And {len(problems) - 20} more." if len(problems) > 20 else ""
        raise ValueError(
            f"The weights do not fit config.json: {' '.join(problems[:20])}{more} Use the config.json that belongs to "
            "these weights, or download both again."
        )


def _read(files: list[str], name: str) -> Tensor:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118
                return tensors.get_tensor(name)
    raise AssertionError("the name was found before")
