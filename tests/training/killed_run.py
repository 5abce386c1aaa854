"""Run by a test: train, and be killed in the middle of saving checkpoint 4.

Usage: killed_run.py FOLDER METHOD: the process ends the moment the trainer's METHOD would begin.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from llada_training import LLaDAPretrainingConfig, LLaDAPretrainingTrainer
from modeling_llada import LLaDAModelLM

folder, method = Path(sys.argv[1]), sys.argv[2]


def die_in_the_second_save(trainer: Any, *arguments: Any) -> None:
    if trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    getattr(super(KilledTrainer, trainer), method)(*arguments)


KilledTrainer = type("KilledTrainer", (LLaDAPretrainingTrainer,), {method: die_in_the_second_save})
KilledTrainer(
    LLaDAModelLM.from_pretrained(folder / "model"),
    LLaDAPretrainingConfig(**json.loads((folder / "options.json").read_text())),
    train_dataset=load_from_disk(folder / "sequences"),
).train()
