"""Which bytes of a blob are there: sorted, disjoint, non-touching half-open intervals. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """A mutable set of byte positions. Operations cost O(log n) plus what they merge."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in spans:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total_bytes(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Adds ``[start, stop)``, merging whatever it overlaps or touches."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def run_from(self, at: int) -> int:
        """The end of the unbroken run that holds ``at``; ``at`` itself when it is missing."""
        index = bisect_right(self._starts, at) - 1
        return self._stops[index] if index >= 0 and at < self._stops[index] else at

    def gap_from(self, at: int, size: int) -> tuple[int, int] | None:
        """The first missing ``[start, stop)`` at or after ``at`` in a blob of ``size`` bytes."""
        start = self.run_from(at)
        if start >= size:
            return None
        index = bisect_right(self._starts, start)
        return start, self._starts[index] if index < len(self._starts) else size

    def covers(self, start: int, stop: int) -> bool:
        return start >= stop or self.run_from(start) >= stop
