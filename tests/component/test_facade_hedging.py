"""A near source that lets one wait, is slow, or fails: the upstream serves, and it is counted who did."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ocikit.blobs import BlobReader, BlobSource
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, SourceUnavailable
from ocikit.ranges import ByteRange, ContentRange
from ocikit.testing.faults import FaultySource, stalling
from ocikit.testing.stores import MemoryBlobStore
from registry_facade.breaker import Breaker, Guarded
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.claims import Claims
from registry_facade.cache.planning import STREAM_BYTES
from registry_facade.cache.storage import Storage
from registry_facade.metrics import FacadeMetrics
from registry_facade.open_blob import read_parts
from registry_facade.sources.chain import Origin
from registry_facade.sources.pace import Pace, is_too_slow
from registry_facade.sources.read_through import Located, ReadThrough
from servicekit.metrics import Metrics
from servicekit.tasks import BackgroundTasks
from servicekit.testing.fake_clock import FakeClock

DATA = random.Random(5).randbytes((20 << 20) + 99)
DIGEST = Digest.of(DATA)


class Near:
    """The inner source under another name, the first answer at ``rate_bytes_s``; notes what it is asked."""

    name = "ipfs"

    def __init__(self, inner: BlobSource, rate_bytes_s: float = 1e12) -> None:
        self.inner = inner
        self.asked: list[ByteRange | None] = []
        self.rate_bytes_s = rate_bytes_s

    async def stat(self, digest: Digest) -> Descriptor:
        return await self.inner.stat(digest)

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        self.asked.append(byte_range)
        rate_bytes_s, self.rate_bytes_s = self.rate_bytes_s, 1e12
        async with self.inner.open(digest, byte_range) as reader:
            yield _Slowly(reader, rate_bytes_s)


class _Slowly:
    def __init__(self, inner: BlobReader, rate_bytes_s: float) -> None:
        self._inner = inner
        self._rate_bytes_s = rate_bytes_s

    @property
    def content_range(self) -> ContentRange:
        return self._inner.content_range

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._inner:
            step = 1 << 16 if self._rate_bytes_s > 1 << 16 else 1 << 12
            for at in range(0, len(data), step):
                await asyncio.sleep(min(len(data), step) / self._rate_bytes_s)
                yield data[at : at + step]


@contextlib.asynccontextmanager
async def cache(directory: Path) -> AsyncIterator[tuple[ReadThrough, Metrics]]:
    metrics = Metrics()
    counted = FacadeMetrics.on(metrics)
    async with (
        Catalog(directory / "catalog.sqlite") as catalog,
        BackgroundTasks(drain_s=1) as background,
    ):
        storage = Storage(directory, catalog, counted, max_bytes=1 << 30)
        claims = Claims(directory / "partial", "nowhere")
        yield ReadThrough(storage, counted, background, linger_s=0, claims=claims), metrics


async def pulled(through: ReadThrough, *origins: Origin) -> bytes:
    async def locate() -> Located:
        return Located(origins, len(DATA))

    async with asyncio.timeout(30), through.open(DIGEST, locate) as blob:
        whole = ByteRange().resolve(blob.size)
        return b"".join([data async for data in read_parts(blob, whole)])


@pytest.fixture
def upstream() -> MemoryBlobStore:
    store = MemoryBlobStore("upstream")
    store.add(DATA)
    return store


def count(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"{name}_total", labels) or 0.0


async def test_a_near_source_that_never_answers_costs_its_usual_time_only(tmp_path, upstream):
    silent = Near(FaultySource(upstream, [stalling(0)] * 9))
    async with cache(tmp_path) as (through, metrics):
        near = Origin(silent, trusted=False, hedged=True)
        assert await pulled(through, near, Origin(upstream)) == DATA
        assert count(metrics, "facade_hedges", source="ipfs", served_by=upstream.name) == 1
        assert count(metrics, "facade_received_bytes", source="ipfs") == 0


@pytest.mark.parametrize("when", ["while the other gives", "afterwards"])
async def test_the_near_source_s_own_verdict_is_still_heard(tmp_path, upstream, when):
    may_speak, spoke = asyncio.Event(), asyncio.Event()

    class Late(Near):
        @contextlib.asynccontextmanager
        async def open(
            self, digest: Digest, byte_range: ByteRange | None = None
        ) -> AsyncIterator[BlobReader]:
            self.asked.append(byte_range)
            await may_speak.wait()
            spoke.set()
            raise SourceUnavailable("ipfs", f"nobody is there with {digest}")
            yield

    class Giving(_Slowly):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for data in super().__aiter__():
                yield data
                if when == "while the other gives":
                    may_speak.set()
                    await spoke.wait()

    class Other(Near):
        name = upstream.name

        @contextlib.asynccontextmanager
        async def open(
            self, digest: Digest, byte_range: ByteRange | None = None
        ) -> AsyncIterator[BlobReader]:
            async with self.inner.open(digest, byte_range) as reader:
                yield Giving(reader, self.rate_bytes_s)

    async with cache(tmp_path) as (through, metrics):
        near = Origin(Late(upstream), trusted=False, hedged=True)
        assert await pulled(through, near, Origin(Other(upstream))) == DATA
        may_speak.set()
    assert count(metrics, "facade_source_failures", source="ipfs") == 1


async def test_a_near_source_that_answers_in_time_spares_the_upstream(tmp_path, upstream):
    asked = FaultySource(upstream, [])
    async with cache(tmp_path) as (through, metrics):
        near = Origin(Near(upstream), trusted=False, hedged=True)
        assert await pulled(through, near, Origin(asked)) == DATA
        assert count(metrics, "facade_received_bytes", source="ipfs") == len(DATA)
    assert asked.opened == 0


async def test_a_near_source_that_trickles_is_left_for_the_upstream_and_its_bytes_are_kept(
    tmp_path, upstream
):
    slow = Near(upstream, rate_bytes_s=300_000)
    async with cache(tmp_path) as (through, metrics):
        near = Origin(slow, trusted=False, hedged=True)
        assert await pulled(through, near, Origin(upstream)) == DATA
        assert count(metrics, "facade_slow_sources", source="ipfs") == 1
        from_near = count(metrics, "facade_received_bytes", source="ipfs")
        assert count(metrics, "facade_received_bytes", source="upstream") == len(DATA) - from_near
        assert from_near > 0


@pytest.mark.parametrize(("near_rate_bytes_s", "is_left"), [(10_000, True), (5_000_000, False)])
async def test_one_that_is_not_hedged_may_be_slow_and_must_not_trickle(
    tmp_path, upstream, near_rate_bytes_s, is_left
):
    async with cache(tmp_path) as (through, metrics):
        near = Origin(Near(upstream, near_rate_bytes_s), trusted=False)
        assert await pulled(through, near, Origin(upstream)) == DATA
        assert count(metrics, "facade_slow_sources", source="ipfs") == is_left
        assert (count(metrics, "facade_received_bytes", source="upstream") > 0) == is_left


async def test_a_slow_near_source_still_serves_when_there_is_nothing_else(tmp_path, upstream):
    slow = Near(upstream, rate_bytes_s=300_000)
    gone = FaultySource(upstream, [SourceUnavailable("upstream", "is gone")] * 99)
    async with cache(tmp_path) as (through, metrics):
        near = Origin(slow, trusted=False, hedged=True)
        assert await pulled(through, near, Origin(gone)) == DATA
        assert count(metrics, "facade_received_bytes", source="ipfs") == len(DATA)
        assert count(metrics, "facade_slow_sources", source="ipfs") == 1


async def test_a_large_blob_is_read_in_several_ranges_at_a_time_each_byte_once(tmp_path, upstream):
    near = Near(upstream)
    async with cache(tmp_path) as (through, metrics):
        assert await pulled(through, Origin(near, trusted=False, streams=3)) == DATA
        received = count(metrics, "facade_received_bytes", source="ipfs")
    assert len(near.asked) == 3
    assert len(DATA) <= received < len(DATA) + (1 << 20)


class Waiting(Near):
    """Lets the requests that ``is_late`` names wait longer than anybody's patience."""

    def __init__(self, inner: BlobSource, is_late: Callable[[int], bool]) -> None:
        super().__init__(inner)
        self.is_late = is_late

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        self.asked.append(byte_range)
        if self.is_late(len(self.asked)):
            await asyncio.sleep(1.5)
        async with self.inner.open(digest, byte_range) as reader:
            yield reader


async def test_who_is_asked_beside_a_near_source_brings_one_range_and_the_near_one_the_rest(
    tmp_path, upstream
):
    late_once = Waiting(upstream, lambda number: number == 1)
    async with cache(tmp_path) as (through, metrics):
        near = Origin(late_once, trusted=False, hedged=True, streams=3)
        assert await pulled(through, near, Origin(upstream)) == DATA
        assert count(metrics, "facade_hedges", source="ipfs", served_by=upstream.name) == 1
        assert count(metrics, "facade_received_bytes", source=upstream.name) == STREAM_BYTES
        assert count(metrics, "facade_received_bytes", source="ipfs") == len(DATA) - STREAM_BYTES


async def test_a_near_source_that_has_begun_to_give_may_make_its_later_ranges_wait(tmp_path, upstream):
    asked = FaultySource(upstream, [])
    late_later = Waiting(upstream, lambda number: number > 1)
    async with cache(tmp_path) as (through, metrics):
        near = Origin(late_later, trusted=False, hedged=True, streams=3)
        assert await pulled(through, near, Origin(asked)) == DATA
        assert count(metrics, "facade_received_bytes", source="ipfs") == len(DATA)
    assert asked.opened == 0


async def test_a_source_that_fails_again_and_again_is_left_alone_for_a_while(upstream):
    clock = FakeClock()
    broken = FaultySource(upstream, [SourceUnavailable("x", "is down")] * (Breaker.THRESHOLD + 1))
    guarded = Guarded(broken, Breaker(clock, "ipfs"))
    for _ in range(Breaker.THRESHOLD + 3):
        with pytest.raises(SourceUnavailable):
            async with guarded.open(DIGEST):
                pass
    assert broken.opened == Breaker.THRESHOLD
    with pytest.raises(SourceUnavailable, match="ipfs is unavailable: it failed 5 times"):
        await guarded.stat(DIGEST)
    await clock.advance(Breaker.PAUSE_S)
    with pytest.raises(SourceUnavailable, match="is down"):
        async with guarded.open(DIGEST):
            pass
    await clock.advance(Breaker.PAUSE_S)
    async with guarded.open(DIGEST) as reader:
        assert reader.content_range.size == len(DATA)


async def test_absence_is_no_failure_of_a_source(upstream):
    guarded = Guarded(upstream, Breaker(FakeClock(), "ipfs"))
    for _ in range(Breaker.THRESHOLD + 1):
        with pytest.raises(BlobNotFound):
            await guarded.stat(Digest.of(b"nobody has this"))


def test_patience_is_learned_and_bounded():
    pace = Pace(FakeClock())
    assert pace.patience_s == 0.5
    for _ in range(32):
        pace.answered(0.1)
    assert pace.patience_s == 0.2
    pace.answered(5.0)
    assert pace.patience_s == 0.2
    for _ in range(32):
        pace.answered(5.0)
    assert pace.patience_s == 1.0
    for _ in range(32):
        pace.answered(0.0001)
    assert pace.patience_s == 0.05


@pytest.mark.parametrize(
    ("near_rate", "far_rate", "expected"),
    [(100, 10, False), (10, 15, False), (4, 10, True), (0.1, None, True), (3, None, False)],
)
async def test_slow_is_less_than_half_of_the_source_behind(near_rate, far_rate, expected):
    clock = FakeClock()
    near, far = Pace(clock), Pace(clock)
    for pace, rate in ((near, near_rate), (far, far_rate)):
        if rate is not None:
            with pace.busy():
                await clock.advance(3.0)
                pace.received(int(rate * 3e6))
    assert is_too_slow(near, far) is expected


def test_a_source_that_was_hardly_used_is_not_judged():
    assert not is_too_slow(Pace(FakeClock()), Pace(FakeClock()))
