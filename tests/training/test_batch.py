"""Laws of a batch: padding is neither seen nor scored, and rows change their lengths before the noise is drawn."""

import pytest
import torch

from llada_training import LLaDACollator, LLaDAPretrainingConfig
from llada_training.batch import (
    annealed_attention_mask,
    draw_turns,
    lengths_with_eos,
    padding_mask,
    set_lengths,
)

EXAMPLES = [{"input_ids": [5, 6, 7], "example_id": 40}, {"input_ids": [8], "example_id": 2}]
EOS, PAD = 7, 0
# Prompt 1, response 2 3, prompt 4, response 5; and prompt 1, response 6.
TWO_TURNS = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, 3, -100, 5], "example_id": 4, "is_cut": True}
ONE_TURN = {"input_ids": [1, 6], "labels": [-100, 6], "example_id": 9, "is_cut": False}


def test_shorter_rows_are_padded_unscored_and_their_lengths_kept():
    batch = LLaDACollator(pad_token_id=9)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert batch["lengths"].tolist() == [3, 1]
    assert batch["example_id"].tolist() == [40, 2]


def test_labels_of_the_data_are_kept():
    batch = LLaDACollator(9)([{"input_ids": [5, 6], "labels": [-100, 6], "example_id": 0}])
    assert batch["labels"].tolist() == [[-100, 6]]


def test_other_columns_of_the_data_are_left_out():
    assert set(LLaDACollator(9)([EXAMPLES[0] | {"text": "x"}])) == {"input_ids", "labels", "lengths", "example_id"}


def test_padding_is_not_seen():
    assert padding_mask(torch.tensor([3, 1]), 3).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_an_unpadded_batch_needs_no_attention_mask():
    assert padding_mask(torch.tensor([3, 3]), 3) is None


def test_cutting_drops_unused_columns_and_keeps_other_entries():
    cut = set_lengths(LLaDACollator(9)(EXAMPLES), torch.tensor([2, 1]), 9)
    assert cut["input_ids"].tolist() == [[5, 6], [8, 9]]
    assert cut["labels"].tolist() == [[5, 6], [8, -100]]
    assert cut["lengths"].tolist() == [2, 1]
    assert cut["example_id"].tolist() == [40, 2]


# --- turns and end-of-text tokens ------------------------------------------------------------------------------------


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
    lengths = lengths_with_eos(batch, max_length=20, longest=8)
    assert lengths.tolist() == [5, 8]
    filled = set_lengths(batch, lengths, PAD, EOS)
    assert filled["input_ids"].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [1, 6, 7, 7, 7, 7, 7, 7]]
    assert filled["labels"].tolist() == [[-100, 2, 3, -100, 5, -100, -100, -100], [-100, 6, 7, 7, 7, 7, 7, 7]]
    assert filled["lengths"].tolist() == [5, 8]
    assert filled["example_id"].tolist() == [4, 9]


def test_a_number_of_zero_is_one_eos(batch):
    filled = set_lengths(batch, lengths_with_eos(batch, 20), PAD, EOS)
    assert filled["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 6, 7, 0, 0]]


def test_a_number_adds_as_many_beyond_the_first(batch):
    assert lengths_with_eos(batch, 20, 2).tolist() == [5, 5]


def test_no_row_is_filled_beyond_the_longest_allowed(batch):
    assert lengths_with_eos(batch, max_length=6, num_extra=9).tolist() == [5, 6]
    assert lengths_with_eos(batch, max_length=6, longest=9).tolist() == [5, 6]
    assert lengths_with_eos(batch, max_length=2).tolist() == [5, 2]


# --- attention on its way from causal to bidirectional ----------------------------------------------------------------


def mask_at(step: int, lengths=None, width: int = 4, seed: int = 0):
    return annealed_attention_mask(torch.tensor(lengths or [width] * 3), width, step, 10, seed)


def share_of_later_keys(mask: torch.Tensor) -> float:
    later = torch.ones(mask.shape[-2:], dtype=torch.bool).triu(1)
    return mask[..., later].float().mean().item()


def test_the_first_step_is_causal():
    assert mask_at(0).tolist() == [
        [[[True, False, False, False], [True, True, False, False], [True, True, True, False], [True, True, True, True]]]
    ]


@pytest.mark.parametrize("step", [1, 5, 9])
def test_later_keys_are_visible_with_a_probability_that_grows_linearly(step):
    mask = mask_at(step, width=256)
    assert mask.shape == (1, 1, 256, 256)
    # 32640 pairs: the share's standard deviation is at most 0.0028.
    assert share_of_later_keys(mask) == pytest.approx(step / 10, abs=0.015)
    assert bool(mask[0, 0][torch.ones(256, 256, dtype=torch.bool).tril()].all())


def test_a_padded_key_is_seen_by_itself_alone():
    mask = mask_at(0, [4, 2, 3])
    t, f = True, False
    assert mask.shape == (3, 1, 4, 4)
    assert torch.equal(mask[:1], mask_at(0))
    assert mask[1, 0].tolist() == [[t, f, f, f], [t, t, f, f], [t, t, t, f], [t, t, f, t]]


def test_the_draw_depends_on_seed_and_step_and_on_nothing_else():
    first = mask_at(5, width=32)
    assert torch.equal(first, mask_at(5, width=32))
    assert not torch.equal(first, mask_at(5, width=32, seed=1))
    assert share_of_later_keys(mask_at(6, width=32) & ~first) > 0
    assert share_of_later_keys(first & ~mask_at(6, width=32)) > 0


def test_a_shorter_batch_sees_a_corner_of_the_same_draw():
    assert torch.equal(mask_at(5, width=64)[..., :20, :20], mask_at(5, width=20))


# --- in the trainer --------------------------------------------------------------------------------------------------


def test_the_trainer_anneals_in_training_and_never_in_evaluation(make_trainer):
    trainer = make_trainer(attention_annealing_steps=2, max_steps=3, eval_strategy="steps", eval_steps=1)
    seen = {True: [], False: []}

    def look(model, args, inputs):
        seen[model.training].append(inputs["attention_mask"])

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()
    first, second, third = seen[True]
    assert share_of_later_keys(first) == 0
    assert 0.1 < share_of_later_keys(second) < 0.9
    assert third is None or third.dim() == 2
    assert len(seen[False]) == 3 * 8  # 64 sequences in batches of 8
    assert all(mask is None or mask.dim() == 2 for mask in seen[False])


def test_annealing_gives_the_same_losses_however_the_step_is_split(make_trainer):
    def losses(**options) -> list[float]:
        trainer = make_trainer(attention_annealing_steps=3, max_steps=3, **options)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    whole = losses(per_device_train_batch_size=8)
    split = losses(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert len(whole) == 3
    assert whole == pytest.approx(split, rel=1e-5)


def test_without_annealing_even_the_first_step_is_bidirectional(make_trainer):
    trainer, seen = make_trainer(max_steps=1), []
    hook = lambda model, args, inputs: seen.append(inputs["attention_mask"])  # noqa: E731
    trainer.model.register_forward_pre_hook(hook, with_kwargs=True)
    trainer.train()
    assert [mask.dim() for mask in seen] == [2]


def test_a_negative_number_of_annealing_steps_is_refused():
    with pytest.raises(ValueError, match="`attention_annealing_steps` must be at least 0, got -1; leave it out"):
        LLaDAPretrainingConfig(attention_annealing_steps=-1, report_to="none")
