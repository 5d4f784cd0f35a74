import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.backoff import Backoff, retry
from servicekit.testing.fake_clock import NoWaiting


class _Passing(Exception):
    retryable = True

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__("busy")
        self.retry_after_s = retry_after_s


class _Final(Exception):
    retryable = False


class _Script:
    """Raises each of the errors in turn, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "done"


async def test_repeats_what_may_pass() -> None:
    clock, script = NoWaiting(), _Script(_Passing(), _Passing())
    told: list[tuple[str, int]] = []
    result = await retry(script, clock=clock, on_retry=lambda error, at, _: told.append((str(error), at)))
    assert (result, script.calls, told) == ("done", 3, [("busy", 1), ("busy", 2)])
    assert len(clock.slept_s) == 2


@pytest.mark.parametrize("error", [_Final("no"), ValueError("plain")], ids=["said so", "never said"])
async def test_gives_up_at_once_on_what_will_not_pass(error: Exception) -> None:
    clock, script = NoWaiting(), _Script(error)
    with pytest.raises(type(error)):
        await retry(script, clock=clock)
    assert (script.calls, clock.slept_s) == (1, [])


async def test_raises_the_last_error_unchanged_when_attempts_are_used_up() -> None:
    errors = [_Passing(), _Passing(), _Passing()]
    with pytest.raises(_Passing) as caught:
        await retry(_Script(*errors), backoff=Backoff(attempts=3), clock=NoWaiting())
    assert caught.value is errors[2]


async def test_waits_as_long_as_the_peer_asks_but_not_beyond_the_cap() -> None:
    clock = NoWaiting()
    await retry(_Script(_Passing(5.0), _Passing(9999.0)), backoff=Backoff(first_s=0.1, cap_s=20), clock=clock)
    assert clock.slept_s == [5.0, 20.0]


async def test_zero_attempts_is_a_programming_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        await retry(_Script(), backoff=Backoff(attempts=0))


@given(st.integers(0, 60))
def test_delays_grow_to_the_cap_with_jitter_in_the_upper_half(attempt: int) -> None:
    backoff = Backoff(first_s=0.5, factor=2, cap_s=8)
    ceiling = min(8, 0.5 * 2**attempt)
    assert ceiling / 2 <= backoff.delay_s(attempt) <= ceiling
