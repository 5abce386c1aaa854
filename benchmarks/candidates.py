"""`LLaDAModelLM.generate` in the form that a side-by-side benchmark of several implementations takes.

Such a harness makes one set of weights, hands it to every implementation and times them in turn. Here an
implementation is a factory `F(ctx) -> run`:

    ctx                   state_dict (official keys), config (dict of the official config.json), gen_length,
                          block_length, temperature, threshold (None: the fixed schedule)
    run(prompt, steps)    prompt int64 [batch, prompt] to prompt and answer, int64 [batch, prompt + gen_length]
    run.stats             of the last call: nfe (forward passes), query_tokens (positions computed, summed over the
                          passes), logit_rows (positions scored), model_s (seconds inside the model)

The factories are `none`, `prefix` and `dual`, after the cache, each also as `…_unpacked`: with the weights as they lie
in memory, so that the gain of our own work shows apart from that of the faster kernels. None of them stops at an
end-of-text token, so that all implementations do equal work.
"""

import time
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from modeling_llada import LLaDAConfig, LLaDAModelLM


class Candidate:
    """Generation with one cache, its forward passes counted.

    Args:
        ctx: see the file's head.
        cache: `none`, `prefix` or `dual`.
        pack_weights: as for `generate`.

    Attributes:
        stats: see the file's head.
    """

    def __init__(self, ctx: Any, cache: str, pack_weights: Optional[bool] = None):
        config = LLaDAConfig.from_dict(dict(ctx.config))
        with torch.device("meta"):
            self.model = LLaDAModelLM(config)
        # The weights are shared with the other implementations, not copied.
        self.model.load_state_dict(ctx.state_dict, assign=True)
        self.model.tie_weights()
        self.model.eval()
        self.options = {
            "max_new_tokens": ctx.gen_length,
            "block_length": ctx.block_length,
            "temperature": ctx.temperature,
            "threshold": ctx.threshold,
            "cache": cache,
            "pack_weights": pack_weights,
            "stop_at_eos": False,
        }
        self.stats: dict[str, float] = {}
        self._start = 0.0
        self.model.register_forward_pre_hook(self._before, with_kwargs=True)
        self.model.register_forward_hook(self._after)

    def __call__(self, prompt: Tensor, steps: int) -> Tensor:
        self.stats.update(nfe=0, query_tokens=0, logit_rows=0, model_s=0.0)
        # With a threshold the passes follow the confidences, as many as these need.
        if self.options["threshold"] is not None:
            return self.model.generate(prompt, **self.options)
        return self.model.generate(prompt, steps=steps, **self.options)

    def _before(self, model: Any, args: tuple, inputs: dict[str, Any]) -> None:
        self.stats["nfe"] += 1
        self.stats["query_tokens"] += inputs["input_ids"].numel()
        self._start = time.perf_counter()

    def _after(self, model: Any, args: tuple, output: Any) -> None:
        self.stats["model_s"] += time.perf_counter() - self._start
        self.stats["logit_rows"] += output.logits.shape[:-1].numel()


def none(ctx: Any) -> Callable[[Tensor, int], Tensor]:
    """Every pass computes the whole canvas; the tokens are those of the released sampler."""
    return Candidate(ctx, "none")


def prefix(ctx: Any) -> Callable[[Tensor, int], Tensor]:
    """Keys and values before the block are kept for its passes."""
    return Candidate(ctx, "prefix")


def dual(ctx: Any) -> Callable[[Tensor, int], Tensor]:
    """Keys and values outside the block are kept for its passes."""
    return Candidate(ctx, "dual")


def none_unpacked(ctx: Any) -> Callable[[Tensor, int], Tensor]:
    """`none` on the weights as they lie in memory."""
    return Candidate(ctx, "none", pack_weights=False)


def prefix_unpacked(ctx: Any) -> Callable[[Tensor, int], Tensor]:
    """`prefix` on the weights as they lie in memory."""
    return Candidate(ctx, "prefix", pack_weights=False)


def dual_unpacked(ctx: Any) -> Callable[[Tensor, int], Tensor]:
    """`dual` on the weights as they lie in memory."""
    return Candidate(ctx, "dual", pack_weights=False)
