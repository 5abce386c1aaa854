"""Ask a model the questions of `prepare_instructions.py` and count the right answers.

    python examples/llada_tiny/ask.py --model checkpoints/llada-tiny --data runs/llada-tiny-data --output answers.json

Each question is a conversation of its own, answered greedily with the model's own defaults. An answer is right if it
holds one of the accepted answers as whole words, whatever their case. It stops if its end-of-text token was committed.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from prepare_instructions import QUESTIONS, read_jsonl
from transformers import PreTrainedTokenizerFast

from experiments.sampling import is_right
from llada_core.tokenization import encode_chat, prepare_tokenizer
from modeling_llada import LLaDAModelLM

BATCH = 64
# What the evaluation's parts ask, in the order of the report.
SPLITS = {
    "trained": "trained question",
    "rephrased": "trained fact, other wording",
    "reversed": "fact trained in the other direction only",
    "unseen": "sum that was not trained",
}


def main() -> None:
    """Ask, count, write."""
    options = parse_arguments()
    questions = read_jsonl(options.data / QUESTIONS)[: options.count]
    model, tokenizer = load(options.model)
    answers = ask(model, tokenizer, [question["question"] for question in questions])
    report = summarize(questions, answers)
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({name: report[name] for name in ("splits", "kinds")}, indent=1))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {QUESTIONS}")
    parser.add_argument("--output", type=Path, required=True, help="file to write, JSON")
    parser.add_argument("--count", type=int, help="ask only the first so many questions")
    return parser.parse_args()


def load(folder: Path) -> tuple[Any, Any]:
    """Load a model for float32, in which a CPU computes fastest, and its tokenizer."""
    tokenizer = prepare_tokenizer(PreTrainedTokenizerFast.from_pretrained(folder))
    return LLaDAModelLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def ask(model: Any, tokenizer: Any, questions: list[str], **options: Any) -> list[dict[str, Any]]:
    """Answer each question in a conversation of its own.

    Args:
        model, tokenizer: as `load` returns them.
        questions: the user's turns.
        options: of `generate`; the model's own defaults otherwise.

    Returns:
        For each question `text`, `num_tokens` (before the end-of-turn and end-of-text tokens) and `stops`.
    """
    answers: list[dict[str, Any]] = [{} for _ in questions]
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    # Rows of about the same length together: little is padding.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        batch = tokenizer.pad(
            {"input_ids": [prompts[number] for number in numbers]}, padding_side="left", return_tensors="pt"
        )
        ids = model.generate(batch["input_ids"], batch["attention_mask"], **options)
        for number, row in zip(numbers, ids[:, batch["input_ids"].shape[1] :], strict=True):
            answers[number] = read_answer(tokenizer, row.tolist())
    return answers


def read_answer(tokenizer: Any, ids: list[int]) -> dict[str, Any]:
    """Describe the new tokens of a row; int list."""
    special = set(tokenizer.all_special_ids)
    end = next((place for place, token in enumerate(ids) if token in special), len(ids))
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return {"text": text, "num_tokens": end, "stops": tokenizer.eos_token_id in ids}


def summarize(questions: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Count the right answers by split, and by split and kind.

    Returns:
        `splits` and `kinds` (each to its numbers, see `shares`) and `asked`: every question with its answer.
    """
    asked = [
        {**question, **answer, "right": is_right(answer["text"], question["answers"])}
        for question, answer in zip(questions, answers, strict=True)
    ]
    by_split, by_kind = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for entry in asked:
        by_split[entry["split"]].append(entry)
        by_kind[entry["kind"]][entry["split"]].append(entry)
    return {
        "splits": {split: shares(by_split[split]) for split in SPLITS if split in by_split},
        "kinds": {
            kind: {split: shares(entries) for split, entries in splits.items()} for kind, splits in by_kind.items()
        },
        "asked": asked,
    }


def shares(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Number of questions, shares of right answers and of answers that stop, mean length in tokens."""
    count = len(entries)
    return {
        "count": count,
        "right": round(sum(entry["right"] for entry in entries) / count, 4),
        "stops": round(sum(entry["stops"] for entry in entries) / count, 4),
        "tokens": round(sum(entry["num_tokens"] for entry in entries) / count, 1),
    }


if __name__ == "__main__":
    main()
