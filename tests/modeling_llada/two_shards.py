"""Run by `torchrun` in two processes: what sharded models compute; process 0 writes it to a file.

Usage: torchrun --nproc-per-node 2 two_shards.py FOLDER

FOLDER holds the checkpoints of `CHECKPOINTS`. All ways to shard share the processes, because to start these takes
longer than to compute.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from modeling_llada import LLaDAModelLM
from modeling_llada.configuration_llada import SPLITS_VOCABULARY

# transformers 4 has no rule for the gradient of a norm whose heads are split.
CHECKPOINTS = ("tied", "untied", "illada", *(("moe",) if SPLITS_VOCABULARY else ()))
# The ways to shard, as options of transformers' `DistributedConfig`; transformers 4 has neither it nor FSDP2.
SHARDINGS: dict[str, dict[str, Any]] = {"tensor parallel": {"tp_size": 2, "tp_plan": "auto"}}
if SPLITS_VOCABULARY:
    SHARDINGS["FSDP2"] = {"fsdp_size": 2}
MASK = 99


def computed_by(model: LLaDAModelLM) -> dict[str, Tensor]:
    """Logits of a padded batch, tokens for every cache, packed and not, and loss and gradients of a training step.

    Tokens are those of `generate`, and of `infill` without a cache.
    """
    ids = torch.randint(1, 90, (2, 10), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    noisy = ids.clone()
    noisy[:, 4::2] = MASK
    results = {"logits": model(noisy, mask).logits.detach()}
    options = {"attention_mask": mask, "max_new_tokens": 12, "block_length": 4, "steps": 6}
    for cache in ("none", "prefix", "dual"):
        for pack in (None, False):
            name = f"tokens, cache {cache}, pack_weights={pack}"
            results[name] = model.generate(ids, cache=cache, pack_weights=pack, **options)
    results["tokens, infill"] = model.infill(noisy, attention_mask=mask)
    loss = model(noisy, mask, labels=ids).loss
    loss.backward()
    results["loss"] = loss.detach()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        results[f"gradient of {name}"] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return results


def sharded(checkpoint: Path, options: dict[str, Any]) -> LLaDAModelLM:
    """The part of a model that belongs to this process."""
    if not SPLITS_VOCABULARY:
        return AutoModel.from_pretrained(checkpoint, dtype=torch.float32, tp_plan=options["tp_plan"])
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(**options)
    return AutoModel.from_pretrained(checkpoint, dtype=torch.float32, distributed_config=config)


def main(folder: Path) -> None:
    results = {}
    for checkpoint in CHECKPOINTS:
        for sharding, options in SHARDINGS.items():
            model = sharded(folder / checkpoint, options)
            model.save_pretrained(folder / sharding / checkpoint, is_main_process=torch.distributed.get_rank() == 0)
            weights = {
                name: model.get_submodule(f"model.transformer.{name}").weight
                for name in ("wte", "blocks.0.q_proj", "ff_out")
            }
            results[checkpoint, sharding] = {
                "blocks": {type(block).__name__ for block in model.model.transformer.blocks},
                "numbers here": {
                    name: weight.to_local().numel() for name, weight in weights.items() if hasattr(weight, "to_local")
                },
                **computed_by(model.eval()),
            }
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
