"""Fit LLaDA and an autoregressive model of the same shape, on the same tokens in the same order.

Shape legend: B batch, T sequence length.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llada_core.diffusion import (
    add_noise,
    draw_uniform,
    low_discrepancy_noise_levels,
    row_seed,
    weighted_cross_entropy,
)
from modeling_llada import LLaDAConfig, LLaDAModelLM

KINDS = ("llada", "autoregressive")
HEAD_WIDTH = 32
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: width of the residual stream, a multiple of 32, and number of blocks."""

    width: int
    num_layers: int

    @property
    def mlp_width(self) -> int:
        """Width of the feed-forward layer: about 8/3 of the residual stream's, a multiple of 16."""
        return self.width * 8 // 3 // 16 * 16

    @property
    def num_block_parameters(self) -> int:
        """Parameters of all blocks and norms: those that are neither embedding nor head."""
        block = 4 * self.width**2 + 3 * self.width * self.mlp_width + 2 * self.width
        return self.num_layers * block + self.width


@dataclass(frozen=True)
class FitOptions:
    """The optimiser, the same for every model: AdamW, linear warmup, cosine to a tenth, clipped gradients."""

    learning_rate: float = 2e-3
    warmup_share: float = 0.05
    final_share: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    max_gradient_norm: float = 1.0

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate of a step in 0..num_steps-1."""
        warmup = min(1.0, (step + 1) / max(1.0, self.warmup_share * num_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        return self.learning_rate * warmup * (self.final_share + (1.0 - self.final_share) * cosine)


def make_model(kind: str, shape: Shape, vocab_size: int, max_length: int, mask_id: int, pad_id: int, seed: int) -> Any:
    """A new model of one of `KINDS`: the same blocks and tied embeddings, attending both ways or to the left.

    Both draw their matrices with standard deviation 1/sqrt(d_in) or, for Llama, 1/sqrt(width), as its rule has one.

    Raises:
        ValueError: for another kind.
    """
    torch.manual_seed(seed)
    num_heads = shape.width // HEAD_WIDTH
    shared: dict[str, Any] = {"vocab_size": vocab_size, "pad_token_id": pad_id, "rms_norm_eps": 1e-5}
    shared |= {"rope_theta": ROPE_THETA, "attn_implementation": "eager"}
    if kind == "llada":
        shared |= {"d_model": shape.width, "n_layers": shape.num_layers, "n_heads": num_heads, "weight_tying": True}
        shared |= {"mlp_hidden_size": shape.mlp_width, "max_sequence_length": max_length}
        return LLaDAModelLM(LLaDAConfig(mask_token_id=mask_id, eos_token_id=pad_id, **shared))
    if kind == "autoregressive":
        shared |= {"hidden_size": shape.width, "num_hidden_layers": shape.num_layers, "tie_word_embeddings": True}
        shared |= {"num_attention_heads": num_heads, "intermediate_size": shape.mlp_width}
        shared |= {"max_position_embeddings": max_length, "initializer_range": shape.width**-0.5}
        return LlamaForCausalLM(LlamaConfig(bos_token_id=None, eos_token_id=None, **shared))
    raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")


def is_diffusion(model: Any) -> bool:
    """Whether a model is a LLaDA."""
    return model.config.model_type == "llada"


def diffusion_loss(model: Any, ids: Tensor, seed: int, step: int) -> Tensor:
    """LLaDA's loss with exact counts (Eq. 6), the noise levels of the batch spread evenly; nats per token.

    The first token of a row, which every row is given, is never masked.

    Args:
        model: a LLaDA.
        ids: rows of equal length; int64 [batch, seq].
        seed, step: what the noise depends on.
    """
    generator = torch.Generator().manual_seed(row_seed(seed, step, 0))
    offset = float(draw_uniform((1,), generator))
    levels = low_discrepancy_noise_levels(torch.arange(len(ids)), offset)
    is_maskable = torch.ones_like(ids, dtype=torch.bool)
    is_maskable[:, 0] = False
    uniforms = draw_uniform(tuple(ids.shape), generator)
    noisy = add_noise(ids, is_maskable, model.config.mask_token_id, levels, uniforms, exact_count=True)
    logits = model(noisy.input_ids, logits_positions=noisy.is_masked).logits
    losses = F.cross_entropy(logits.float(), ids[noisy.is_masked], reduction="none")
    return weighted_cross_entropy(losses, noisy.is_masked, noisy.weights).sum() / is_maskable.sum()


def autoregressive_loss(model: Any, ids: Tensor, seed: int, step: int) -> Tensor:
    """Cross-entropy of every token but the first given those before it; nats per token. It draws nothing."""
    logits = model(ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


LOSSES = {"llada": diffusion_loss, "autoregressive": autoregressive_loss}


def fit(
    model: Any,
    batches: Iterable[Tensor],
    num_steps: int,
    seed: int,
    options: FitOptions,
    after_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train in place, in bfloat16 autocast.

    Args:
        model: as `make_model` makes it.
        batches: at least `num_steps` batches of rows of equal length; int64 [batch, seq] each.
        num_steps: optimizer steps.
        seed: of the noise.
        options: of the optimiser.
        after_step: called with the number of steps done and the step's loss.
    """
    loss_of = LOSSES["llada" if is_diffusion(model) else "autoregressive"]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas)
    for step, ids in zip(range(num_steps), batches):
        for group in optimizer.param_groups:
            group["lr"] = options.rate(step, num_steps)
        model.train()
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = loss_of(model, ids, seed, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_gradient_norm)
        optimizer.step()
        model.eval()
        after_step(step + 1, loss.item())
