"""The measures behind `steps_quality.py`: filling in half of a text, and finishing a sentence of known facts.

A task maps options of generation to values for each of its items, so that two settings can be compared item by item.

Shape legend: N texts, R rows (texts times patterns of masks), T tokens.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parent
# Rows that go through the model together.
BATCH = 64
# `consistency` masks the filled tokens again in so many parts.
NUM_PARTS = 4
ANSWER_LENGTH = 16

Values = dict[str, Tensor]


def read_lines(name: str, count: int) -> list[dict[str, Any]]:
    """The first objects of a file beside this one.

    Raises:
        ValueError: if the file holds fewer.
    """
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    if count > len(lines):
        raise ValueError(f"`{name}` holds {len(lines)} lines, got {count} as the number to take; pass fewer.")
    return [json.loads(line) for line in lines[:count]]


class Infilling:
    """Half of the tokens of held-out texts are masked, drawn once for each seed, and filled in.

    The values of a text, averaged over the seeds:
        accuracy: share of the masked tokens that are filled in as they were.
        consistency: see `consistency`, in nats per token.
        passes_per_token: forward passes of its row over its masked tokens.

    Args:
        model, tokenizer: a LLaDA; the tokenizer has a mask token.
        num_texts: texts to take.
        num_seeds: patterns of masks for each text.
    """

    name = "infilling"
    # Blocks for a cache to keep something of.
    num_blocks = 4

    def __init__(self, model: Any, tokenizer: Any, num_texts: int, num_seeds: int):
        texts = [line["text"] for line in read_lines("heldout.jsonl", num_texts)]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        self.model, self.num_seeds, self.num_columns = model, num_seeds, encoded["input_ids"].shape[1]
        self.ids = encoded["input_ids"].repeat(num_seeds, 1)
        self.attention_mask = encoded["attention_mask"].bool().repeat(num_seeds, 1)
        patterns = [mask_half(encoded["attention_mask"].bool(), seed) for seed in range(num_seeds)]
        self.is_masked = torch.cat(patterns)
        self.noisy = self.ids.masked_fill(self.is_masked, tokenizer.mask_token_id)

    def __call__(self, **options: Any) -> Values:
        """Fill in every row and score it; float32 [texts] each."""
        batches = [self._run_batch(slice(start, start + BATCH), options) for start in range(0, len(self.ids), BATCH)]
        rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        return {name: values.reshape(self.num_seeds, -1).mean(0) for name, values in rows.items()}

    def _run_batch(self, rows: slice, options: dict[str, Any]) -> Values:
        ids, mask, is_masked = self.ids[rows], self.attention_mask[rows], self.is_masked[rows]
        generator = torch.Generator(ids.device).manual_seed(rows.start)
        output = self.model.infill(self.noisy[rows], mask, generator=generator, return_dict_in_generate=True, **options)
        num_masked = is_masked.sum(-1)
        is_right = (output.sequences == ids) & is_masked
        return {
            "accuracy": is_right.sum(-1) / num_masked,
            "consistency": consistency(self.model, output.sequences, mask, is_masked),
            "passes_per_token": output.num_forward_passes / num_masked,
        }


class Answering:
    """The beginning of a sentence the model was trained on is continued.

    The values of a fact:
        right: 1 if the continuation begins with its answer, else 0. It asks for the knowledge of the model.
        fitting: 1 if the continuation begins with the answer to any fact of its kind, such as some capital in place of
            the capital asked for. It asks whether tokens chosen together form a word.
        passes: forward passes of its row.

    Args:
        model, tokenizer: a LLaDA; the tokenizer pads at the left.
        num_facts: facts to take.
    """

    name = "answering"
    num_blocks = 2
    num_columns = ANSWER_LENGTH

    def __init__(self, model: Any, tokenizer: Any, num_facts: int):
        self.model, self.tokenizer = model, tokenizer
        self.facts = read_lines("facts.jsonl", num_facts)
        self.kinds = json.loads((FOLDER / "kinds.json").read_text(encoding="utf-8"))

    def __call__(self, **options: Any) -> Values:
        """Continue every fact and score it; float32 [facts] each."""
        batches = [
            self._run_batch(self.facts[start : start + BATCH], options) for start in range(0, len(self.facts), BATCH)
        ]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}

    def _run_batch(self, facts: list[dict[str, Any]], options: dict[str, Any]) -> Values:
        encoded = self.tokenizer([fact["prompt"] for fact in facts], return_tensors="pt", padding=True)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        generator = torch.Generator(ids.device).manual_seed(0)
        output = self.model.generate(
            ids, mask, generator=generator, max_new_tokens=ANSWER_LENGTH, return_dict_in_generate=True, **options
        )
        texts = self.tokenizer.batch_decode(output.sequences[:, ids.shape[1] :], skip_special_tokens=True)
        is_right = [is_answer(text, fact["answers"]) for text, fact in zip(texts, facts)]
        is_fitting = [is_answer(text, self.kinds[fact["kind"]]) for text, fact in zip(texts, facts)]
        return {
            "right": torch.tensor(is_right).float(),
            "fitting": torch.tensor(is_fitting).float(),
            "passes": output.num_forward_passes.float(),
        }


def mask_half(attention_mask: Tensor, seed: int) -> Tensor:
    """Mark half of each row's tokens at random, rounded up; bool [rows, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(attention_mask.shape, generator=generator).masked_fill(~attention_mask, torch.inf)
    return draws.argsort(-1).argsort(-1) < (attention_mask.sum(-1, keepdim=True) + 1) // 2


@torch.no_grad()
def consistency(model: Any, ids: Tensor, attention_mask: Tensor, is_filled: Tensor) -> Tensor:
    """How well the filled-in tokens fit each other, in the eyes of the model that chose them.

    A quarter of them is masked again at a time, and the log-probability of each is taken with the other three in
    place. Tokens that were chosen in one pass did not see each other, and lose here what accuracy does not show.

    Args:
        model: maps ids with masks to logits.
        ids: filled-in texts; int64 [rows, tokens].
        attention_mask: bool [rows, tokens].
        is_filled: bool [rows, tokens].

    Returns:
        Mean log-probability in nats per filled-in token; float32 [rows].
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(ids.shape, generator=generator).masked_fill(~is_filled, torch.inf)
    part = draws.argsort(-1).argsort(-1) % NUM_PARTS
    total = torch.zeros(ids.shape)
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    for number in range(NUM_PARTS):
        is_hidden = is_filled & (part == number)
        noisy = ids.masked_fill(is_hidden, model.config.mask_token_id)
        logits = model(noisy, attention_mask, position_ids=position_ids, logits_positions=is_hidden).logits
        chosen = logits.float().log_softmax(-1).gather(-1, ids[is_hidden][:, None])[:, 0]
        total[is_hidden] = chosen
    return total.sum(-1) / is_filled.sum(-1)


def is_answer(text: str, answers: list[str]) -> bool:
    """Whether a continuation begins with one of the answers, whole; case and an article before it do not matter."""
    article = r"(?:an? |the )?"
    plain = [re.sub(rf"^{article}", "", answer, flags=re.IGNORECASE) for answer in answers]
    pattern = rf"\s*{article}(?:{'|'.join(map(re.escape, plain))})(?!\w)"
    return re.match(pattern, text, flags=re.IGNORECASE) is not None


def summary(values: Tensor, reference: Tensor) -> dict[str, float]:
    """Mean over the items and its standard error, and the same of the difference from a reference, item by item."""

    def spread(items: Tensor) -> float:
        return float(items.std() / len(items) ** 0.5) if len(items) > 1 else 0.0

    difference = values - reference
    numbers = {
        "mean": float(values.mean()),
        "standard_error": spread(values),
        "difference": float(difference.mean()),
        "difference_standard_error": spread(difference),
    }
    return {name: round(number, 5) for name, number in numbers.items()}
