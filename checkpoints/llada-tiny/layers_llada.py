"""The layers of LLaDA: norm, rotary embedding, attention masks, eager attention and the block.

Shape legend: B batch, T positions given, S positions attended to, W positions returned, D width, H query heads.
"""

import math
from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .cache_llada import BlockCache
from .configuration_llada import LLaDAConfig

Window = tuple[int, int]


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


def attention_mask_to_4d(attention_mask: Optional[Tensor]) -> Optional[Tensor]:
    """Bring a mask into the form that attention functions take.

    Args:
        attention_mask: None; [batch, keys] with nonzero at valid positions, bool or a number; or already
            4-D and broadcastable to [batch, heads, queries, keys], bool (True attends) or float (added to the scores).

    Returns:
        None, or a 4-D mask; bool unless a float mask came in.

    Raises:
        ValueError: for a mask of another rank.
    """
    if attention_mask is None or attention_mask.dim() == 4:
        return attention_mask
    if attention_mask.dim() != 2:
        raise ValueError(
            f"`attention_mask` must be [batch, seq], or 4-D as attention takes it, got shape "
            f"{tuple(attention_mask.shape)}."
        )
    return attention_mask[:, None, None, :].bool()


class LLaDABlock(GradientCheckpointingLayer):
    """A pre-norm Transformer block: attention over all valid positions, then a gated feed-forward layer."""

    # transformers' attention functions are causal unless the module says that it is not.
    is_causal = False

    def __init__(self, config: LLaDAConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.d_model // config.n_heads
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        self.attn_norm = LLaDARMSNorm(config.d_model, config.rms_norm_eps)
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * self.head_dim, bias=False)
        self.attn_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.ff_norm = LLaDARMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_proj = nn.Linear(config.d_model, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, config.d_model, bias=False)
        # Residual outputs start smaller the deeper they stand; `_init_weights` sees one module at a time.
        self.attn_out.init_divisor = self.ff_out.init_divisor = math.sqrt(2 * (layer_idx + 1))

    def forward(
        self,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Optional[Tensor] = None,
        window: Optional[Window] = None,
        cache: Optional[BlockCache] = None,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Apply the block.

        Args:
            hidden_states: [batch, seq, d_model].
            rotary: tables of `rotary_tables`.
            attention_mask: None, bool or additive, broadcastable to [batch, heads, seq, seq].
            window: (start, end): positions that somebody reads afterwards; the others only serve as keys and values.
            cache: a `BlockCache` that takes in this pass's keys and values and returns those to attend to.

        Returns:
            Hidden states, [batch, seq or end - start, d_model], and attention weights if the implementation has any.
        """
        normed = self.attn_norm(hidden_states)
        query_input, query_rotary = normed, rotary
        if window is not None:
            start, end = window
            hidden_states, query_input = hidden_states[:, start:end], normed[:, start:end]
            query_rotary = (rotary[0][:, :, start:end], rotary[1][:, :, start:end])
            if attention_mask is not None and attention_mask.shape[2] > 1:
                attention_mask = attention_mask[:, :, start:end]
        query = rotate(self._split_heads(self.q_proj(query_input)), *query_rotary)
        key = rotate(self._split_heads(self.k_proj(normed)), *rotary)
        value = self._split_heads(self.v_proj(normed))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attended, weights = self._attention()(
            self, query, key, value, attention_mask, scaling=self.head_dim**-0.5, dropout=0.0
        )
        hidden_states = hidden_states + self.attn_out(attended.reshape(*hidden_states.shape))
        normed = self.ff_norm(hidden_states)
        return hidden_states + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed)), weights

    def _split_heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _attention(self) -> Callable:
        implementation = self.config._attn_implementation
        return eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
