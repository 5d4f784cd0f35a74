"""Intervals, what to fetch next, memory, claims and the circuit breaker."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from registry_facade.breaker import Breaker
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.claims import Claim, Claims
from registry_facade.cache.intervals import Intervals
from registry_facade.cache.memory import MemoryCache
from registry_facade.cache.planning import (
    LOOKAHEAD_BYTES,
    MIN_FETCH_BYTES,
    STREAM_BYTES,
    Demand,
    Fetch,
    first_fetch,
    idle_fetch,
    next_fetch,
)
from servicekit.testing.fake_clock import FakeClock

MIB = 1 << 20
spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30)


@given(spans, st.integers(0, 60))
def test_intervals_are_a_set_of_positions(added: list[tuple[int, int]], at: int) -> None:
    intervals = Intervals(added)
    model = {position for start, stop in added for position in range(start, stop)}
    assert {position for start, stop in intervals for position in range(start, stop)} == model
    assert intervals.total_bytes == len(model)
    run = at
    while run in model:
        run += 1
    assert intervals.run_from(at) == run
    kept = list(intervals)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(kept))


@given(spans, st.integers(0, 60))
def test_gap_is_the_first_missing_run(added: list[tuple[int, int]], at: int) -> None:
    model = {position for start, stop in added for position in range(start, stop)}
    missing = [position for position in range(at, 60) if position not in model]
    gap = Intervals(added).gap_from(at, 60)
    if not missing:
        assert gap is None
    else:
        assert gap is not None
        assert gap[0] == missing[0]
        assert set(range(*gap)) <= set(missing)


@given(
    st.lists(st.tuples(st.integers(0, 63), st.integers(1, 16)), max_size=8),
    st.lists(st.tuples(st.integers(0, 63), st.integers(1, 8)), max_size=4),
)
def test_next_fetch_never_asks_for_what_is_there(
    present: list[tuple[int, int]], demanded: list[tuple[int, int]]
) -> None:
    size = 64 * MIB
    have = Intervals((start * MIB, min(64, start + length) * MIB) for start, length in present)
    demands = [Demand(at * MIB, min(64, at + length) * MIB) for at, length in demanded]
    fetch = next_fetch(have, [], demands, size)
    if have.covers(0, size):
        assert fetch is None
    else:
        assert fetch is not None
        assert 0 <= fetch.at < fetch.stop <= size
        assert all(have.run_from(at) == at for at in range(fetch.at, fetch.stop, MIB))


@given(
    st.lists(st.tuples(st.integers(0, 63), st.integers(1, 16)), max_size=8),
    st.integers(2, 4),
)
def test_parallel_fetches_bring_every_missing_byte_once(present: list[tuple[int, int]], streams: int) -> None:
    size = 64 * MIB
    have = Intervals((start * MIB, min(64, start + length) * MIB) for start, length in present)
    missing_bytes, brought_bytes = size - have.total_bytes, 0
    running: list[Fetch] = []
    while (fetch := next_fetch(have, running, [], size, streams)) is not None or running:
        if fetch is not None:
            assert fetch.stop - fetch.at <= STREAM_BYTES
            assert have.run_from(fetch.at) == fetch.at
            running.append(fetch)
            assert len(running) <= streams
        else:
            done = running.pop()
            brought_bytes += done.stop - done.at
            have.add(done.at, done.stop)
    assert have.covers(0, size)
    assert brought_bytes == missing_bytes


@pytest.mark.parametrize(
    ("at", "size", "streams", "stop"),
    [
        (0, 64 * MIB, 3, STREAM_BYTES),
        (5, 64 * MIB, 3, 5 + STREAM_BYTES),
        (0, 64 * MIB, 1, 64 * MIB),
        (0, 2 * STREAM_BYTES, 3, 2 * STREAM_BYTES),
        (50 * MIB, 64 * MIB, 3, 64 * MIB),
    ],
)
def test_the_first_request_of_several_asks_for_no_more_than_the_others(
    at: int, size: int, streams: int, stop: int
) -> None:
    assert first_fetch(at, size, streams) == Fetch(at, stop)
    assert first_fetch(at, None, streams).stop > 1 << 60


def test_demand_comes_before_the_fill() -> None:
    assert next_fetch(Intervals(), [], [Demand(10 * MIB, 11 * MIB)], 64 * MIB) == Fetch(10 * MIB, 11 * MIB)
    assert next_fetch(Intervals(), [], [], 64 * MIB) == Fetch(0, 64 * MIB)


def test_demand_just_ahead_of_a_running_fetch_waits_for_it() -> None:
    running = [Fetch(0, 64 * MIB)]
    assert next_fetch(Intervals(), running, [Demand(LOOKAHEAD_BYTES - 1, 64 * MIB)], 64 * MIB) is None
    far = next_fetch(Intervals(), running, [Demand(LOOKAHEAD_BYTES, LOOKAHEAD_BYTES + 1)], 64 * MIB)
    assert far == Fetch(LOOKAHEAD_BYTES, LOOKAHEAD_BYTES + MIN_FETCH_BYTES)


def test_only_a_long_fetch_nobody_waits_for_is_given_up() -> None:
    wanted, short, idle = Fetch(0, 64 * MIB), Fetch(8 * MIB, 9 * MIB), Fetch(16 * MIB, 64 * MIB)
    assert idle_fetch([wanted, short, idle], [Demand(MIB, 2 * MIB)]) is idle
    assert idle_fetch([wanted, short], [Demand(MIB, 2 * MIB)]) is None


def test_memory_drops_what_was_used_longest_ago() -> None:
    cache: MemoryCache[str, int] = MemoryCache(3)
    for number, key in enumerate("abc"):
        cache.put(key, number, 1)
    assert cache.get("a") == 0
    cache.put("d", 3, 1)
    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]
    cache.put("big", 9, 4)
    assert cache.get("big") is None


async def test_breaker_spares_who_fails_and_tries_again_after_a_pause() -> None:
    clock = FakeClock()
    breaker = Breaker(clock)

    async def fail() -> None:
        async with breaker.guarding():
            raise SourceUnavailable("hub", "down")

    for _ in range(Breaker.THRESHOLD):
        with pytest.raises(SourceUnavailable, match="hub is unavailable: down"):
            await fail()
    with pytest.raises(SourceUnavailable, match="it failed 5 times"):
        await fail()
    await clock.advance(Breaker.PAUSE_S)
    async with breaker.guarding():
        pass
    async with breaker.guarding():
        pass


async def test_one_process_at_a_time_holds_a_claim(tmp_path: Path) -> None:
    digest = Digest.of(b"x")
    ours, theirs = Claims(tmp_path, "/run/ours"), Claims(tmp_path, "/run/theirs")
    claim = await ours.take(digest)
    assert isinstance(claim, Claim)
    assert await theirs.take(digest) == "/run/ours"
    claim.release()
    taken = await theirs.take(digest)
    assert isinstance(taken, Claim)
    taken.release()
    assert list(tmp_path.iterdir()) == []


async def test_eviction_spares_pins_and_what_is_used_again(tmp_path: Path) -> None:
    digests = [Digest.of(bytes([number])) for number in range(5)]
    async with Catalog(tmp_path / "catalog.sqlite") as catalog:
        for at, digest in enumerate(digests[:4]):
            assert await catalog.reserve(digest, 10, 40, at) == []
            await catalog.stored(digest, 10, "upstream", "", at)
        await catalog.pin(digests[0], pinned=True)
        await catalog.touch([(digests[1], 3, 1.5)])
        assert await catalog.reserve(digests[4], 10, 40, 9) == [digests[2]]
        assert await catalog.evicted(digests[2]) == (9, "made room")
        assert await catalog.reserve(Digest.of(b"huge"), 41, 40, 10) is None
        assert await catalog.occupied_bytes() == 40
