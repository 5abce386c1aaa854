"""Train an autoregressive model beside the bundled one: equal blocks, tokens and puzzles, from left to right.

    python examples/llada_tiny/baseline.py --config examples/llada_tiny/baseline.yaml

It sees each puzzle, an arrow and the whole solution, which it learns to write. Started again, it goes on from the last
checkpoint. `python -m experiments.order --baseline runs/tiny-baseline` compares the two.
"""

import argparse
from pathlib import Path
from typing import Any

import grids
import torch
import yaml
from learn import Rows, read_facts, stage_tokenizer
from prepare_facts import FACTS
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from experiments.order import causal_text
from llada_training import LLaDACollator
from llada_training.checkpoints import last_checkpoint
from llada_training.noise import IGNORE_INDEX

# Kinds of the batches in turn, in the shares that the puzzles have among those of the bundled model.
PLAN = ("sudoku-6", "sudoku-6", "sum", "sudoku-6", "sudoku-6", "sudoku-6", "sudoku-4", "sudoku-6")


class InOrder(Trainer):
    """Takes the rows as they come."""

    def _get_train_sampler(self, *args: Any, **options: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class CausalCollator(LLaDACollator):
    """Batches for a causal model: padding on the right is never scored, so that no mask is needed."""

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().__call__(examples)
        return {name: batch[name] for name in ("input_ids", "labels")}


def main() -> None:
    """Train to the end."""
    options = parse_arguments()
    recipe = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    if options.output_dir is not None:
        recipe["output_dir"] = str(options.output_dir)
    sizes = recipe.pop("model_config")
    args = TrainingArguments(**recipe, use_cpu=not torch.cuda.is_available(), remove_unused_columns=False)
    _, words = read_facts(options.facts / FACTS)
    tokenizer = stage_tokenizer(Path(args.output_dir) / "tokenizer", words)
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            **sizes, vocab_size=len(tokenizer), initializer_range=sizes["hidden_size"] ** -0.5,
            bos_token_id=None, eos_token_id=None, pad_token_id=tokenizer.pad_token_id, attn_implementation="eager",
        )
    )  # fmt: skip

    def encode(kind: str, number: int) -> dict[str, list[int]]:
        row = grids.training_row(kind, number)
        given, whole = (causal_text(row, tokenizer, with_solution=solved) for solved in (False, True))
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        num_given = len(tokenizer(given, add_special_tokens=False)["input_ids"])
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * num_given + ids[num_given:]}

    size = args.per_device_train_batch_size
    rows = Rows(PLAN, size, args.max_steps * args.gradient_accumulation_steps * size, encode)
    trainer = InOrder(model, args, CausalCollator(tokenizer.pad_token_id), rows)
    trainer.train(last_checkpoint(args.output_dir))
    trainer.save_model()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe")
    parser.add_argument("--facts", type=Path, default=Path("runs/tiny-facts"), help="folder of prepare_facts.py")
    parser.add_argument("--output_dir", type=Path, help="folder of the run, in place of the recipe's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
