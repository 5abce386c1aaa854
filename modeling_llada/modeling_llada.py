"""The LLaDA model: noisy ids in, logits of the clean tokens out.

A pre-norm Llama without a causal mask and without a time input.

Shape legend: B batch, T positions given, S positions attended to, W positions returned, D width, H query heads.
"""

import difflib
import inspect
import math
import os
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from .batching_manager_llada import LLaDABatchedGenerationMixin
from .batching_results_llada import LLaDABatchOutput  # noqa: F401 - transformers 4.57 copies only what this file names
from .cache_llada import BlockCache, Window
from .canvas_llada import Canvas  # noqa: F401 - likewise
from .configuration_llada import SPLITS_VOCABULARY, LLaDAConfig
from .constraints_llada import Constraints  # noqa: F401 - likewise
from .continuous_batching_llada import generate_many
from .generation_config_llada import LLaDAGenerationConfig, check_files
from .generation_llada import CompiledCall  # noqa: F401 - likewise
from .prepacking_llada import prepacked_weights
from .speculation_llada import Speculation  # noqa: F401 - likewise
from .unmasking_llada import Proposer

logger = logging.get_logger(__name__)

# What tokenizers and trainers pass to every model, and what says nothing to this one.
IGNORED_KEYWORDS = ("cache_position", "num_items_in_batch", "token_type_ids")
# Keywords of transformers' attention functions that `LLaDABlock` does not pass itself; an implementation that is not
# listed here takes any.
ATTENTION_KEYWORDS: dict[str, tuple[str, ...]] = {"eager": (), "sdpa": (), "flex_attention": ("kernel_options",)}
# Where texts laid side by side in one row end, for flash attention.
PACKING_KEYWORDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# What this model cannot do as the caller means it, with the way out.
REFUSED_KEYWORDS = {
    "shift_labels": "labels are never shifted here; pass `labels`",
    **dict.fromkeys(PACKING_KEYWORDS, "separate packed texts by a 4-D bool `attention_mask`, or use flash attention"),
}
# What kind of mask an implementation takes, by the name under which transformers makes masks of that kind.
MASK_KINDS = {"eager": "dense", "sdpa": "dense", "flash_attention_2": "flash", "flex_attention": "flex"}
# Queries and keys in a block of a `BlockMask`.
FLEX_BLOCK_SIZE = 128


class LLaDARMSNorm(nn.Module):
    """Root-mean-square norm: normalised in float32, cast back, then scaled."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        # Without a weight, PyTorch normalises in float32 and casts back: the order of the official model.
        return self.weight * F.rms_norm(hidden_states, self.weight.shape, eps=self.eps)


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, in float32.

    The angles are a matmul of frequencies and positions: engines that run elementwise products in bfloat16 keep
    matmuls with float32 inputs exact, and positions above 256 are not bfloat16 numbers.

    Args:
        position_ids: int64 [batch or 1, seq].
        head_dim: width of a head, even.
        theta: base of the frequencies.

    Returns:
        Two tensors; float32 [batch or 1, 1, seq, head_dim], the second half repeating the first.
    """
    device = position_ids.device
    with torch.autocast(device_type=device.type, enabled=False):
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        frequencies = (1.0 / theta**exponents)[None, :, None].expand(position_ids.shape[0], -1, 1)
        angles = (frequencies @ position_ids[:, None, :].float()).transpose(1, 2)
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + head_dim / 2) of queries or keys by the tables' angles, in float32.

    Args:
        states: [batch, heads, seq, head_dim], any dtype.
        cos, sin: from `rotary_tables`.

    Returns:
        [batch, heads, seq, head_dim] in the dtype of `states`.
    """
    first, second = states.float().chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (states.float() * cos + turned * sin).to(states.dtype)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for `output_attentions`; the signature is that of transformers' attention functions."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def mask_kind(implementation: str) -> Optional[str]:
    """What kind of mask an attention implementation takes.

    Args:
        implementation: `config._attn_implementation`, registered with transformers' `AttentionInterface`.

    Returns:
        "dense" (4-D), "flash" (2-D, or lengths of packed texts) or "flex" (a `BlockMask`): the kind of mask that is
        registered under the name with transformers' `AttentionMaskInterface`. None if none of these is.
    """
    registered = ALL_MASK_ATTENTION_FUNCTIONS.get(implementation)
    for name, kind in MASK_KINDS.items():
        if registered is not None and registered is ALL_MASK_ATTENTION_FUNCTIONS.get(name):
            return kind
    return None


def prepare_mask(
    attention_mask: Union[Tensor, BlockMask], implementation: str, num_queries: int
) -> Union[Tensor, BlockMask]:
    """Bring a mask into the form that the attention implementation takes.

    Args:
        attention_mask: [batch, keys] with nonzero at valid positions, bool or a number; or 4-D and broadcastable to
            [batch, heads, queries, keys], bool (True attends) or float (added to the scores); or, for flex attention,
            a `BlockMask`.
        implementation: `config._attn_implementation`.
        num_queries: positions given to the model.

    Returns:
        For flash attention bool [batch, keys]; for flex attention a `BlockMask`; for every other implementation a
        4-D mask, bool unless a float mask came in.

    Raises:
        ValueError: for a mask of another rank, and one that the implementation cannot take.
    """
    kind = mask_kind(implementation)
    if not isinstance(attention_mask, Tensor):
        if kind != "flex":
            raise ValueError(
                f"`attention_mask` must be a tensor for {implementation!r} attention, got a "
                f'{type(attention_mask).__name__}; load the model with `attn_implementation="flex_attention"`.'
            )
        return attention_mask
    if attention_mask.dim() not in (2, 4):
        raise ValueError(
            f"`attention_mask` must be [batch, seq], or 4-D as attention takes it, got shape "
            f"{tuple(attention_mask.shape)}."
        )
    if attention_mask.dim() == 2:
        is_valid = attention_mask.bool()
        if kind == "flex":
            return padding_block_mask(is_valid, num_queries)
        return is_valid if kind == "flash" else is_valid[:, None, None, :]
    if kind == "flash":
        raise ValueError(
            f"`attention_mask` must be [batch, seq] for {implementation!r} attention, got shape "
            f"{tuple(attention_mask.shape)}; separate packed texts by `cu_seq_lens_q` and its companions, or load the "
            'model with `attn_implementation="sdpa"`.'
        )
    return _dense_block_mask(attention_mask, num_queries) if kind == "flex" else attention_mask


def padding_block_mask(is_valid: Tensor, num_queries: int) -> BlockMask:
    """A `BlockMask` by which every query attends to all valid keys of its row.

    Args:
        is_valid: bool [batch, keys].
        num_queries: queries of a row.
    """
    num_keys = is_valid.shape[1]
    # The kernels also ask for the keys that fill up the last block.
    is_valid = F.pad(is_valid, (0, -num_keys % FLEX_BLOCK_SIZE))
    has_valid = is_valid.unflatten(-1, (-1, FLEX_BLOCK_SIZE)).any(-1)  # [B, blocks of keys]
    num_query_blocks = -(-num_queries // FLEX_BLOCK_SIZE)
    return block_mask_from(
        has_valid[:, None].expand(-1, num_query_blocks, -1),
        lambda row, head, query, key: is_valid[row, key],
        (num_queries, num_keys),
    )


def block_mask_from(is_needed: Tensor, mask_mod: Any, lengths: tuple[int, int]) -> BlockMask:
    """A `BlockMask` from the blocks that it must look into, which never makes a tensor of queries times keys.

    Args:
        is_needed: whether any query of a block attends to any key of a block; bool [batch, query blocks, key blocks].
        mask_mod: (row, head, query, key) to whether the query attends to the key.
        lengths: number of queries and keys.
    """
    counts = is_needed.sum(-1, dtype=torch.int32)[:, None]
    indices = is_needed.int().argsort(dim=-1, descending=True, stable=True).int()[:, None]
    return BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=FLEX_BLOCK_SIZE, mask_mod=mask_mod, seq_lengths=lengths)


def _dense_block_mask(mask: Tensor, num_queries: int) -> BlockMask:
    if mask.dtype != torch.bool:
        raise ValueError(
            f"`attention_mask` must be bool or a `BlockMask` for flex attention if it is 4-D, got {mask.dtype}; pass "
            'True where a query attends to a key, or load the model with `attn_implementation="sdpa"`.'
        )
    mask = mask.expand(-1, -1, num_queries, -1)
    has_heads = mask.shape[1] > 1
    return create_block_mask(
        lambda row, head, query, key: mask[row, head if has_heads else 0, query, key],
        *(mask.shape[0], mask.shape[1] if has_heads else None, num_queries, mask.shape[3]),
        device=mask.device,
    )


def attend_from_window(
    attention: Any, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, is_valid: Tensor, **options: Any
) -> tuple[Tensor, Optional[Tensor]]:
    """Flash attention of a window's queries to all valid keys.

    With a 2-D mask, flash attention takes the queries for the last positions of their rows. A window lies anywhere, so
    the rows are laid side by side: all queries of the window, and the valid keys.

    Args:
        attention: a function that takes `PACKING_KEYWORDS`.
        module: the block that asks.
        query: [batch, heads, window, head_dim].
        key, value: [batch, key/value heads, keys, head_dim].
        is_valid: bool [batch, keys].
        options: passed on.

    Returns:
        [batch, window, heads, head_dim], and attention weights if the function has any.
    """
    num_rows, _, width, _ = query.shape
    num_keys = is_valid.sum(-1, dtype=torch.int32)
    flat_query = query.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]
    flat_key, flat_value = (states.transpose(1, 2)[is_valid].transpose(0, 1)[None] for states in (key, value))
    ends = {
        "cu_seq_lens_q": torch.arange(0, (num_rows + 1) * width, width, dtype=torch.int32, device=query.device),
        "cu_seq_lens_k": F.pad(num_keys.cumsum(0, dtype=torch.int32), (1, 0)),
        "max_length_q": width,
        "max_length_k": int(num_keys.max()),
    }
    attended, weights = attention(module, flat_query, flat_key, flat_value, None, **ends, **options)
    return attended.reshape(num_rows, width, *attended.shape[2:]), weights


class LLaDABlock(GradientCheckpointingLayer):
    """A pre-norm Transformer block: attention over all valid positions, then a gated feed-forward layer."""

    # transformers' attention functions are causal unless the module says that it is not.
    is_causal = False
    # Relatives of LLaDA place queries and keys otherwise.
    place_query = place_key = staticmethod(rotate)

    def __init__(self, config: LLaDAConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = self.rotary_dim = config.d_model // config.n_heads
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        self.attn_norm = LLaDARMSNorm(config.d_model, config.rms_norm_eps)
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * self.head_dim, bias=False)
        self.attn_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.ff_norm = LLaDARMSNorm(config.d_model, config.rms_norm_eps)
        # Residual outputs start smaller the deeper they stand; `_init_weights` sees one module at a time.
        self.attn_out.init_divisor = math.sqrt(2 * (layer_idx + 1))
        self.add_feed_forward()

    def add_feed_forward(self) -> None:
        """Make the layers that `feed_forward` runs."""
        width, hidden = self.config.d_model, self.config.mlp_hidden_size
        self.ff_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)
        self.ff_out.init_divisor = self.attn_out.init_divisor

    def feed_forward(self, normed: Tensor) -> Tensor:
        """The gated feed-forward layer; [batch, seq, d_model] to the same."""
        return self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Optional[Tensor] = None,
        window: Optional[Window] = None,
        cache: Optional[BlockCache] = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Apply the block.

        Args:
            hidden_states: [batch, seq, d_model].
            rotary: tables of `rotary_tables`.
            attention_mask: from `prepare_mask`.
            window: (start, end), or int64 [window]: positions whose output is needed; the others only serve as keys
                and values.
            cache: a `BlockCache` that takes in this pass's keys and values and returns those to attend to.
            kwargs: passed on to the attention function.

        Returns:
            Hidden states, [batch, seq or window, d_model], and attention weights if the implementation has any.
        """
        normed = self.attn_norm(hidden_states)
        query_input, query_rotary = normed, rotary
        if window is not None:
            columns = window if isinstance(window, Tensor) else slice(*window)
            hidden_states, query_input = hidden_states[:, columns], normed[:, columns]
            query_rotary = (rotary[0][:, :, columns], rotary[1][:, :, columns])
            if attention_mask is not None and attention_mask.dim() == 4 and attention_mask.shape[2] > 1:
                attention_mask = attention_mask[:, :, columns]
        heads = (-1, self.head_dim)
        query = self.place_query(self.q_proj(query_input).unflatten(-1, heads).transpose(1, 2), *query_rotary)
        key = self.place_key(self.k_proj(normed).unflatten(-1, heads).transpose(1, 2), *rotary)
        value = self.v_proj(normed).unflatten(-1, heads).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation
        attention = eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        options = {"scaling": self.head_dim**-0.5, "dropout": 0.0, **kwargs}
        is_flash = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
        if is_flash and query.shape[2] != key.shape[2]:
            attended, weights = attend_from_window(attention, self, query, key, value, attention_mask, **options)
        else:
            attended, weights = attention(self, query, key, value, attention_mask, **options)
        # As wide as the heads that are here: tensor parallelism leaves each process some of them.
        hidden_states = hidden_states + self.attn_out(attended.flatten(2))
        return hidden_states + self.feed_forward(self.ff_norm(hidden_states)), weights


class LLaDAPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of a LLaDA model: initialisation, saving, and what is supported."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDABlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    # `_supports_attention_backend` stays False: it invites servers that take the logits for those of the next token.
    # Saving copies the code files beside the weights; the config writes the whole `auto_map`.
    _auto_class = "AutoModel"
    # `labels` give the mean over one batch, so a plain `Trainer` divides it by its accumulation steps. The trainers of
    # this project's repository divide by the items of the whole step, and say so themselves.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, but refuse a folder with damaged files beside the weights.

        transformers ignores a `generation_config.json` that is cut off.

        Raises:
            ValueError: for a file that `check_files` refuses.
        """
        if pretrained_model_name_or_path is not None and os.path.isdir(pretrained_model_name_or_path):
            check_files(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize embedding and head as in transformers, and the config's `embedding_size` with them."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.embedding_size = embeddings.num_embeddings
        return embeddings

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Split a model over processes as transformers 5 does.

        Raises:
            ValueError: for several stages, because transformers looks for layers and head under Llama's names and has
                every stage return the logits of all positions; and for heads that the processes cannot share evenly.
        """
        sizes = {name: getattr(distributed_config, name, None) or 1 for name in ("pp_size", "tp_size")}
        if sizes["pp_size"] > 1:
            raise ValueError(
                f"`pp_size` must be 1, got {sizes['pp_size']}: transformers splits only models with Llama's module "
                'names into stages; pass `tp_size` or `fsdp_size`, or load with `device_map="auto"`.'
            )
        has_own_plan = isinstance(getattr(distributed_config, "tp_plan", None), dict)
        if model.config.n_kv_heads % sizes["tp_size"] and not has_own_plan:
            raise ValueError(
                f"`tp_size` must divide `n_kv_heads` ({model.config.n_kv_heads}), got {sizes['tp_size']}; use a "
                "divisor, or `fsdp_size`."
            )
        return super().maybe_distribute_model(model, distributed_config, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the weights of one module by `config.init_fn`.

        Source: the configured "mitchell" rule of the official code base: truncated normal with standard deviation
        1/sqrt(d_in), residual outputs divided by sqrt(2 (layer + 1)).
        """
        if isinstance(module, LLaDARMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            self._init_matrix(module.weight, getattr(module, "init_divisor", 1.0))

    def _init_matrix(self, weight: Tensor, divisor: float) -> None:
        is_normal, factor = self.config.init_fn == "normal", self.config.init_cutoff_factor
        std = self.config.init_std if is_normal else weight.shape[-1] ** -0.5 / divisor
        if is_normal and factor is None:
            nn.init.normal_(weight, std=std)
            return
        cutoff = std * (factor or 3.0)
        nn.init.trunc_normal_(weight, std=std, a=-cutoff, b=cutoff)


class LLaDAModel(LLaDAPreTrainedModel):
    """The Transformer: noisy ids to hidden states. It holds the head's weight too, as official checkpoints do."""

    _tied_weights_keys = {"transformer.ff_out.weight": "transformer.wte.weight"}
    block_class = LLaDABlock

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(self.block_class(config, i) for i in range(config.n_layers)),
                "ln_f": LLaDARMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": nn.Linear(config.d_model, config.embedding_size, bias=False),
            }
        )
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        """The head; it shares the embedding's weight if `weight_tying`."""
        return self.transformer.ff_out

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.transformer.ff_out = value

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        past_key_values: Optional[BlockCache] = None,
        use_cache: Optional[bool] = None,
        logits_window: Optional[Window] = None,
        output_hidden_states: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs: Any,
    ) -> Union[tuple, BaseModelOutput]:
        """Run the Transformer without the head.

        Args: those of `LLaDAModelLM.forward`, but for
            past_key_values: a `BlockCache` whose window holds the given positions; `attention_mask` then covers all
                its columns, and `position_ids` must be given.
            use_cache: None. Only fused heads of trainers for causal models call the Transformer with it.
            logits_window: (start, end), or int64 [window]: return these positions only; the last block computes no
                others.
            kwargs: those of `IGNORED_KEYWORDS` change nothing. Others go to the attention function, if the
                implementation takes any: to flash attention `PACKING_KEYWORDS`, the bounds of texts laid side by side,
                and to every function that the caller has registered with transformers. Positions that restart
                separate nothing.

        Returns:
            `BaseModelOutput`: `last_hidden_state` [batch, seq or end - start, d_model], `hidden_states` and
            `attentions`, tuples of full-length tensors if asked for.

        Raises:
            ValueError: for no or two inputs, a mask that the implementation does not take, `use_cache`, a keyword of
                `REFUSED_KEYWORDS`, and `PACKING_KEYWORDS` that are incomplete or stand beside a mask.
            TypeError: for an unknown keyword.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if use_cache is not None or (input_ids is None) == (inputs_embeds is None):
            raise self._wrong_call(use_cache)
        attention_options = self._attention_options(kwargs, attention_mask) if kwargs else {}
        hidden_states = self.transformer.wte(input_ids) if inputs_embeds is None else inputs_embeds
        length = attention_options.get("max_length_q", hidden_states.shape[1])
        if length > self.config.max_sequence_length and not torch.compiler.is_compiling():
            logger.warning_once(
                f"The sequence has {length} positions, more than `max_sequence_length` "
                f"({self.config.max_sequence_length}); the model was not trained on such lengths. Shorten the input."
            )
        if position_ids is None:
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
        rotary = rotary_tables(position_ids, self.transformer.blocks[0].rotary_dim, self.config.rope_theta)
        mask: Union[Tensor, BlockMask, None] = None
        if attention_mask is not None:
            mask = prepare_mask(attention_mask, self.config._attn_implementation, hidden_states.shape[1])
        # Block masks and lengths of packed texts are made for all queries.
        keeps_all = bool(output_hidden_states or output_attentions or "cu_seq_lens_q" in attention_options)
        keeps_all = keeps_all or not (mask is None or isinstance(mask, Tensor))

        # Only what is asked for is kept: the activations of a layer are freed with the next one.
        all_hidden_states: tuple[Tensor, ...] = (hidden_states,) if output_hidden_states else ()
        all_attentions: tuple[Optional[Tensor], ...] = ()
        last = len(self.transformer.blocks) - 1
        for index, block in enumerate(self.transformer.blocks):
            window = logits_window if index == last and not keeps_all else None
            hidden_states, attention = block(hidden_states, rotary, mask, window, past_key_values, **attention_options)
            if output_hidden_states and index < last:
                all_hidden_states += (hidden_states,)
            if output_attentions:
                all_attentions += (attention,)
        hidden_states = self.transformer.ln_f(hidden_states)
        if output_hidden_states:
            all_hidden_states += (hidden_states,)
        if keeps_all and logits_window is not None:
            columns = logits_window if isinstance(logits_window, Tensor) else slice(*logits_window)
            hidden_states = hidden_states[:, columns]
        output = BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=all_hidden_states if output_hidden_states else None,
            attentions=self._weights_or_warning(all_attentions) if output_attentions else None,
        )
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.to_tuple()

    def _wrong_call(self, use_cache: Optional[bool]) -> ValueError:
        if use_cache is not None:
            return ValueError(
                f"`use_cache` must be left out where the Transformer is called without its head, got {use_cache}. The "
                "fused head of TRL's trainers (`fused_lm_head=True`) calls it so; it shifts the labels and masks "
                "nothing, and a bidirectional model would only learn to copy its input. Train with a loss on masked "
                "tokens, as `LLaDASFTTrainer` and `LLaDAPretrainingTrainer` of this project's repository do."
            )
        return ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")

    def _attention_options(self, keywords: dict[str, Any], attention_mask: Any) -> dict[str, Any]:
        """The keywords that go to the attention function; None and what says nothing here are dropped."""
        options = {name: value for name, value in keywords.items() if name not in IGNORED_KEYWORDS}
        options = {name: value for name, value in options.items() if value is not None}
        known = ATTENTION_KEYWORDS.get(self.config._attn_implementation)
        for name in options:
            if name == "shift_labels" or (known is not None and name in REFUSED_KEYWORDS):
                raise ValueError(f"`{name}` is not available here: {REFUSED_KEYWORDS[name]}.")
            if known is not None and name not in known:
                arguments = [*inspect.signature(LLaDAModelLM.forward).parameters][1:-1]
                nearest = difflib.get_close_matches(name, arguments, n=1, cutoff=0.5)
                hint = f"did you mean `{nearest[0]}`?" if nearest else f"known arguments: {', '.join(arguments)}."
                raise TypeError(f"`forward` got an unexpected keyword argument `{name}`; {hint}")
        if mask_kind(self.config._attn_implementation) == "flash":
            _check_packing(options, attention_mask is not None)
        return options

    def _weights_or_warning(self, weights: tuple[Optional[Tensor], ...]) -> Optional[tuple[Optional[Tensor], ...]]:
        """The attention weights, or None and a warning where the implementation computed none."""
        if any(one is not None for one in weights):
            return weights
        logger.warning_once(
            f"`output_attentions=True` returns None: {self.config._attn_implementation!r} attention has no weights. "
            'Load the model with `attn_implementation="eager"`, or call `set_attn_implementation("eager")`.'
        )
        return None


class LLaDAModelLM(LLaDAPreTrainedModel, LLaDABatchedGenerationMixin):
    """LLaDA with its head: predicts every masked token at once, and generates text by diffusion (`generate`).

    Example:

    ```python
    >>> import torch
    >>> from modeling_llada import LLaDAConfig, LLaDAModelLM
    >>> config = LLaDAConfig(d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=64, vocab_size=100, mask_token_id=99,
    ...                      eos_token_id=0, pad_token_id=0)
    >>> model = LLaDAModelLM(config).eval()
    >>> noisy = torch.tensor([[5, 99, 7]])
    >>> model(noisy).logits.shape
    torch.Size([1, 3, 100])
    >>> model(noisy, logits_positions=noisy == 99).logits.shape
    torch.Size([1, 100])

    ```
    """

    backbone_class = LLaDAModel
    generation_config_class = LLaDAGenerationConfig
    # What `generate` needs of a model beside `forward`, see `LLaDAGenerationMixin`.
    proposer_class = Proposer
    prepacked_weights = prepacked_weights
    # As a method; the function takes any model that generates.
    generate_many = generate_many
    _tied_weights_keys = {"model.transformer.ff_out.weight": "model.transformer.wte.weight"}
    # The rest is `LLaDAConfig.base_model_tp_plan` and `base_model_pp_plan`.
    _tp_plan = {"model.transformer.ff_out": "colwise_gather_output"} if SPLITS_VOCABULARY else None
    _pp_plan = {"model.transformer.ff_out": (["hidden_states"], ["logits"])}

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = self.backbone_class(config)
        # A class name without a known head would fall back to the shifted loss of causal models.
        self.loss_type = "ForMaskedLM"
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.model.set_output_embeddings(value)

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        past_key_values: Optional[BlockCache] = None,
        use_cache: Optional[bool] = None,
        logits_positions: Optional[Tensor] = None,
        logits_window: Optional[Window] = None,
        logits_to_keep: Union[int, Tensor] = 0,
        output_hidden_states: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs: Any,
    ) -> Union[tuple, MaskedLMOutput]:
        """Predict the clean tokens from noisy ones.

        Args:
            input_ids: ids that may hold mask tokens; int64 [batch, seq]. Exactly one of it and `inputs_embeds`.
            attention_mask: see `prepare_mask`. None attends to everything.
            position_ids: position of each token; int64 [batch or 1, seq]. None is 0..seq-1 in every row.
            inputs_embeds: embeddings in place of ids; [batch, seq, d_model].
            labels: clean ids, -100 where nothing is to be learnt; int64 [batch, seq]. Labels are never shifted, and
                only masked positions count: the mean cross-entropy over labelled positions that hold the mask token
                (over all labelled ones if `inputs_embeds` is given). The weighted losses of training are those of
                this project's trainers.
            past_key_values: a `BlockCache` of `cache_llada.py`, as `generate` uses it (see `LLaDAModel.forward`).
                The caches of transformers hold a finished past, which a bidirectional model does not have.
            use_cache: not supported; None or False.
            logits_positions: score these positions only; bool [batch, seq]. `logits` is then [num_selected, vocab],
                rows in the order of the mask.
            logits_window: (start, end), or int64 [window]: nothing outside is scored, and the last block skips it.
                With `logits_positions`, it is (start, end), and the positions must lie inside.
            logits_to_keep: score this many positions at the end only, as in transformers; or these columns, int64
                [num_columns]. 0 scores all.
            output_hidden_states: also return the embeddings and every block's output (the last one normed).
            output_attentions: also return attention weights; None, with a warning, from an implementation without
                any, such as sdpa. Load the model with `attn_implementation="eager"` for them.
            return_dict: a tuple instead of an output object if False.
            kwargs: see `LLaDAModel.forward`.

        Returns:
            `MaskedLMOutput` with `loss` (if `labels`), `logits` [batch, seq, embedding_size] (or fewer, see above),
            `hidden_states`, `attentions`.

        Raises:
            ValueError: for labels of another shape or without any masked position (the model would learn to copy its
                input), labels together with partial logits, `logits_to_keep` beside another choice of positions,
                caches, and a keyword that cannot have its meaning.
            TypeError: for an unknown keyword.
        """
        if use_cache or not (past_key_values is None or hasattr(past_key_values, "set_window")):
            raise ValueError(
                "`use_cache=True` and the caches of transformers are not supported by `forward`: every position "
                "attends to every other one, so no key is final before the text is. Leave them out; `generate` has "
                '`cache="prefix"` and `cache="dual"`.'
            )
        keeps_some = isinstance(logits_to_keep, Tensor) or logits_to_keep != 0
        is_partial = logits_positions is not None or logits_window is not None
        if keeps_some or labels is not None:
            _check_selection(labels is not None, is_partial, logits_to_keep if keeps_some else None)
        if labels is None and not is_partial and past_key_values is None:
            self._warn_without_masks(input_ids)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            logits_window=logits_window,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if keeps_some:
            columns = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep, None)
            hidden_states = hidden_states[:, columns]
        if logits_positions is not None:
            # A model spread over devices ends on another one than it began.
            is_scored = logits_positions[:, slice(*logits_window or (None,))].to(hidden_states.device)
            hidden_states = hidden_states[is_scored]
        logits = self.model.transformer.ff_out(hidden_states)
        output = MaskedLMOutput(
            loss=None if labels is None else self._masked_loss(logits, labels, input_ids),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.to_tuple()

    def _warn_without_masks(self, input_ids: Optional[Tensor]) -> None:
        """Warn once if no id is the mask: whoever scores text so takes the logits for those of the next token."""
        mask_id = self.config.mask_token_id
        if input_ids is None or mask_id is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if input_ids.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        try:
            has_masks = bool((input_ids == mask_id).any())
        except RuntimeError:  # ids without values, as PyTorch's fake tensors
            return
        if not has_masks:
            logger.warning_once(
                f"`input_ids` hold no mask token (`mask_token_id`={mask_id}), and there are no `labels`: the logits "
                "say which token stands at each position, and are not scores of the next token. What scores text by "
                "them, such as `lm_eval --model hf`, gets meaningless numbers; use the model `llada` of this project's "
                "repository (`llada evaluate`)."
            )

    def _masked_loss(self, logits: Tensor, labels: Tensor, input_ids: Optional[Tensor]) -> Tensor:
        """Mean cross-entropy over labelled positions that hold the mask token, without any shift; float32 scalar."""
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                f"`labels` must have the shape of the input, {tuple(logits.shape[:2])}, got {tuple(labels.shape)}. "
                "PEFT's soft prompts lengthen the input, and the labels too only with "
                '`task_type="CAUSAL_LM"`; pass that.'
            )
        is_scored = labels != -100
        if input_ids is not None:
            is_scored = is_scored & (input_ids == self.config.mask_token_id)
        if not is_scored.any():
            raise ValueError(
                "`labels` were given, but no labelled position of `input_ids` holds the mask token "
                f"(`mask_token_id`={self.config.mask_token_id}): a bidirectional model would only learn to copy its "
                "input. Mask a share of it first, as `LLaDASFTTrainer` and `LLaDAPretrainingTrainer` of this project's "
                "repository do."
            )
        is_scored, labels = is_scored.to(logits.device), labels.to(logits.device)
        return F.cross_entropy(logits[is_scored].float(), labels[is_scored])


def _check_selection(has_labels: bool, is_partial: bool, logits_to_keep: Union[int, Tensor, None]) -> None:
    """Refuse what contradicts a choice of positions: labels, and a second choice."""
    if has_labels and (is_partial or logits_to_keep is not None):
        raise ValueError(
            "`labels` need the logits of all positions; pass either `labels`, or `logits_positions` and your own loss."
        )
    if is_partial and logits_to_keep is not None:
        raise ValueError("Pass either `logits_to_keep`, or `logits_positions` and `logits_window`.")
    if isinstance(logits_to_keep, int) and logits_to_keep < 0:
        raise ValueError(f"`logits_to_keep` must be at least 0, got {logits_to_keep}; 0 scores every position.")


def _check_packing(options: dict[str, Any], has_mask: bool) -> None:
    """Refuse lengths of packed texts that flash attention would not read."""
    given = [name for name in PACKING_KEYWORDS if name in options]
    if given and has_mask:
        raise ValueError(f"`{given[0]}` and `attention_mask` exclude each other; pass packed texts without a mask.")
    if given and len(given) < len(PACKING_KEYWORDS):
        missing = next(name for name in PACKING_KEYWORDS if name not in options)
        raise ValueError(f"`{given[0]}` needs `{missing}` beside it; pass {', '.join(PACKING_KEYWORDS)} together.")
