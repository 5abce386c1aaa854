"""The configuration of LLaDA: sizes and token ids, under the official field names."""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any, Optional

import transformers
from transformers import PretrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Where the Auto classes find the code beside a checkpoint.
AUTO_MAP = {
    "AutoConfig": "configuration_llada.LLaDAConfig",
    "AutoModel": "modeling_llada.LLaDAModelLM",
    "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    "AutoModelForMaskedLM": "modeling_llada.LLaDAModelLM",
}

# transformers 4 cannot split embedding and head over devices.
SPLITS_VOCABULARY = not transformers.__version__.startswith("4.")

# Official fields that change the computation, with the only values this model computes.
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False, None),
    "attention_dropout": (0.0, None),
    "attention_layer_norm": (False, None),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "embedding_dropout": (0.0, None),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "init_fn": ("mitchell", "normal"),
    "input_emb_norm": (False, None),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "residual_dropout": (0.0, None),
    "rope": (True,),
    "rope_full_precision": (True,),
    "rope_scaling": (None,),
    "scale_logits": (False, None),
}

# Hugging Face's names in `to_dict`, because PEFT and others read the dictionary. `config.json` keeps the official ones.
DICTIONARY_NAMES = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "tie_word_embeddings",
)
# Our names of the layers that PEFT's tables name for Llama. What scales or adapts the input of `down_proj` stands at
# the output of `up_proj`, which is the same: PEFT compares the ends of names, and the head is called `ff_out` too.
LLAMA_LAYERS = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "o_proj": "attn_out",
    "gate_proj": "ff_proj",
    "up_proj": "up_proj",
    "down_proj": "up_proj",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "norm": "ln_f",
}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(one) is kind for one in value)


# What a field must be, in words, and whether a value is that.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "True or False": lambda value: isinstance(value, bool),
    "True, False or None": lambda value: value is None or isinstance(value, bool),
    "a positive integer": lambda value: _is_integer(value) and value >= 1,
    "a positive integer or None": lambda value: value is None or (_is_integer(value) and value >= 1),
    "a positive number": lambda value: _is_number(value) and value > 0,
    "a positive number or None": lambda value: value is None or (_is_number(value) and value > 0),
    "a number of at least 0": lambda value: _is_number(value) and value >= 0,
    "an integer or None": lambda value: value is None or _is_integer(value),
    "an integer, a list of integers or None": lambda value: (
        value is None or _is_integer(value) or (bool(value) and _is_list_of(int)(value))
    ),
    "a list of names or None": lambda value: value is None or _is_list_of(str)(value),
}
# Fields of this model and those of transformers that it reads itself; switches are in `SUPPORTED_VALUES`.
FIELD_TYPES: dict[str, str] = {
    "architectures": "a list of names or None",
    "d_model": "a positive integer",
    "embedding_size": "a positive integer or None",
    "eos_token_id": "an integer, a list of integers or None",
    "init_cutoff_factor": "a positive number or None",
    "init_std": "a number of at least 0",
    "mask_token_id": "an integer or None",
    "max_sequence_length": "a positive integer",
    "mlp_hidden_size": "a positive integer or None",
    "mlp_ratio": "a positive integer",
    "multi_query_attention": "True, False or None",
    "n_heads": "a positive integer",
    "n_kv_heads": "a positive integer or None",
    "n_layers": "a positive integer",
    "pad_token_id": "an integer or None",
    "return_dict": "True or False",
    "rms_norm_eps": "a positive number",
    "rope_theta": "a positive number",
    "use_cache": "True, False or None",
    "vocab_size": "a positive integer",
    "weight_tying": "True or False",
}


# LLaDA and LLaDA-MoE, and iLLaDA.
MODEL_TYPES = ("llada", "illada")
# Configs of other architectures that share LLaDA's model type or code, by the name in `architectures`.
RELATIVES: dict[str, type["LLaDAConfig"]] = {}


class LLaDAConfig(PretrainedConfig):
    """Sizes, token ids and switches of a LLaDA model.

    The fields are those of the official `config.json`, which loads unchanged; fields that do not touch the
    computation (`precision`, `flash_attention`, `init_device` …) are kept as they are. The Hugging Face names
    (`hidden_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads`, `intermediate_size`,
    `max_position_embeddings`, `initializer_range`, `tie_word_embeddings`) read and write the same values, and `to_dict`
    has those that other libraries look for.

    Args:
        d_model: width of the residual stream.
        n_layers: number of Transformer blocks.
        n_heads: number of query heads; `d_model / n_heads` must be even.
        n_kv_heads: number of key/value heads, a divisor of `n_heads`. None is `n_heads`, or 1 with
            `multi_query_attention=True`.
        mlp_hidden_size: width of the feed-forward layer. None is `mlp_ratio * d_model`.
        mlp_ratio: see `mlp_hidden_size`.
        vocab_size: number of tokens.
        embedding_size: rows of the embedding, at least `vocab_size`, and columns of the logits. None is `vocab_size`.
        max_sequence_length: longest sequence seen in training, in tokens.
        rope_theta: base of the rotary embedding.
        rms_norm_eps: epsilon of the RMS norms.
        weight_tying: whether the head shares the embedding's weight.
        init_fn: `mitchell` (truncated normal with standard deviation 1/sqrt(d_in), residual outputs divided by
            sqrt(2 (layer + 1))) or `normal` (standard deviation `init_std`).
        init_std: standard deviation of `init_fn="normal"`.
        init_cutoff_factor: cut of the truncated normal, in standard deviations. None is 3 for `mitchell`, and no cut
            for `normal`.
        mask_token_id: id of the mask token. A default id outside a smaller vocabulary becomes None, with a warning.
        eos_token_id: id of the end-of-text token, or a list of them. As above.
        pad_token_id: id of the padding token. As above.
        use_cache: kept for the official file; generation chooses its cache by its own option.

    Raises:
        ValueError: for a field of a wrong type or range, sizes that do not fit together, token ids outside the
            vocabulary, two names of one field with two values, a switch whose value this model does not compute, and
            LLaDA-MoE checkpoints, which share the model type.

    Source: `config.json` of LLaDA-8B-Base and the paper (arXiv:2502.09992), Table 5. The defaults are LLaDA 8B's.
    """

    model_type = "llada"
    # Saving copies this file beside the config.
    _auto_class = "AutoConfig"
    code_map = AUTO_MAP
    field_types = FIELD_TYPES
    supported_values = SUPPORTED_VALUES
    dictionary_names = DICTIONARY_NAMES
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "initializer_range": "init_std",
        "tie_word_embeddings": "weight_tying",
        "hidden_act": "activation_type",
    }
    # How the modules of `LLaDAModel` are split over devices: within a layer, by whole parameters, and into stages, as
    # module -> (inputs, outputs). transformers itself does not make stages by them yet.
    base_model_tp_plan = {
        "transformer.blocks.*.q_proj": "colwise",
        "transformer.blocks.*.k_proj": "colwise",
        "transformer.blocks.*.v_proj": "colwise",
        "transformer.blocks.*.attn_out": "rowwise",
        "transformer.blocks.*.ff_proj": "colwise",
        "transformer.blocks.*.up_proj": "colwise",
        "transformer.blocks.*.ff_out": "rowwise",
        **({"transformer.wte": "embedding_rowwise"} if SPLITS_VOCABULARY else {}),
    }
    base_model_fsdp_plan = {
        "transformer.wte": "free_full_weight",
        "transformer.blocks.*": "free_full_weight",
        "transformer.ln_f": "keep_full_weight",
    }
    base_model_pp_plan = {
        "transformer.wte": (["input_ids"], ["inputs_embeds"]),
        "transformer.blocks": (["hidden_states", "rotary", "attention_mask"], ["hidden_states"]),
        "transformer.ln_f": (["hidden_states"], ["hidden_states"]),
    }

    def __init__(
        self,
        d_model: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: Optional[int] = None,
        mlp_hidden_size: Optional[int] = 12288,
        mlp_ratio: int = 4,
        vocab_size: int = 126464,
        embedding_size: Optional[int] = None,
        max_sequence_length: int = 4096,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        weight_tying: bool = False,
        activation_type: str = "silu",
        multi_query_attention: Optional[bool] = None,
        init_fn: str = "mitchell",
        init_std: float = 0.02,
        init_cutoff_factor: Optional[float] = None,
        mask_token_id: Optional[int] = 126336,
        eos_token_id: Optional[int] = 126081,
        pad_token_id: Optional[int] = 126081,
        use_cache: bool = False,
        **kwargs: Any,
    ):
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.mlp_hidden_size = mlp_hidden_size
        self.mlp_ratio = mlp_ratio
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.weight_tying = weight_tying
        self.activation_type = activation_type
        self.multi_query_attention = multi_query_attention
        self.init_fn = init_fn
        self.init_std = init_std
        self.init_cutoff_factor = init_cutoff_factor
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        kwargs.pop("auto_map", None)
        self._check_fields()
        self._check_names(kwargs)
        # transformers 5 would read `rope_scaling` first, whatever it is.
        self._refuse_variants(kwargs)
        # transformers 4 sets this to True when it is not passed, and the attribute map would carry it to ours.
        kwargs.setdefault("tie_word_embeddings", weight_tying)
        super().__init__(eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)
        # TRL looks for this on the instance.
        self.auto_map = dict(self.code_map)
        self._check_fields()
        self._refuse_unsupported()
        self._fill_in_sizes()
        self._check_sizes()
        self._drop_default_ids()
        self._check_token_ids()

    def __setattr__(self, key: str, value: Any) -> None:
        # An embedding of the vocabulary's size keeps it; the model is built with `embedding_size` rows.
        if key == "vocab_size" and self.__dict__.get("embedding_size") == self.__dict__.get("vocab_size"):
            super().__setattr__("embedding_size", value)
        super().__setattr__(key, value)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`. transformers would take the defaults where there is none, and build an 8B model.

        Raises:
            OSError: for a folder or repository without `config.json`.
        """
        fields, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not fields:
            raise OSError(
                f"`{pretrained_model_name_or_path}` has no `config.json`; download or copy the whole checkpoint."
            )
        return fields, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make the config of what the fields describe; `architectures` decides, for relatives share the model type."""
        names = config_dict.get("architectures")
        for name in names if isinstance(names, list) and cls is LLaDAConfig else ():
            if name in RELATIVES:
                return RELATIVES[name].from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        # transformers has its own error, an OSError, for what is not JSON.
        try:
            fields = super()._dict_from_json_file(json_file)
        except RecursionError:
            fields = None
        return fields if isinstance(fields, dict) else read_json_object(json_file)

    def to_dict(self) -> dict[str, Any]:
        """All fields, under the official names and those of `DICTIONARY_NAMES`."""
        # PEFT reads this right before it looks for the layers of an adapter that names none.
        _add_to_tables_of_peft()
        return {**super().to_dict(), **{name: getattr(self, name) for name in self.dictionary_names}}

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` holds: the fields under the official names only."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in self.dictionary_names}

    def _check_fields(self) -> None:
        """Refuse a field of a wrong type or range; fields that are not set yet are left out."""
        for name, expected in self.field_types.items():
            value = getattr(self, name, None)
            if hasattr(self, name) and not _CHECKS[expected](value):
                raise ValueError(f"`{name}` must be {expected}, got {value!r}.")

    def _check_names(self, given: dict[str, Any]) -> None:
        """Refuse two names of one field with two values."""
        defaults = inspect.signature(LLaDAConfig.__init__).parameters
        for alias in DICTIONARY_NAMES:
            name = self.attribute_map[alias]
            value = getattr(self, name)
            if alias in given and value not in (given[alias], defaults[name].default):
                raise ValueError(
                    f"`{name}` and `{alias}` are two names of one field, got {value!r} and {given[alias]!r}; pass one "
                    "of them."
                )

    def _refuse_unsupported(self) -> None:
        architectures = getattr(self, "architectures", None) or []
        if "LLaDAMoEModelLM" in architectures or getattr(self, "num_experts", None):
            raise ValueError(
                "This is a LLaDA-MoE checkpoint (`LLaDAMoEModelLM`), a mixture of experts that shares LLaDA's "
                '`model_type` "llada" but is another architecture; load it with the class `LLaDAMoEModelLM`.'
            )
        self._refuse_variants({})

    def _refuse_variants(self, given: dict[str, Any]) -> None:
        """Refuse a switch, in `given` or else set already, whose value this model does not compute."""
        for name, supported in self.supported_values.items():
            value = given.get(name, getattr(self, name, supported[0]))
            if value not in supported:
                raise ValueError(
                    f"`{name}` must be {' or '.join(repr(v) for v in supported)}, got {value!r}: this model does not "
                    "compute that variant, and loading the checkpoint anyway would give wrong logits."
                )

    def _fill_in_sizes(self) -> None:
        if self.n_kv_heads is None:
            self.n_kv_heads = 1 if self.multi_query_attention else self.n_heads
        if self.mlp_hidden_size is None:
            self.mlp_hidden_size = self.mlp_ratio * self.d_model
        if self.embedding_size is None:
            self.embedding_size = self.vocab_size

    def _check_sizes(self) -> None:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"`d_model` must be an even multiple of `n_heads` (rotary embeddings turn pairs), "
                f"got d_model={self.d_model}, n_heads={self.n_heads}."
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"`n_kv_heads` must divide `n_heads`, got n_kv_heads={self.n_kv_heads}, n_heads={self.n_heads}."
            )
        if self.multi_query_attention and self.n_kv_heads != 1:
            raise ValueError(
                f"`multi_query_attention=True` needs `n_kv_heads=1`, got {self.n_kv_heads}; pass one of them."
            )
        if self.embedding_size < self.vocab_size:
            raise ValueError(
                f"`embedding_size` must be at least `vocab_size` ({self.vocab_size}), got {self.embedding_size}."
            )

    def _drop_default_ids(self) -> None:
        """Unset the default ids that a smaller vocabulary does not have."""
        defaults = inspect.signature(LLaDAConfig.__init__).parameters
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and value == defaults[name].default and value >= self.embedding_size:
                setattr(self, name, None)
                logger.warning_once(
                    f"The default `{name}` ({value}) lies outside the vocabulary of {self.embedding_size} tokens and "
                    f"is unset; pass `{name}` of this model's tokenizer."
                )

    def _check_token_ids(self) -> None:
        for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < self.embedding_size:
                    raise ValueError(
                        f"`{name}` must lie in the vocabulary, 0..{self.embedding_size - 1}, got {token_id}; "
                        f"pass `{name}` of this model's tokenizer."
                    )

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json` with the full `auto_map`, whatever class was saved or loaded last."""
        self.auto_map = dict(self.code_map)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def read_json_object(file: Any) -> dict[str, Any]:
    """Read a file that must hold a JSON object.

    Raises:
        ValueError: for a file that does not, naming it.
        OSError: for a file that cannot be read.
    """
    try:
        with open(file, encoding="utf-8") as reader:
            fields = json.load(reader)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{file}` is not JSON ({error}); download or save it again.") from None
    if not isinstance(fields, dict):
        raise ValueError(f"`{file}` must hold a JSON object, got {_shortened(fields)}; download or save it again.")
    return fields


def read_weight_index(file: Any) -> dict[str, str]:
    """Read which file holds which tensor of a checkpoint in several files.

    Raises:
        ValueError: for an index without `metadata` or a `weight_map` from names to files beside it, naming it.
        OSError: for a file that cannot be read.
    """
    fields = read_json_object(file)
    weight_map = fields.get("weight_map")
    if not isinstance(fields.get("metadata"), dict) or not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"`{file}` must have a `weight_map` and `metadata`; download or save it again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or re.search(r"[\\/]|^\.*$", shard):
            raise ValueError(
                f"`{file}` must name a file beside it for every tensor, got {_shortened(shard)} for `{name}`; download "
                "or save it again."
            )
    return weight_map


def _shortened(value: Any) -> str:
    """A value in messages."""
    text = f"a {type(value).__name__}" if isinstance(value, (dict, list)) else repr(value)
    return text if len(text) < 80 else text[:80] + "…"


def _add_to_tables_of_peft() -> None:
    """If PEFT is in use, give its methods the layers that they adapt by default: Llama's, under our names.

    PEFT looks them up by model type in tables of its own, and has no other way to tell it.
    """
    constants = sys.modules.get("peft.utils.constants")
    for name, table in list(vars(constants).items()) if constants is not None else []:
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING") and "llama" in table:
            layers = [] if "FEEDFORWARD" in name else list(dict.fromkeys(LLAMA_LAYERS[one] for one in table["llama"]))
            for model_type in MODEL_TYPES:
                table.setdefault(model_type, layers)
