"""Laws of what a training step draws: from (seed, step, example id), and from nothing else."""

import pytest
import torch

from llada_core.diffusion import NoisyBatch
from llada_training import draw_noise, random_lengths, training_noise_levels
from llada_training.noise import with_complements

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


def test_several_draws_differ_and_the_first_is_that_of_a_single_one():
    levels = training_noise_levels(EXAMPLES, EXAMPLES, 7, 5, num_draws=3)
    assert torch.equal(levels[:6], training_noise_levels(EXAMPLES, EXAMPLES, 7, 5))
    noisy = draw_noise(IDS, IDS, EXAMPLES, torch.full((18,), 0.5), 488, 7, 5)
    assert torch.equal(noisy.is_masked[:6], masks(IDS, EXAMPLES))
    assert len(levels.unique()) == 18
    assert not torch.equal(noisy.is_masked[:6], noisy.is_masked[6:12])


def test_low_discrepancy_levels_of_several_draws_fill_every_quarter_evenly():
    levels = training_noise_levels(torch.arange(8), torch.arange(8), 7, 5, low_discrepancy=True, num_draws=4)
    assert (torch.histc(levels, bins=4, min=0, max=1) - 8).abs().max() <= 1


@pytest.mark.parametrize("exact_count", [False, True])
def test_a_complement_masks_just_what_its_row_left(exact_count):
    labels = IDS.masked_fill(torch.arange(30) < 10, -100)
    levels = torch.linspace(0.05, 0.95, 6)
    noisy = draw_noise(IDS, labels, EXAMPLES, levels, 488, 7, 5, exact_count, complementary=True)
    assert torch.equal(noisy.is_masked[:6] ^ noisy.is_masked[6:], labels != -100)
    assert torch.equal(noisy.input_ids[6:] == 488, noisy.is_masked[6:])
    assert torch.allclose(noisy.noise_levels[6:], 1 - levels)


def mean_over_pairs(first_mask, noisy, score):
    """Mean of a row's estimate and its complement's, for a loss per masked token that depends on the whole mask."""
    estimates = noisy.weights.double() * torch.tensor([score(tuple(mask.tolist())) for mask in noisy.is_masked])
    return (estimates[: len(first_mask)] + estimates[len(first_mask) :]) / 2


def arbitrary_loss(mask):
    """Sum of losses of the masked tokens; each depends on all that is masked."""
    return sum((1 + place) * (1 + sum(mask)) ** 0.5 + 0.1 * mask[(place + 1) % 3] for place in range(3) if mask[place])


ALL_MASKS = torch.tensor([[bool(number >> place & 1) for place in range(3)] for number in range(8)])


def test_complements_of_exact_counts_leave_the_bound_unbiased():
    # By hand: the mean over l of L/l times the mean over the masks of l tokens.
    counts = ALL_MASKS.sum(-1)
    expected = sum(
        3 / count * torch.tensor([arbitrary_loss(tuple(m.tolist())) for m in ALL_MASKS[counts == count]]).mean() / 3
        for count in (1, 2, 3)
    )
    drawn = ALL_MASKS[1:]
    chance = torch.tensor([1 / 3 / {1: 3, 2: 3, 3: 1}[count] for count in counts[1:].tolist()])
    rows = NoisyBatch(drawn.long(), drawn, 3 / drawn.sum(-1), drawn.sum(-1) / 3)
    noisy = with_complements(rows, torch.zeros(7, 3, dtype=torch.long), torch.ones_like(drawn), 9, exact_count=True)
    mean = (chance * mean_over_pairs(drawn, noisy, arbitrary_loss)).sum()
    assert mean.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.2, 0.5])
def test_complements_of_independent_masks_leave_the_bound_unbiased(eps):
    # Midpoints of equal cells of [eps, 1], which complements map onto midpoints: the sums below are exact.
    num_cells = {0.0: 50, 0.2: 40, 0.5: 50}[eps]
    probabilities = eps + (1 - eps) * (torch.arange(num_cells).double() + 0.5) / num_cells
    drawn, scores = ALL_MASKS, torch.tensor([arbitrary_loss(tuple(mask.tolist())) for mask in ALL_MASKS])
    expected = total = 0.0
    for p in probabilities.tolist():
        chance = torch.tensor([p ** sum(mask) * (1 - p) ** (3 - sum(mask)) for mask in drawn.tolist()])
        expected += (chance * scores / p).sum().item() / num_cells
        level = torch.full((8,), (p - eps) / (1 - eps))
        rows = NoisyBatch(drawn.long(), drawn, torch.full((8,), 1 / p), level)
        noisy = with_complements(rows, torch.zeros(8, 3, dtype=torch.long), torch.ones_like(drawn), 9, eps=eps)
        total += (chance * mean_over_pairs(drawn, noisy, arbitrary_loss)).sum().item() / num_cells
    assert total == pytest.approx(expected, rel=1e-5)
