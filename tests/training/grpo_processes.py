"""Run by a test, in one process or by `accelerate launch` in two: a short GRPO of each objective, then its weights.

Usage: grpo_processes.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from llada_training import LLaDAGRPOConfig, LLaDAGRPOTrainer
from modeling_llada import LLaDAModelLM

OPTIONS: dict[str, Any] = {
    "max_completion_length": 12,
    "block_length": 6,
    "num_generations": 4,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
    "beta": 0.1,
    "max_steps": 4,
    "learning_rate": 1e-3,
    # AdamW's first steps would blow rounding up to the sign of a gradient.
    "adam_epsilon": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "bf16": False,
    "seed": 7,
}
# Threshold of each objective's rollouts.
THRESHOLDS = {"fork": 0.02, "espo": None, "diffu": None}
# Prompts of different lengths, so that processes pad to different widths.
DATA = {"prompt": [f"{number} and " * (number % 4 + 1) for number in range(8)], "wanted": list(range(8))}


def letters(completions: list[str], wanted: list[int], **columns: Any) -> list[float]:
    """Any number that depends on the text."""
    return [float((sum(map(ord, text)) + number) % 5) for text, number in zip(completions, wanted)]


def make_trainer(folder: Path, objective: str, batch: int, **options: Any) -> LLaDAGRPOTrainer:
    """A trainer of the model in `folder`; `batch` answers go through each process at a time."""
    given = OPTIONS | {"objective": objective, "threshold": THRESHOLDS[objective]} | options
    given |= {"per_device_train_batch_size": batch}
    config = LLaDAGRPOConfig(str(folder / f"run-{objective}"), **given)
    return LLaDAGRPOTrainer(
        LLaDAModelLM.from_pretrained(folder / "model", dtype=torch.float32),
        letters,
        config,
        train_dataset=Dataset.from_dict(DATA),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "model"),
    )


def train(folder: Path, objective: str, batch: int) -> dict[str, Any]:
    """Losses, rewards and weights of a training."""
    trainer = make_trainer(folder, objective, batch)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    rewards = [entry["reward"] for entry in logs if entry.get("reward") is not None]
    return {"losses": [entry["loss"] for entry in logs], "rewards": rewards, "weights": weights}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    results = {objective: train(place, objective, 4) for objective in THRESHOLDS}
    if PartialState().is_main_process:
        torch.save(results, place / "results.pt")
    PartialState().destroy_process_group()
