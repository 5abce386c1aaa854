"""The attention of a model that is led from causal to bidirectional."""

import pytest
import torch

from llada_training import LLaDAPretrainingConfig
from llada_training.annealing import annealed_attention_mask


def mask_at(step: int, attention_mask=None, length: int = 4, annealing_steps: int = 10, seed: int = 0):
    return annealed_attention_mask(attention_mask, torch.zeros(3, length), step, annealing_steps, seed)


def share_of_later_keys(mask: torch.Tensor) -> float:
    later = torch.ones(mask.shape[-2:], dtype=torch.bool).triu(1)
    return mask[..., later].float().mean().item()


def test_the_first_step_is_causal():
    assert mask_at(0).tolist() == [
        [[[True, False, False, False], [True, True, False, False], [True, True, True, False], [True, True, True, True]]]
    ]


@pytest.mark.parametrize("attention_mask", [None, torch.tensor([[1, 1, 1, 0]])])
@pytest.mark.parametrize("step", [10, 11])
def test_after_the_last_step_the_mask_is_the_one_that_came(attention_mask, step):
    assert mask_at(step, attention_mask) is attention_mask


def test_without_annealing_even_the_first_step_is_bidirectional():
    assert mask_at(0, annealing_steps=0) is None


@pytest.mark.parametrize("step", [1, 5, 9])
def test_later_keys_are_visible_with_a_probability_that_grows_linearly(step):
    mask = mask_at(step, length=256)
    assert mask.shape == (1, 1, 256, 256)
    # 32640 pairs: the share's standard deviation is at most 0.0028.
    assert share_of_later_keys(mask) == pytest.approx(step / 10, abs=0.015)
    assert bool(mask[0, 0][torch.ones(256, 256, dtype=torch.bool).tril()].all())


def test_a_padded_key_is_seen_by_itself_alone():
    mask = mask_at(0, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]))
    right, left = mask[1, 0].tolist(), mask[2, 0].tolist()
    t, f = True, False
    assert mask.shape == (3, 1, 4, 4)
    assert torch.equal(mask[:1], mask_at(0))
    assert right == [[t, f, f, f], [t, t, f, f], [t, t, t, f], [t, t, f, t]]
    assert left == [[t, f, f, f], [f, t, f, f], [f, f, t, f], [f, f, t, t]]


def test_the_draw_depends_on_seed_and_step_and_on_nothing_else():
    first = mask_at(5, length=32)
    assert torch.equal(first, mask_at(5, length=32))
    assert not torch.equal(first, mask_at(5, length=32, seed=1))
    assert share_of_later_keys(mask_at(6, length=32) & ~first) > 0
    assert share_of_later_keys(first & ~mask_at(6, length=32)) > 0


def test_a_shorter_batch_sees_a_corner_of_the_same_draw():
    assert torch.equal(mask_at(5, length=64)[..., :20, :20], mask_at(5, length=20))


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


def test_a_negative_number_of_annealing_steps_is_refused():
    with pytest.raises(ValueError, match="`attention_annealing_steps` must be at least 0, got -1; leave it out"):
        LLaDAPretrainingConfig(attention_annealing_steps=-1, report_to="none")
