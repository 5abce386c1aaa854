"""The configurations of LLaDA's relatives, iLLaDA and LLaDA-MoE, under the field names of their released files.

LLaDA's own names (`d_model`, `n_layers` …) read and write the same values, so that all of LLaDA's code takes them.
"""

from typing import Any, Optional, Union

from transformers import PretrainedConfig
from transformers.utils import logging

from .configuration_llada import FIELD_TYPES, RELATIVES, SPLITS_VOCABULARY, LLaDAConfig

logger = logging.get_logger(__name__)

# LLaDA's name -> the released name of the same value.
ATTRIBUTE_MAP = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "init_std": "initializer_range",
    "weight_tying": "tie_word_embeddings",
    "activation_type": "hidden_act",
}
RELATIVE_FIELD_TYPES = {
    **{ATTRIBUTE_MAP.get(name, name): expected for name, expected in FIELD_TYPES.items()},
    "num_key_value_heads": "a positive integer",
}
for _name in ("mlp_hidden_size", "mlp_ratio", "multi_query_attention", "init_cutoff_factor"):
    del RELATIVE_FIELD_TYPES[_name]


# What transformers 5 alone can split; a norm of heads sees those of one process only.
EXPERTS_TP_PLAN = {
    "transformer.blocks.*.mlp.experts": "moe_tp_experts",
    "transformer.blocks.*.mlp.experts.gate_up_proj": "packed_colwise",
    "transformer.blocks.*.mlp.experts.down_proj": "rowwise",
    "transformer.blocks.*.q_norm": "replicated_with_grad_allreduce",
    "transformer.blocks.*.k_norm": "replicated_with_grad_allreduce",
}


class RelativeConfig(LLaDAConfig):
    """What the configurations of the relatives share; see `ILLaDAConfig` and `LLaDAMoEConfig`."""

    field_types = RELATIVE_FIELD_TYPES
    dictionary_names: Any = ()
    # Read by LLaDA's code and fixed here.
    init_fn = "normal"
    init_cutoff_factor = None
    multi_query_attention = None

    def complete(self, rope_scaling: Optional[dict[str, Any]], **kwargs: Any) -> None:
        """Take over the fields that transformers knows, and check all."""
        kwargs.pop("auto_map", None)
        rope_scaling = kwargs.pop("rope_parameters", None) or rope_scaling
        self._read_rope(rope_scaling)
        PretrainedConfig.__init__(self, tie_word_embeddings=self.tie_word_embeddings, **kwargs)
        self.auto_map = dict(self.code_map)
        self._check_fields()
        self._refuse_unsupported()
        self._check_sizes()
        self._check_token_ids()

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` holds; tying always, whose default is not the same in every version of transformers."""
        return {**super().to_diff_dict(), "tie_word_embeddings": self.tie_word_embeddings}

    def _read_rope(self, scaling: Optional[dict[str, Any]]) -> None:
        """Read what transformers 5 writes in place of `rope_theta`; any scaling is refused."""
        if scaling is None:
            return
        kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else scaling
        if kind != "default":
            raise ValueError(
                f"`rope_scaling` must be None or of type 'default', got {scaling!r}: this model does not compute that "
                "variant, and loading the checkpoint anyway would give wrong logits."
            )
        self.rope_theta = scaling.get("rope_theta", self.rope_theta)
        if "partial_rotary_factor" in scaling and hasattr(self, "partial_rotary_factor"):
            self.partial_rotary_factor = scaling["partial_rotary_factor"]

    def _refuse_unsupported(self) -> None:
        self._refuse_variants({})


class ILLaDAConfig(RelativeConfig):
    """Sizes and token ids of iLLaDA, under the names of its released `config.json`.

    Args:
        hidden_size: width of the residual stream.
        num_hidden_layers: number of Transformer blocks.
        num_attention_heads: number of query heads; `hidden_size / num_attention_heads` must be even.
        num_key_value_heads: number of key/value heads, a divisor of `num_attention_heads`. None is as many.
        intermediate_size: width of the feed-forward layer.
        vocab_size: rows of the embedding and columns of the logits.
        max_position_embeddings: longest sequence seen in training, in tokens.
        rope_theta: base of the rotary embedding.
        rope_scaling: None; see "Raises".
        rms_norm_eps: epsilon of the RMS norms.
        initializer_range: standard deviation of freshly initialised matrices.
        tie_word_embeddings: whether the head shares the embedding's weight.
        mask_token_id: id of the mask token, which no released file names.
        eos_token_id: id of the end-of-text token, or a list of them.
        pad_token_id: id of the padding token.

    Raises:
        ValueError: for a field of a wrong type or range, sizes that do not fit together, token ids outside the
            vocabulary, and a field whose value this model does not compute (`layer_norm_eps`, biases, dropout, a
            scaled rotary embedding).

    Source: iLLaDA-8B (arXiv:2606.25331). The defaults are its sizes; `rope_theta` and `rms_norm_eps` are Llama's.
    """

    model_type = "illada"
    attribute_map = {**ATTRIBUTE_MAP, "mlp_hidden_size": "intermediate_size"}
    code_map = {
        "AutoConfig": "configuration_llada_relatives.ILLaDAConfig",
        "AutoModel": "modeling_illada.ILLaDAForCausalLM",
        "AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM",
        "AutoModelForMaskedLM": "modeling_illada.ILLaDAForCausalLM",
    }
    field_types = {**RELATIVE_FIELD_TYPES, "intermediate_size": "a positive integer"}
    supported_values = {
        "attention_bias": (False, None),
        "attention_dropout": (0, None),
        "hidden_act": ("silu",),
        "layer_norm_eps": (None,),
        "mlp_bias": (False, None),
        "resid_pdrop": (0, None),
    }

    def __init__(
        self,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: Optional[int] = 8,
        intermediate_size: int = 14336,
        vocab_size: int = 155136,
        max_position_embeddings: int = 8192,
        rope_theta: float = 10000.0,
        rope_scaling: Optional[dict[str, Any]] = None,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        hidden_act: str = "silu",
        mask_token_id: Optional[int] = 5,
        eos_token_id: Union[int, list[int], None] = 2,
        pad_token_id: Optional[int] = 2,
        use_cache: bool = False,
        **kwargs: Any,
    ):
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.intermediate_size = intermediate_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.tie_word_embeddings = tie_word_embeddings
        self.hidden_act = hidden_act
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        self.complete(rope_scaling, eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)


class LLaDAMoEConfig(RelativeConfig):
    """Sizes, switches and token ids of LLaDA-MoE, under the names of its released `config.json`.

    Args:
        hidden_size: width of the residual stream.
        num_hidden_layers: number of Transformer blocks.
        num_attention_heads: number of query heads; `hidden_size / num_attention_heads` must be even.
        num_key_value_heads: number of key/value heads, a divisor of `num_attention_heads`. None is as many.
        num_experts: experts of a layer.
        num_experts_per_tok: experts that a token passes through, at most `num_experts`.
        expert_intermediate_size: width of an expert.
        shared_expert_intermediate_size: width of the expert that every token passes through; None for none.
        dense_intermediate_size: width of the feed-forward layer of dense layers.
        moe_layer_freq: for each layer 1 (experts) or 0 (dense); one number stands for all layers.
        qk_layernorm: whether every query and key head is normed.
        clip_qkv: largest absolute value of queries and keys after the norm; None for no limit.
        moe_router_enable_expert_bias: whether a bias for each expert is added to the router's probabilities.
        router_aux_loss_coef: weight of the load-balancing loss.
        output_router_logits: whether `forward` returns router logits, and adds the load-balancing loss to its loss.
        partial_rotary_factor: share of a head that the rotary embedding turns.
        vocab_size: rows of the embedding and columns of the logits.
        max_position_embeddings: longest sequence seen in training, in tokens.
        rope_theta: base of the rotary embedding.
        rope_scaling: None; see "Raises".
        rms_norm_eps: epsilon of the RMS norms.
        initializer_range: standard deviation of freshly initialised matrices.
        tie_word_embeddings: whether the head shares the embedding's weight.
        mask_token_id: id of the mask token, which no released file names. -1 is the released tokenizer's, or None where
            the vocabulary is smaller.
        eos_token_id: id of the end-of-text token, or a list of them.
        pad_token_id: id of the padding token.

    Raises:
        ValueError: for a field of a wrong type or range, sizes that do not fit together, token ids outside the
            vocabulary, and a field whose value this model does not compute.

    The released code ignores the fields in `IGNORED_FIELDS` and computes a softmax over all experts whose weights are
    not normalised; this model does the same and warns where one of them says something else.

    Source: LLaDA-MoE-7B-A1B (arXiv:2509.24389). The defaults are its values.
    """

    model_type = "llada"
    attribute_map = {**ATTRIBUTE_MAP, "mlp_hidden_size": "dense_intermediate_size"}
    code_map = {
        "AutoConfig": "configuration_llada_relatives.LLaDAMoEConfig",
        "AutoModel": "modeling_llada_moe.LLaDAMoEModelLM",
        "AutoModelForCausalLM": "modeling_llada_moe.LLaDAMoEModelLM",
        "AutoModelForMaskedLM": "modeling_llada_moe.LLaDAMoEModelLM",
    }
    field_types = {
        **RELATIVE_FIELD_TYPES,
        "num_experts": "a positive integer",
        "num_experts_per_tok": "a positive integer",
        "expert_intermediate_size": "a positive integer",
        "shared_expert_intermediate_size": "a positive integer or None",
        "dense_intermediate_size": "a positive integer",
        "qk_layernorm": "True or False",
        "clip_qkv": "a positive number or None",
        "moe_router_enable_expert_bias": "True or False",
        "router_aux_loss_coef": "a number of at least 0",
        "output_router_logits": "True or False",
        "partial_rotary_factor": "a positive number",
    }
    supported_values = {"attention_bias": (False, None), "attention_dropout": (0, None), "hidden_act": ("silu",)}
    # What the released code does not read, with the values that say what it computes.
    IGNORED_FIELDS = {
        "norm_topk_prob": (False, None),
        "moe_router_score_function": ("softmax", None),
        "routed_scaling_factor": (1, None),
        "router_num_group": (None,),
        "router_topk_group": (None,),
    }
    base_model_tp_plan = {
        **LLaDAConfig.base_model_tp_plan,
        **{f"transformer.blocks.*.shared_expert.{name}": "colwise" for name in ("gate_proj", "up_proj")},
        "transformer.blocks.*.shared_expert.down_proj": "rowwise",
        **(EXPERTS_TP_PLAN if SPLITS_VOCABULARY else {}),
    }

    def __init__(
        self,
        hidden_size: int = 2048,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 16,
        num_key_value_heads: Optional[int] = 16,
        num_experts: int = 64,
        num_experts_per_tok: int = 8,
        expert_intermediate_size: int = 1024,
        shared_expert_intermediate_size: Optional[int] = None,
        dense_intermediate_size: int = 8192,
        moe_layer_freq: Union[int, list[int]] = 1,
        qk_layernorm: bool = True,
        clip_qkv: Optional[float] = None,
        moe_router_enable_expert_bias: bool = False,
        router_aux_loss_coef: float = 0.01,
        output_router_logits: bool = False,
        partial_rotary_factor: float = 1.0,
        vocab_size: int = 157184,
        max_position_embeddings: int = 8192,
        rope_theta: float = 50000.0,
        rope_scaling: Optional[dict[str, Any]] = None,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        hidden_act: str = "silu",
        mask_token_id: Optional[int] = -1,
        eos_token_id: Union[int, list[int], None] = 156892,
        pad_token_id: Optional[int] = 156892,
        use_cache: bool = False,
        **kwargs: Any,
    ):
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.expert_intermediate_size = expert_intermediate_size
        self.shared_expert_intermediate_size = shared_expert_intermediate_size
        self.dense_intermediate_size = dense_intermediate_size
        self.moe_layer_freq: Any = moe_layer_freq
        self.qk_layernorm = qk_layernorm
        self.clip_qkv = clip_qkv
        self.moe_router_enable_expert_bias = moe_router_enable_expert_bias
        self.router_aux_loss_coef = router_aux_loss_coef
        self.output_router_logits = output_router_logits
        self.partial_rotary_factor = partial_rotary_factor
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.tie_word_embeddings = tie_word_embeddings
        self.hidden_act = hidden_act
        if mask_token_id == -1:
            mask_token_id = RELEASED_MASK_ID if isinstance(vocab_size, int) and vocab_size > RELEASED_MASK_ID else None
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        self.complete(rope_scaling, eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)
        self._warn_of_ignored_fields()

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return bool(self.moe_layer_freq[layer])

    @property
    def rotary_dim(self) -> int:
        """Columns of a head that the rotary embedding turns."""
        return int(self.hidden_size // self.num_attention_heads * self.partial_rotary_factor)

    def _check_sizes(self) -> None:
        super()._check_sizes()
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"`num_experts_per_tok` must be at most `num_experts` ({self.num_experts}), got "
                f"{self.num_experts_per_tok}."
            )
        layers = self.moe_layer_freq if isinstance(self.moe_layer_freq, list) else [self.moe_layer_freq]
        if any(value not in (0, 1) for value in layers) or len(layers) not in (1, self.num_hidden_layers):
            raise ValueError(
                f"`moe_layer_freq` must be 0 or 1 for each of the {self.num_hidden_layers} layers, got "
                f"{self.moe_layer_freq!r}."
            )
        if len(layers) == 1:
            self.moe_layer_freq = layers * self.num_hidden_layers
        if self.partial_rotary_factor > 1 or self.rotary_dim % 2 or not self.rotary_dim:
            raise ValueError(
                "`partial_rotary_factor` must leave an even number of columns of a head, and at most all, got "
                f"{self.partial_rotary_factor} of {self.hidden_size // self.num_attention_heads}."
            )

    def _warn_of_ignored_fields(self) -> None:
        for name, expected in self.IGNORED_FIELDS.items():
            value = getattr(self, name, None)
            if value not in expected:
                logger.warning_once(
                    f"`{name}` is {value!r} in this config; LLaDA-MoE's released code does not read it, and neither "
                    "does this model."
                )


# The mask of the released tokenizer.
RELEASED_MASK_ID = 156895
RELATIVES["LLaDAMoEModelLM"] = LLaDAMoEConfig
RELATIVES["ILLaDAForCausalLM"] = ILLaDAConfig
