"""Run by `accelerate launch` in two processes: train, evaluate, resume from the middle; the results go to a file.

Usage: accelerate launch --config_file CONFIG two_processes.py FOLDER

FOLDER holds `jobs.json`: one training per entry, which names its trainer, config, options, model and data. They share
the processes, because to start these takes longer than to train.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import load_from_disk
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerFast

import llada_training
from modeling_llada import LLaDAModelLM


def shard_on_cpus() -> None:
    """Let accelerate shard on CPUs, where it would silently use DDP instead."""
    set_device = PartialState.set_device

    def as_if_on_gpus(state: PartialState) -> None:
        set_device(state)
        state.distributed_type = DistributedType.MULTI_GPU

    PartialState.set_device = as_if_on_gpus


def make_trainer(job: dict, name: str, **options: Any) -> Any:
    # The config first: it tells transformers how weights are to be loaded.
    config = getattr(llada_training, job["config"])(
        **job["options"] | options | {"output_dir": os.path.join(job["folder"], name)}
    )
    return getattr(llada_training, job["trainer"])(
        LLaDAModelLM.from_pretrained(job["model"], dtype=torch.float32),
        args=config,
        train_dataset=load_from_disk(job["data"]),
        eval_dataset=load_from_disk(job["evaluation_data"]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(job["model"]),
    )


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def difference_between_processes(trainer: Any) -> float:
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    first, second = trainer.accelerator.gather(weights[None])
    return (first - second).abs().max().item()


def describe(trainer: Any) -> dict:
    parameters = list(trainer.model.parameters())
    is_sharded = isinstance(parameters[0], DTensor)
    return {
        "num_processes": trainer.accelerator.num_processes,
        "engine": trainer.accelerator.distributed_type.value,
        "parameter_types": sorted({type(parameter).__name__ for parameter in parameters}),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_parameters_here": sum((p.to_local() if is_sharded else p).numel() for p in parameters),
    }


def run(job: dict) -> dict:
    result = {}
    whole = make_trainer(job, "whole", save_strategy="steps", save_steps=2)
    if job["evaluates_first"]:
        result["eval_loss_before"] = whole.evaluate()["eval_loss"]
    whole.train()
    result |= describe(whole)
    result["losses"] = logged(whole, "loss")
    result["masked_fractions"] = logged(whole, "masked_fraction")
    result["eval_loss_after"] = whole.evaluate()["eval_loss"]
    if job["evaluates_first"]:
        result["difference_between_processes"] = difference_between_processes(whole)
    whole.save_model()
    resumed = make_trainer(job, "resumed", save_strategy="no")
    resumed.train(resume_from_checkpoint=os.path.join(job["folder"], "whole", "checkpoint-2"))
    result["resumed_losses"] = logged(resumed, "loss")
    resumed.save_model()
    return result


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpus()
    folder = Path(sys.argv[1])
    results = {job["name"]: run(job) for job in json.loads((folder / "jobs.json").read_text())}
    if PartialState().is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    PartialState().destroy_process_group()
