"""Laws of what a step does to its rows: one turn is the response, and only whole answers are followed by EOS."""

import pytest
import torch

from llada_training import LLaDACollator
from llada_training.responses import draw_turns, fill_with_eos, lengths_with_eos

EOS, PAD = 7, 0
# Prompt 1, response 2 3, prompt 4, response 5; and prompt 1, response 6.
TWO_TURNS = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, -100, 5], "example_id": 4, "is_cut": True}
ONE_TURN = {"input_ids": [1, 6], "labels": [-100, 6], "example_id": 9, "is_cut": False}


@pytest.fixture
def batch():
    return LLaDACollator(PAD)([TWO_TURNS, ONE_TURN])


def test_a_drawn_turn_has_its_history_as_prompt_and_nothing_behind(batch):
    seen = set()
    for step in range(40):
        drawn = draw_turns(batch, seed=3, step=step, pad_token_id=PAD)
        assert drawn["input_ids"][1, :2].tolist() == [1, 6]
        if drawn["labels"].shape[1] == 3:
            assert drawn["input_ids"][0].tolist() == [1, 2, 3]
            assert drawn["labels"][0].tolist() == [-100, 2, 3]
            assert drawn["is_cut"].tolist() == [False, False]
            seen.add("first")
        else:
            assert drawn["input_ids"][0].tolist() == [1, 2, 3, 4, 5]
            assert drawn["labels"][0].tolist() == [-100, -100, -100, -100, 5]
            assert drawn["is_cut"].tolist() == [True, False]
            seen.add("second")
    assert seen == {"first", "second"}


def test_each_turn_is_drawn_equally_often():
    ids = [1, 2] * 3
    rows = [{"input_ids": ids, "labels": [-100, 2] * 3, "example_id": i, "is_cut": False} for i in range(3000)]
    drawn = draw_turns(LLaDACollator(PAD)(rows), seed=3, step=1, pad_token_id=PAD)
    counts = torch.bincount((drawn["labels"] != -100).nonzero()[:, 1])
    assert counts[1::2].tolist() == pytest.approx([1000, 1000, 1000], abs=110)


def test_the_draw_depends_on_seed_step_and_example_alone(batch):
    rows = [TWO_TURNS | {"example_id": number} for number in range(64)]
    together = draw_turns(LLaDACollator(PAD)(rows), 3, 5, PAD)
    for number, row in enumerate(rows):
        alone = draw_turns(LLaDACollator(PAD)([row]), 3, 5, PAD)
        length = alone["labels"].shape[1]
        assert torch.equal(alone["labels"][0], together["labels"][number, :length])
    for other in (draw_turns(LLaDACollator(PAD)(rows), 4, 5, PAD), draw_turns(LLaDACollator(PAD)(rows), 3, 6, PAD)):
        assert not torch.equal(other["labels"], together["labels"])


def test_rows_are_filled_to_the_longest_and_a_truncated_answer_is_not(batch):
    lengths = lengths_with_eos(batch, num_extra=None, max_length=20, longest=8)
    assert lengths.tolist() == [5, 8]
    filled = fill_with_eos(batch, lengths, EOS, PAD)
    assert filled["input_ids"].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [1, 6, 7, 7, 7, 7, 7, 7]]
    assert filled["labels"].tolist() == [[-100, 2, 3, -100, 5, -100, -100, -100], [-100, 6, 7, 7, 7, 7, 7, 7]]
    assert filled["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 8]
    assert filled["example_id"].tolist() == [4, 9]


def test_a_number_of_zero_is_one_eos(batch):
    filled = fill_with_eos(batch, lengths_with_eos(batch, 0, 20), EOS, PAD)
    assert filled["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 6, 7, 0, 0]]


def test_a_number_adds_as_many_beyond_the_first(batch):
    assert lengths_with_eos(batch, 2, 20).tolist() == [5, 5]


def test_no_row_is_filled_beyond_the_longest_allowed(batch):
    assert lengths_with_eos(batch, 9, max_length=6).tolist() == [5, 6]
    assert lengths_with_eos(batch, None, max_length=6, longest=9).tolist() == [5, 6]
    assert lengths_with_eos(batch, 0, max_length=2).tolist() == [5, 2]
