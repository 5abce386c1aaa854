"""Laws of the collator: padding is neither seen nor scored."""

import torch

from llada_training import LLaDACollator
from llada_training.collator import cut_to_lengths, row_lengths

EXAMPLES = [{"input_ids": [5, 6, 7], "example_id": 40}, {"input_ids": [8], "example_id": 2}]


def test_shorter_rows_are_padded_unseen_and_unscored():
    batch = LLaDACollator(pad_token_id=9)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["example_id"].tolist() == [40, 2]


def test_an_unpadded_batch_carries_no_attention_mask():
    assert "attention_mask" not in LLaDACollator(9)(EXAMPLES[:1])


def test_labels_of_the_data_are_kept():
    batch = LLaDACollator(9)([{"input_ids": [5, 6], "labels": [-100, 6], "example_id": 0}])
    assert batch["labels"].tolist() == [[-100, 6]]


def test_cutting_drops_unused_columns_and_keeps_other_entries():
    batch = LLaDACollator(9)(EXAMPLES)
    cut = cut_to_lengths(batch, torch.tensor([2, 1]), 9)
    assert cut["input_ids"].tolist() == [[5, 6], [8, 9]]
    assert cut["labels"].tolist() == [[5, 6], [8, -100]]
    assert cut["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert cut["example_id"].tolist() == [40, 2]


def test_rows_cut_to_one_length_need_no_attention_mask():
    cut = cut_to_lengths(LLaDACollator(9)(EXAMPLES), torch.tensor([1, 1]), 9)
    assert cut["input_ids"].tolist() == [[5], [8]]
    assert "attention_mask" not in cut


def test_row_lengths_count_what_is_seen():
    assert row_lengths(LLaDACollator(9)(EXAMPLES)).tolist() == [3, 1]
    assert row_lengths(LLaDACollator(9)(EXAMPLES[:1])).tolist() == [3]
