"""Laws of what a training step draws: from (seed, step, example id), and from nothing else."""

import pytest
import torch

from llada_training import draw_noise, random_lengths, training_noise_levels

IDS = torch.randint(0, 400, (6, 30), generator=torch.Generator().manual_seed(0))
EXAMPLES = torch.tensor([3, 1, 4, 15, 9, 26])


def masks(ids, examples, step=5, seed=7, exact_count=False):
    return draw_noise(ids, ids, examples, torch.full((len(ids),), 0.5), 488, seed, step, exact_count).is_masked


@pytest.mark.parametrize("exact_count", [False, True])
def test_masks_of_a_row_do_not_depend_on_its_neighbours(exact_count):
    together = masks(IDS, EXAMPLES, exact_count=exact_count)
    for row in range(6):
        alone = masks(IDS[row : row + 1], EXAMPLES[row : row + 1], exact_count=exact_count)
        assert torch.equal(alone[0], together[row])


def test_masks_of_a_row_do_not_depend_on_how_far_it_is_padded():
    labels = torch.full((6, 50), -100)
    labels[:, :30] = IDS
    padded = torch.nn.functional.pad(IDS, (0, 20), value=481)
    wide = draw_noise(padded, labels, EXAMPLES, torch.full((6,), 0.5), 488, 7, 5, True).is_masked
    assert torch.equal(wide[:, :30], masks(IDS, EXAMPLES, exact_count=True))
    assert not wide[:, 30:].any()


def test_masks_change_with_seed_step_and_example():
    first = masks(IDS, EXAMPLES)
    assert torch.equal(first, masks(IDS, EXAMPLES))
    for other in (masks(IDS, EXAMPLES, step=6), masks(IDS, EXAMPLES, seed=8), masks(IDS, EXAMPLES + 1)):
        assert not torch.equal(first, other)


def test_low_discrepancy_levels_of_a_step_fill_every_quarter_evenly():
    for step in range(50):
        levels = training_noise_levels(torch.randperm(32), torch.arange(32), 7, step, low_discrepancy=True)
        counts = torch.histc(levels, bins=4, min=0, max=1)
        assert (counts - 8).abs().max() <= 1
        assert (levels > 0).all() and (levels <= 1).all()


@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_the_level_of_one_slot_is_uniform_over_steps(low_discrepancy):
    levels = torch.stack(
        [
            training_noise_levels(torch.tensor([5]), torch.tensor([3]), 7, step, low_discrepancy)[0]
            for step in range(2000)
        ]
    )
    # Kolmogorov-Smirnov distance; above 1.63 / sqrt(n) with probability 0.01.
    distance = (levels.sort().values - torch.arange(1, 2001) / 2000).abs().max()
    assert distance < 1.63 / 2000**0.5


def test_levels_and_masks_of_an_example_are_independent():
    examples = torch.arange(4000)
    levels = training_noise_levels(examples, examples, 7, 5)
    first = draw_noise(
        examples[:, None] % 400, examples[:, None] % 400, examples, torch.full((4000,), 0.5), 488, 7, 5, eps=0.0
    )
    correlation = torch.corrcoef(torch.stack([levels, first.is_masked[:, 0].float()]))[0, 1]
    assert correlation.abs() < 0.06


def test_one_percent_of_the_sequences_is_cut_to_a_uniform_length():
    examples = torch.arange(20_000)
    lengths = random_lengths(torch.full((20_000,), 100), examples, 7, 5, 0.01)
    is_cut = lengths < 100
    assert 150 < is_cut.sum() < 250
    assert lengths.min() >= 1
    assert abs(lengths[is_cut].float().mean() - 50) < 8


def test_random_lengths_reach_both_ends():
    lengths = random_lengths(torch.full((3000,), 3), torch.arange(3000), 7, 5, 1.0)
    assert torch.bincount(lengths)[1:].tolist() == pytest.approx([1000, 1000, 1000], abs=110)


def test_a_probability_of_zero_cuts_nothing():
    lengths = torch.tensor([5, 1, 9])
    assert torch.equal(random_lengths(lengths, torch.arange(3), 7, 5, 0.0), lengths)
