"""LLaDA-MoE: LLaDA with a mixture of experts in place of the feed-forward layer.

The layers that it shares with LLaDA are LLaDA's; what differs stands here: norms of the heads, a rotary embedding of
part of a head, the router, the experts, and the load-balancing loss.

Shape legend: N tokens of the batch, D width, E experts, k experts per token, I width of an expert.

Source: LLaDA-MoE-7B-A1B (arXiv:2509.24389).
"""

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from .configuration_llada_relatives import LLaDAMoEConfig
from .llama_layout_llada import CONVERTS_BY_RULES, RelativeBlock, RelativeModelLM, rotate_in_dtype
from .modeling_llada import LLaDAModel, LLaDAPreTrainedModel, LLaDARMSNorm

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

if CONVERTS_BY_RULES:
    from transformers.integrations.moe import use_experts_implementation
else:

    def use_experts_implementation(experts_class: type) -> type:
        """transformers 4 has no other ways to run experts."""
        return experts_class


# Where the routers of a call put their logits, if they are asked for.
_ROUTER_LOGITS: ContextVar[Optional[list[Tensor]]] = ContextVar("router_logits", default=None)


@dataclass
class LLaDAMoEOutput(MaskedLMOutput):
    """What `LLaDAMoEModelLM.forward` returns: that of LLaDA, and with `output_router_logits` two more fields.

    Args:
        aux_loss: the load-balancing loss, not weighted; float32 scalar.
        router_logits: of every layer that has experts; [N, E] each.
    """

    aux_loss: Optional[Tensor] = None
    router_logits: Optional[tuple[Tensor, ...]] = None


class LLaDAMoEMLP(nn.Module):
    """A gated feed-forward layer, as an expert or shared by all tokens."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(states)) * self.up_proj(states))


class _Experts:
    """The plain way to run experts: one after the other, each on its tokens."""

    num_experts: int

    def forward(self, states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum the experts' outputs, each times its weight, in the order of the experts and in the model's dtype.

        Args:
            states: [N, D].
            top_k_index: experts of each token; int64 [N, k].
            top_k_weights: [N, k].

        Returns:
            [N, D].
        """
        output, experts = torch.zeros_like(states), self.functions()
        for expert in top_k_index.unique().tolist():
            token, place = (top_k_index == expert).nonzero(as_tuple=True)
            weighted = experts[expert](states[token]) * top_k_weights[token, place, None]
            output.index_add_(0, token, weighted.to(output.dtype))
        return output

    def functions(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """What each expert computes; [tokens, D] to the same."""
        raise NotImplementedError


@use_experts_implementation
class StackedExperts(_Experts, nn.Module):
    """Experts whose matrices are stacked, so that transformers 5 may run them in one grouped product."""

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        self.num_experts = config.num_experts
        width, hidden = config.hidden_size, config.expert_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * hidden, width))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, hidden))
        self.act_fn = nn.SiLU()

    def forward(self, states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return _Experts.forward(self, states, top_k_index, top_k_weights)

    def functions(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """What each expert computes; [tokens, D] to the same."""

        def run(gate_up: Tensor, down: Tensor, states: Tensor) -> Tensor:
            gate, up = F.linear(states, gate_up).chunk(2, dim=-1)
            return F.linear(F.silu(gate) * up, down)

        # Taken apart at once: the gradient of an indexed stack would be as large as the stack for every expert.
        return [
            functools.partial(run, *matrices) for matrices in zip(self.gate_up_proj.unbind(), self.down_proj.unbind())
        ]


class ListedExperts(_Experts, nn.ModuleList):
    """Experts that are modules of their own, for transformers 4, which cannot stack matrices of a checkpoint."""

    def __init__(self, config: LLaDAMoEConfig):
        width, hidden = config.hidden_size, config.expert_intermediate_size
        super().__init__(LLaDAMoEMLP(width, hidden) for _ in range(config.num_experts))
        self.num_experts = config.num_experts

    def functions(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """What each expert computes; [tokens, D] to the same."""
        return list(self)


class LLaDAMoELayer(nn.Module):
    """A router and its experts.

    The router's probabilities are a softmax over all experts, in float32. The weights of the chosen ones are not
    normalised, and hold the expert bias if there is one, as in the released code.
    """

    expert_bias: Optional[Tensor]

    def __init__(self, config: LLaDAMoEConfig):
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = StackedExperts(config) if CONVERTS_BY_RULES else ListedExperts(config)
        has_bias = config.moe_router_enable_expert_bias
        self.register_buffer("expert_bias", torch.zeros(config.num_experts) if has_bias else None)

    def forward(self, normed: Tensor) -> Tensor:
        """Pass every token through its experts; [batch, seq, D] to the same."""
        states = normed.reshape(-1, normed.shape[-1])
        router_logits = self.gate(states)
        if (collected := _ROUTER_LOGITS.get()) is not None:
            collected.append(router_logits)
        weights, experts = self.route(router_logits)
        return self.experts(states, experts, weights.to(states.dtype)).view_as(normed)

    def route(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each token's experts; weights, float32 [N, k], and experts, int64 [N, k], the heaviest first."""
        probabilities = router_logits.softmax(-1, dtype=torch.float32)
        if self.expert_bias is not None:
            probabilities = probabilities + self.expert_bias
        return probabilities.topk(self.num_experts_per_tok, dim=-1)


class LLaDAMoEBlock(RelativeBlock):
    """LLaDA's block with normed heads and, in most layers, experts."""

    def __init__(self, config: LLaDAMoEConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.rotary_dim, self.clip_qkv = config.rotary_dim, config.clip_qkv
        has_norms, size, eps = config.qk_layernorm, self.head_dim, config.rms_norm_eps
        self.q_norm = LLaDARMSNorm(size, eps) if has_norms else nn.Identity()
        self.k_norm = LLaDARMSNorm(size, eps) if has_norms else nn.Identity()

    def place_query(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries, normed and clipped, at their positions; [batch, heads, seq, head_dim] to the same."""
        return rotate_in_dtype(self._clip(self.q_norm(states)), cos, sin)

    def place_key(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys, as `place_query`."""
        return rotate_in_dtype(self._clip(self.k_norm(states)), cos, sin)

    def _clip(self, states: Tensor) -> Tensor:
        return states if self.clip_qkv is None else states.clamp(-self.clip_qkv, self.clip_qkv)

    def add_feed_forward(self) -> None:
        """Make the layers that `feed_forward` runs."""
        config = self.config
        self.mlp = self.shared_expert = None
        if not config.has_experts(self.layer_idx):
            super().add_feed_forward()
            return
        self.mlp = LLaDAMoELayer(config)
        if config.shared_expert_intermediate_size is not None:
            self.shared_expert = LLaDAMoEMLP(config.hidden_size, config.shared_expert_intermediate_size)

    def feed_forward(self, normed: Tensor) -> Tensor:
        """The experts' sum, with the shared expert's; or the dense layer. [batch, seq, D] to the same."""
        if self.mlp is None:
            return super().feed_forward(normed)
        output = self.mlp(normed)
        return output if self.shared_expert is None else output + self.shared_expert(normed)


class LLaDAMoEPreTrainedModel(LLaDAPreTrainedModel):
    """What transformers needs to know of a LLaDA-MoE model."""

    config_class: Any = LLaDAMoEConfig
    _no_split_modules = ["LLaDAMoEBlock"]
    # transformers looks once, and would inherit the answer that it found for LLaDA.
    _can_set_experts_implementation_cached_value = CONVERTS_BY_RULES

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StackedExperts):
            for weight in (module.gate_up_proj, module.down_proj):
                nn.init.normal_(weight, std=self.config.initializer_range)
        elif isinstance(module, LLaDAMoELayer) and module.expert_bias is not None:
            nn.init.zeros_(module.expert_bias)
        else:
            super()._init_weights(module)


class LLaDAMoEModel(LLaDAMoEPreTrainedModel, LLaDAModel):
    """LLaDA-MoE's Transformer: noisy ids to hidden states."""

    block_class = LLaDAMoEBlock


class LLaDAMoEModelLM(LLaDAMoEPreTrainedModel, RelativeModelLM):
    """LLaDA-MoE with its head; everything that takes a `LLaDAModelLM` takes it."""

    backbone_class = LLaDAMoEModel

    @staticmethod
    def expert_rules() -> list[Any]:
        """Rules by which transformers 5 stacks the experts of a file, and takes them apart when saving."""
        from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

        gates = ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"]
        stack = MergeModulelist(dim=0)
        return [
            WeightConverter(gates, "mlp.experts.gate_up_proj", operations=[stack, Concatenate(dim=1)]),
            WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[stack]),
        ]

    def forward(self, *args: Any, output_router_logits: Optional[bool] = None, **kwargs: Any) -> Any:
        """Predict the clean tokens from noisy ones, as `LLaDAModelLM.forward`, whose arguments it takes.

        Args:
            args: see there.
            output_router_logits: also return the routers' logits and the load-balancing loss, and with `labels` add
                `router_aux_loss_coef` times it to the loss. None is the config's choice.
            kwargs: see there.

        Returns:
            `LLaDAMoEOutput`, or a tuple.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        if not output_router_logits:
            return super().forward(*args, **kwargs)
        collected: list[Tensor] = []
        token = _ROUTER_LOGITS.set(collected)
        is_dict, kwargs["return_dict"] = kwargs.get("return_dict"), True
        try:
            output: Any = super().forward(*args, **kwargs)
        finally:
            _ROUTER_LOGITS.reset(token)
        attention_mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        aux_loss = self.balance_loss(tuple(collected), attention_mask)
        if output.loss is not None and aux_loss is not None:
            output["loss"] = output.loss + self.config.router_aux_loss_coef * aux_loss.to(output.loss.device)
        output = LLaDAMoEOutput(**output, aux_loss=aux_loss, router_logits=tuple(collected))
        return output if (self.config.return_dict if is_dict is None else is_dict) else output.to_tuple()

    def balance_loss(self, router_logits: tuple[Tensor, ...], attention_mask: Optional[Tensor]) -> Optional[Tensor]:
        """The load-balancing loss over real tokens: E times the sum over experts of f P.

        f is the share of tokens that choose the expert (it adds up to k), P the mean of its probability.

        Args:
            router_logits: of every layer that has experts; [N, E] each.
            attention_mask: nonzero at real tokens, [batch, seq]; another form counts every token.

        Returns:
            float32 scalar; None without a layer of experts.

        Source: Switch Transformer (arXiv:2101.03961), Eq. 4.
        """
        if not router_logits:
            return None
        mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        config = self.config
        return load_balancing_loss_func(router_logits, config.num_experts, config.num_experts_per_tok, mask)
