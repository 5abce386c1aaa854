"""The parts of one generation call, made once from its options."""

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .cache_llada import WindowPolicy
from .canvas_llada import Canvas, Reporter
from .generation_config_llada import LLaDAGenerationConfig
from .unmasking_llada import CommitRule, Proposer


@dataclass
class Plan:
    """What the loops need beside the canvas.

    Attributes:
        config: the settled options.
        proposer: logits to candidates and confidences.
        rule: confidences to the tokens to commit.
        windows: which columns each pass computes, and the cache that serves the others.
        logits_processor: further processors, called as (canvas of each scored position, logits).
        stopping_criteria: called after every block as (ids up to the block's end, None).
        reporter: told of every step and every finished block.
        num_passes: passes that each row took part in so far; int64 [batch].
        num_committed: tokens committed in each row so far; int64 [batch].
    """

    config: LLaDAGenerationConfig
    proposer: Proposer
    rule: CommitRule
    windows: WindowPolicy
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    reporter: Reporter
    num_passes: Tensor
    num_committed: Tensor

    @classmethod
    def make(
        cls,
        canvas: Canvas,
        config: LLaDAGenerationConfig,
        num_layers: int,
        logits_processor: Optional[LogitsProcessorList] = None,
        stopping_criteria: Optional[StoppingCriteriaList] = None,
        streamer: Optional[Any] = None,
    ) -> "Plan":
        """Make the parts for a canvas.

        Args:
            canvas: what will be denoised.
            config: the settled options.
            num_layers: layers of the model, for its cache.
            logits_processor, stopping_criteria, streamer: as `generate` takes them.

        Raises:
            ValueError: for stopping criteria without a `pad_token_id`.
        """
        if stopping_criteria and config.pad_token_id is None:
            raise ValueError("`pad_token_id` is needed for `stopping_criteria`, to fill stopped rows; pass it.")
        return cls(
            config=config,
            proposer=make_proposer(config),
            rule=config.commit_rule,
            windows=WindowPolicy(
                cache=config.cache,
                num_layers=num_layers,
                refresh_interval=config.refresh_interval,
                prompt_length=canvas.answer_start if config.freeze_prompt else 0,
                suffix_window=config.visible_suffix,
                num_copies=2 if config.cfg_scale > 0 else 1,
            ),
            logits_processor=LogitsProcessorList(logits_processor or ()),
            stopping_criteria=StoppingCriteriaList(stopping_criteria or ()),
            reporter=Reporter(canvas, streamer, config.output_history),
            num_passes=torch.zeros_like(canvas.rows),
            num_committed=torch.zeros_like(canvas.rows),
        )


def make_proposer(config: LLaDAGenerationConfig) -> Proposer:
    """What turns logits into candidates and confidences under these options."""
    return Proposer(
        mask_token_id=config.mask_token_id,
        measure=config.remasking,
        needs_entropy=config.commit_rule.needs_entropy,
        warp=make_warpers(config) if config.samples else None,
        suppressed_ids=config.eos_token_ids if config.logits_eos_inf else (),
        last_ids=(*config.eos_token_ids, config.eot_token_id) if config.confidence_eos_eot_inf else (),
    )


def make_warpers(config: LLaDAGenerationConfig) -> LogitsProcessorList:
    """The distribution to draw from: temperature, then top-k, then top-p, as transformers defines them."""
    warpers = LogitsProcessorList()
    if config.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.top_k is not None:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    return warpers
