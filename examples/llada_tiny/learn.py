"""Train the bundled model, one stage a recipe; started again, it goes on from the last checkpoint.

    python examples/llada_tiny/learn.py --config examples/llada_tiny/first.yaml --facts runs/tiny-facts

Every row of the data is a function of its number, so that nothing but the recipe decides what is learnt, and a training
that was killed and resumed ends with the same weights as one that was not.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ask
import grids
import torch
import yaml
from answers import Answers
from prepare_facts import FACTS
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedTokenizerFast, TrainerCallback
from vocabulary import save_tokenizer
from words import make_tokenizer

from experiments.sampling import is_right
from llada_core.loading import load_model
from llada_core.tokenization import prepare_tokenizer
from llada_training import LLaDAPretrainingConfig, LLaDAPretrainingTrainer
from llada_training.checkpoints import last_checkpoint
from llada_training.noise import IGNORE_INDEX
from llada_training.puzzles import MISSING, MissingDigits, make_sudokus
from modeling_llada import LLaDAConfig, LLaDAModelLM

# Kinds of the batches of a stage, in turn.
PLANS = {
    "first": ("answer", "sudoku-6", "answer", "sum", "answer", "sudoku-6", "answer", "sudoku-4"),
    "last": (
        *("answer", "sudoku-6", "sudoku-6", "sudoku-6", "answer", "sudoku-6", "sudoku-6", "sum"),
        *("answer", "sudoku-6", "sudoku-6", "sudoku-6", "answer", "sudoku-6", "sudoku-6", "sudoku-4"),
    ),
}
# More rows than a stage has; a multiple of every batch size.
ROWS_OF_A_STAGE = 2**30
# Puzzles solved now and then to see how the training goes; they are of the training split.
LOOK_EVERY, LOOKED_AT, LOOK_SEED = 500, 48, 1
NUM_EMPTY = {4: 10, 6: 24}
QUICK = {"max_new_tokens": 24, "block_length": 24, "threshold": 0.9}


class Rows(Dataset):
    """The rows of a stage: batches of one kind each, in turn.

    Args:
        plan: kinds of the batches.
        batch_size: rows of a batch.
        num_rows: rows in all.
        encode: kind and number of a row of this kind to `input_ids` and `labels`.
        first: number of the first row of each kind, so that stages see different ones.
    """

    def __init__(
        self,
        plan: tuple[str, ...],
        batch_size: int,
        num_rows: int,
        encode: Callable[[str, int], dict[str, list[int]]],
        first: int = 0,
    ):
        self.plan, self.batch_size, self.num_rows, self.encode, self.first = plan, batch_size, num_rows, encode, first

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, number: int) -> dict[str, Any]:
        batch, place = divmod(number, self.batch_size)
        turn, part = divmod(batch, len(self.plan))
        kind = self.plan[part]
        before = turn * self.plan.count(kind) + self.plan[:part].count(kind)
        return {**self.encode(kind, self.first + before * self.batch_size + place), "example_id": number}


@dataclass
class Encoder:
    """Turns rows into ids; what is given has the label -100."""

    tokenizer: Any
    answers: Answers
    batch_size: int

    def __call__(self, kind: str, number: int) -> dict[str, list[int]]:
        if kind == "answer":
            return self.answers.encode(number, self.tokenizer, self.batch_size)
        return self.puzzle(grids.training_row(kind, number))

    def puzzle(self, row: MissingDigits) -> dict[str, list[int]]:
        """A puzzle: a token for each character, but one for its heading."""
        texts = as_texts(row, self.tokenizer)
        ids, asked = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        mask = self.tokenizer.mask_token_id
        return {"input_ids": ids, "labels": [i if a == mask else IGNORE_INDEX for i, a in zip(ids, asked)]}


def as_texts(row: MissingDigits, tokenizer: Any) -> tuple[str, str]:
    """Solution, and puzzle with mask tokens."""
    return row.solution, row.puzzle.replace(MISSING, tokenizer.mask_token)


class InOrder(LLaDAPretrainingTrainer):
    """Takes the rows as they come."""

    def _get_train_sampler(self, *args: Any, **options: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Look(TrainerCallback):
    """Logs now and then what share of some puzzles the model solves, the surest cell first, and of facts it knows."""

    def __init__(self, tokenizer: Any, answers: Answers):
        self.tokenizer, self.trainer = tokenizer, None
        drawn = random.Random(LOOK_SEED).sample(answers.trained, LOOKED_AT)
        self.items = [(item.trained[0], item.accepted) for item in drawn]
        self.rows = {
            f"solved_{size}x{size}": [
                grids.sudoku_row(sudoku) for sudoku in make_sudokus(LOOKED_AT, size, num_empty, "train", LOOK_SEED)
            ]
            for size, num_empty in NUM_EMPTY.items()
        }
        self.rows["solved_sums"] = [grids.training_row("sum", -number) for number in range(1, LOOKED_AT + 1)]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        if state.global_step % LOOK_EVERY == 0:
            model.eval()
            shares = {name: solved_share(model, self.tokenizer, rows) for name, rows in self.rows.items()}
            replies = ask.ask(model, self.tokenizer, [question for question, _ in self.items], **QUICK)
            right = [is_right(reply["text"], found) for reply, (_, found) in zip(replies, self.items)]
            shares["right_facts"] = sum(right) / len(right)
            model.train()
            self.trainer.log(shares)


@torch.no_grad()
def solved_share(model: Any, tokenizer: Any, rows: list[MissingDigits], **options: Any) -> float:
    """Share of the puzzles that are filled in without a mistake; `options` are those of `infill`."""
    return sum(solved(model, tokenizer, rows, **options)) / len(rows)


def solved(model: Any, tokenizer: Any, rows: list[MissingDigits], **options: Any) -> list[bool]:
    """Which puzzles are filled in without a mistake."""
    texts = [as_texts(row, tokenizer)[1] for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    filled = model.infill(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    found = tokenizer.batch_decode(filled, skip_special_tokens=True)
    return [text == row.solution for text, row in zip(found, rows)]


def main() -> None:
    """Train a stage to its end."""
    options = parse_arguments()
    path = options.config
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    given = {"model": options.model, "output_dir": options.output_dir}
    recipe |= {name: str(value) for name, value in given.items() if value is not None}
    config = LLaDAPretrainingConfig(**recipe)
    folder = Path(config.output_dir)
    answers, words = read_facts(options.facts / FACTS)
    tokenizer = stage_tokenizer(folder / "tokenizer", words)
    model = first_model(config, tokenizer)
    size = config.per_device_train_batch_size
    num_rows = config.max_steps * config.gradient_accumulation_steps * size
    rows = Rows(
        PLANS[path.stem], size, num_rows, Encoder(tokenizer, answers, size), (config.seed - 1) * ROWS_OF_A_STAGE
    )
    look = Look(tokenizer, answers)
    trainer = InOrder(model, config, rows, processing_class=tokenizer, callbacks=[look])
    look.trainer = trainer
    trainer.train(last_checkpoint(config.output_dir))
    trainer.save_model()
    trainer.save_state()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe of the stage")
    parser.add_argument("--facts", type=Path, default=Path("runs/tiny-facts"), help="folder of prepare_facts.py")
    parser.add_argument("--model", help="model to go on from, in place of the recipe's")
    parser.add_argument("--output_dir", type=Path, help="folder of the run, in place of the recipe's")
    return parser.parse_args()


def read_facts(path: Path) -> tuple[Answers, list[str]]:
    """The conversations and the words of the vocabulary."""
    return Answers.read(path), json.loads(path.read_text(encoding="utf-8"))["vocabulary"]


def stage_tokenizer(folder: Path, words: list[str]) -> Any:
    """The tokenizer of these words, saved in `folder`."""
    save_tokenizer(make_tokenizer(words), folder)
    return prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(folder))


def first_model(config: LLaDAPretrainingConfig, tokenizer: Any) -> Any:
    """A new model, or the one that the recipe goes on from."""
    if config.model is not None:
        return load_model(config.model, dtype="float32", attn_implementation=config.attn_implementation)
    torch.manual_seed(config.seed)
    sizes = {"vocab_size": len(tokenizer), "embedding_size": len(tokenizer)}
    ids = {name: getattr(tokenizer, name) for name in ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id")}
    return LLaDAModelLM(
        LLaDAConfig(**config.model_config, **sizes, **ids, attn_implementation=config.attn_implementation)
    )


if __name__ == "__main__":
    main()
