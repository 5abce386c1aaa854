"""Run by torchrun in two processes: evaluate, train, evaluate; the first process writes what it saw.

Usage: torchrun --nproc_per_node 2 two_processes.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

from llada_training import LLaDAPretrainingConfig, LLaDAPretrainingTrainer
from modeling_llada import LLaDAConfig, LLaDAModelLM

folder = Path(sys.argv[1])
generator = torch.Generator().manual_seed(1)
rows = [torch.randint(0, 480, (16 + i % 9,), generator=generator).tolist() for i in range(64)]
sequences = Dataset.from_dict({"input_ids": rows, "example_id": list(range(64))})
# 61 sequences do not divide by two processes: one process sees a repeated example, which must not count.
evaluation = sequences.select(range(61))
torch.manual_seed(0)
model = LLaDAModelLM(
    LLaDAConfig(
        d_model=32,
        n_layers=2,
        n_heads=4,
        mlp_hidden_size=64,
        vocab_size=492,
        embedding_size=512,
        max_sequence_length=64,
        mask_token_id=488,
        eos_token_id=481,
        pad_token_id=481,
    )
)
config = LLaDAPretrainingConfig(
    output_dir=str(folder / "two"),
    sequence_length=24,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    max_steps=4,
    warmup_steps=1,
    optim="sgd",
    learning_rate=0.1,
    random_length_probability=0.2,
    low_discrepancy=True,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    seed=7,
)
trainer = LLaDAPretrainingTrainer(model, config, train_dataset=sequences, eval_dataset=evaluation)
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]
weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
everyone = trainer.accelerator.gather(weights[None])
if trainer.is_world_process_zero():
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "num_processes": trainer.accelerator.num_processes,
        "losses": [entry["loss"] for entry in history],
        "masked_fractions": [entry["masked_fraction"] for entry in history],
        "eval_loss_before": before,
        "eval_loss_after": after,
        "largest_difference_between_processes": (everyone[0] - everyone[1]).abs().max().item(),
    }
    (folder / "result.json").write_text(json.dumps(result))
trainer.accelerator.end_training()
