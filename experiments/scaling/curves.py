"""Power laws through losses against compute, and how much more compute one kind of model takes than another."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A measurement.

    Attributes:
        flops: of the training so far.
        loss: held-out, nats per token.
    """

    flops: float
    loss: float


class PowerLaw(NamedTuple):
    """loss = (scale / flops) ** exponent."""

    scale: float
    exponent: float

    def loss(self, flops: float) -> float:
        """The loss at a compute."""
        return (self.scale / flops) ** self.exponent

    def flops(self, loss: float) -> float:
        """The compute that a loss takes."""
        return self.scale / loss ** (1.0 / self.exponent)


def training_flops(num_parameters: int, num_tokens: int) -> float:
    """6 N D: forward and backward pass of N parameters over D tokens."""
    return 6.0 * num_parameters * num_tokens


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats with as little compute or less, by rising compute.

    Each is the best model of its compute among those measured.
    """
    best: list[Point] = []
    for point in sorted(points):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def fit_power_law(points: Sequence[Point]) -> PowerLaw:
    """Least squares through (log flops, log loss).

    Raises:
        ValueError: if the points have fewer than two different computes, or the loss does not fall.
    """
    if len({point.flops for point in points}) < 2:
        raise ValueError(f"`points` must have at least two different numbers of FLOPs, got {len(points)} point(s).")
    xs, ys = [math.log(point.flops) for point in points], [math.log(point.loss) for point in points]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys))
    slope = covariance / sum((x - x_mean) ** 2 for x in xs)
    if slope >= 0:
        raise ValueError(
            f"`points` must have a loss that falls with compute, got a slope of {slope:.3g}; train longer."
        )
    return PowerLaw(scale=math.exp(x_mean - y_mean / slope), exponent=-slope)


def compute_ratio(law: PowerLaw, other: PowerLaw, loss: float) -> float:
    """How many times the compute of `other` a loss takes under `law`."""
    return law.flops(loss) / other.flops(loss)
