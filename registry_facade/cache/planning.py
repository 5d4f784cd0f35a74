"""What to fetch next of a blob: demand first, the rest in order behind it. Pure."""

import dataclasses
from collections.abc import Iterable, Sequence

from registry_facade.cache.intervals import Intervals

LOOKAHEAD_BYTES = 4 << 20
"""Demand this close ahead of a running fetch waits for it: a new request would hardly be faster."""
MIN_FETCH_BYTES = 1 << 20
"""Smaller demands are rounded up to this, so that lazy pullers do not make a request per page."""
STREAM_BYTES = 8 << 20
"""What one of several parallel requests to the same source gets to fetch."""
_NO_END = 1 << 62


@dataclasses.dataclass(slots=True)
class Fetch:
    """A running request: the next byte it brings, and where it ends (which may be drawn nearer)."""

    at: int
    stop: int


@dataclasses.dataclass(frozen=True, slots=True)
class Demand:
    """A reader waits for byte ``at`` and wants all up to ``stop``."""

    at: int
    stop: int


def first_fetch(at: int, size: int | None, streams: int) -> Fetch:
    """Where ``streams`` share a large blob, its first request asks for no more than the others do.

    Neither the source nor one that is asked beside it begins with bytes that another request brings.
    """
    if size is None:
        return Fetch(at, _NO_END)
    is_shared = streams > 1 and size - at > 2 * STREAM_BYTES
    return Fetch(at, at + STREAM_BYTES if is_shared else size)


def next_fetch(
    present: Intervals, fetches: Sequence[Fetch], demands: Iterable[Demand], size: int, streams: int = 1
) -> Fetch | None:
    """The next request worth making, or None. The running fetch it begins inside of must end where it begins.

    An unserved demand comes first; without one, the gaps are filled in order: by one request at a time, or
    by ``streams`` of them that take `STREAM_BYTES` each.
    """
    for demand in demands:
        if not _is_coming(demand.at, present, fetches):
            gap = present.gap_from(demand.at, size)
            if gap is not None and gap[0] == demand.at:
                wanted = max(demand.stop, demand.at + MIN_FETCH_BYTES)
                ahead = [fetch.at for fetch in fetches if fetch.at > demand.at]
                return Fetch(demand.at, min(gap[1], wanted, *ahead))
    if streams > 1:
        return _next_stretch(present, fetches, size) if len(fetches) < streams else None
    gap = present.gap_from(0, size) if not fetches else None
    return Fetch(*gap) if gap is not None else None


def _next_stretch(present: Intervals, fetches: Sequence[Fetch], size: int) -> Fetch | None:
    """The first missing bytes that no running request is going to bring."""
    at = 0
    while (gap := present.gap_from(at, size)) is not None:
        start, stop = gap
        running = next((fetch for fetch in fetches if fetch.at <= start < fetch.stop), None)
        if running is None:
            ahead = [fetch.at for fetch in fetches if fetch.at > start]
            return Fetch(start, min(stop, start + STREAM_BYTES, *ahead))
        at = running.stop
    return None


def _is_coming(at: int, present: Intervals, fetches: Sequence[Fetch]) -> bool:
    if present.run_from(at) > at:
        return True
    return any(fetch.at <= at < min(fetch.stop, fetch.at + LOOKAHEAD_BYTES) for fetch in fetches)


def idle_fetch(fetches: Sequence[Fetch], demands: Iterable[Demand]) -> Fetch | None:
    """A long running fetch that no waiting reader is after, to be ended in favour of one who waits.

    Short ones are left to finish: what is on its way would be paid for twice.
    """
    waiting = list(demands)
    return next(
        (
            fetch
            for fetch in fetches
            if fetch.stop - fetch.at > LOOKAHEAD_BYTES
            and not any(
                fetch.at <= demand.at < min(fetch.stop, fetch.at + LOOKAHEAD_BYTES) for demand in waiting
            )
        ),
        None,
    )
