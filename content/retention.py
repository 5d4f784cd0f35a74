"""Which snapshots to keep; pure. A snapshot is kept when any rule wants it; the latest always is, and so is
the latest that is not damaged.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from content.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class KeepRules:
    """``last`` newest ones, and the newest of each of so many hours, days, weeks, months (in UTC) that have
    one.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @property
    def is_empty(self) -> bool:
        return self == KeepRules()


@dataclass(frozen=True, slots=True)
class Verdict:
    """``reasons`` is empty when the snapshot is to go."""

    snapshot: Snapshot
    reasons: tuple[str, ...]


def judge(
    snapshots: Sequence[Snapshot], rules: KeepRules, damaged: Collection[str] = frozenset()
) -> list[Verdict]:
    """A verdict for each, newest first. Without any rule all are kept. ``damaged`` are ids of snapshots that
    could not be restored: rules do not count them, so that none makes a good one go.
    """
    newest_first = sorted(snapshots, key=lambda snapshot: (snapshot.created_s, snapshot.id), reverse=True)
    reasons: dict[str, list[str]] = {snapshot.id: [] for snapshot in newest_first}
    good = [snapshot for snapshot in newest_first if snapshot.id not in damaged]
    for snapshot in newest_first[:1]:
        reasons[snapshot.id].append("latest")
    for snapshot in good[:1]:
        reasons[snapshot.id].append("last good")
    if rules.is_empty:
        for snapshot in newest_first:
            reasons[snapshot.id].append("no rule given")
    for snapshot in good[: rules.last]:
        reasons[snapshot.id].append("last")
    for name, count, period in (
        ("hourly", rules.hourly, _period("%Y-%m-%dT%H")),
        ("daily", rules.daily, _period("%Y-%m-%d")),
        ("weekly", rules.weekly, _period("%G-W%V")),
        ("monthly", rules.monthly, _period("%Y-%m")),
    ):
        seen: set[str] = set()
        for snapshot in good:
            if period(snapshot) not in seen and len(seen) < count:
                seen.add(period(snapshot))
                reasons[snapshot.id].append(name)
    return [Verdict(snapshot, tuple(reasons[snapshot.id])) for snapshot in newest_first]


def _period(pattern: str) -> Callable[[Snapshot], str]:
    return lambda snapshot: datetime.fromtimestamp(snapshot.created_s, UTC).strftime(pattern)
