"""How many cases the fuzzers try, and how long each of them may take.

`LLADA_FUZZ_PROFILE` names the profile: `ci` (the default) tries the same few cases every time, `long` tries
`LLADA_FUZZ_FACTOR` times as many, other ones at every run.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, settings

PROFILE_VARIABLE, FACTOR_VARIABLE = "LLADA_FUZZ_PROFILE", "LLADA_FUZZ_FACTOR"
PROFILES = ("ci", "long")
DEFAULT_FACTOR = 50
# Seconds for one case; with usual options it takes a few hundredths of one.
TIME_LIMIT = 60.0


def cases(count: int) -> Callable[[Any], Any]:
    """Decorate a test that tries `count` cases in CI."""
    profile = os.environ.get(PROFILE_VARIABLE, "ci")
    if profile not in PROFILES:
        raise ValueError(f"`{PROFILE_VARIABLE}` must be one of {', '.join(PROFILES)}, got {profile!r}.")
    common: dict[str, Any] = {
        "deadline": None,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
        # Without the search for an explanation, which takes longer than all the rest.
        "phases": [phase for phase in Phase if phase != Phase.explain],
    }
    if profile == "ci":
        return settings(max_examples=count, derandomize=True, database=None, **common)
    factor = int(os.environ.get(FACTOR_VARIABLE, DEFAULT_FACTOR))
    return settings(max_examples=count * factor, print_blob=True, **common)


@contextlib.contextmanager
def watchdog(seconds: float = TIME_LIMIT) -> Iterator[None]:
    """Fail what has not ended in time, an endless loop in Python among it."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"no end within {seconds:g} s")

    # pytest-timeout uses the same timer for the whole test.
    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
