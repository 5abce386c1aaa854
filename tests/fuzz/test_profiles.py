"""Laws of the fuzzers' own tools."""

import signal
import time

import pytest

from .profiles import PROFILE_VARIABLE, cases, watchdog


def test_an_unknown_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROFILE_VARIABLE, "quick")
    with pytest.raises(ValueError, match="`LLADA_FUZZ_PROFILE` must be one of ci, long, got 'quick'"):
        cases(3)


def test_what_does_not_end_fails_and_the_timer_of_the_test_goes_on() -> None:
    before = signal.getitimer(signal.ITIMER_REAL)
    with pytest.raises(AssertionError, match=r"no end within 0\.1 s"), watchdog(0.1):
        time.sleep(60)
    after = signal.getitimer(signal.ITIMER_REAL)
    assert (after[0] > 0) is (before[0] > 0)
