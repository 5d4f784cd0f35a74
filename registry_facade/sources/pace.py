"""How fast a source usually is: what deciding to ask another one goes by. One event loop."""

import contextlib
from collections import deque
from collections.abc import Iterator

from servicekit.clock import Clock, SystemClock

_KEPT = 32
_UNKNOWN_S = 0.5
_LEAST_S, _MOST_S = 0.05, 1.0
_WINDOW_S = 4.0
"""Of busy time; older bytes count half, and half again."""
_TELLING_BYTES = 1 << 20


class Pace:
    """Of one source, over everything that is asked of it at the same time."""

    def __init__(self, clock: Clock = SystemClock()) -> None:
        self._clock = clock
        self._waits_s: deque[float] = deque(maxlen=_KEPT)
        self._active = 0
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._bytes = 0.0

    @property
    def patience_s(self) -> float:
        """How long its first byte may take before another source is asked too."""
        if not self._waits_s:
            return _UNKNOWN_S
        ordered = sorted(self._waits_s)
        return min(_MOST_S, max(_LEAST_S, 2 * ordered[len(ordered) * 9 // 10]))

    def answered(self, after_s: float) -> None:
        """A first byte came."""
        self._waits_s.append(after_s)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Around a request: only time in which something is asked for counts."""
        self._settle()
        self._active += 1
        try:
            yield
        finally:
            self._settle()
            self._active -= 1

    def received(self, size_bytes: int) -> None:
        """Bytes of requests that are not `busy` say nothing."""
        self._settle()
        if self._active:
            self._bytes += size_bytes

    def _settle(self) -> None:
        now_s = self._clock.monotonic()
        if self._active:
            self._busy_s += now_s - self._busy_since_s
            while self._busy_s > _WINDOW_S:
                self._busy_s, self._bytes = self._busy_s / 2, self._bytes / 2
        self._busy_since_s = now_s

    @property
    def busy_s(self) -> float:
        """How much time `rate_bytes_s` is the average of."""
        self._settle()
        return self._busy_s

    @property
    def rate_bytes_s(self) -> float | None:
        """Bytes per second while busy; None while too little has come to tell."""
        self._settle()
        return self._bytes / self._busy_s if self._busy_s and self._bytes >= _TELLING_BYTES else None


class Paces:
    """Those of all sources of a process, by name."""

    def __init__(self, clock: Clock = SystemClock()) -> None:
        self._clock = clock
        self._by_name: dict[str, Pace] = {}

    def of(self, name: str) -> Pace:
        if name not in self._by_name:
            self._by_name[name] = Pace(self._clock)
        return self._by_name[name]


_LEAST_RATE_BYTES_S = 1 << 20
JUDGED_AFTER_S = 2.0
TRICKLE_BYTES = 32 << 10
"""Less than this in `JUDGED_AFTER_S` keeps a request alive rather than serves it."""


def is_too_slow(near: Pace, far: Pace) -> bool:
    """Whether a blob is better fetched from ``far``: the near one gives less than half of its rate."""
    if near.busy_s < JUDGED_AFTER_S / 2:
        return False
    return (near.rate_bytes_s or 0.0) < (far.rate_bytes_s or 2.0 * _LEAST_RATE_BYTES_S) / 2
