"""Runs ours and the peer in turn, so that a noisy machine disturbs both, and compares medians of ratios.

A benchmark module ``bench_<area>.py`` has ``benches() -> list[Bench]``. A side is a function without
arguments; it returns its figure, a `Timed`, or None to be timed by the wall clock.
"""

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.bench import scratch
from tests.support.components import missing


@dataclasses.dataclass(frozen=True)
class Timed:
    """How long something took: by the wall clock, and of processors, children that ended included."""

    seconds: float
    processor_s: float


Side = Callable[[], float | Timed | None]


def timed(work: Callable[[], object]) -> Timed:
    started_s, used_s = time.perf_counter(), _processor_s()
    work()
    return Timed(time.perf_counter() - started_s, _processor_s() - used_s)


def _processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@dataclasses.dataclass(frozen=True)
class Sides:
    """What is compared: ``ours / peer`` is the ratio."""

    ours: Side
    peer: Side


@dataclasses.dataclass(frozen=True)
class Bench:
    """One comparison.

    ``sides`` prepares it in an empty directory; ``bound`` is ``<= x``, ``>= x``, or empty for a ratio that
    is only reported; ``needs`` are components without which it is left out.
    """

    name: str
    peer: str
    unit: str
    bound: str
    sides: Callable[[Path], AbstractContextManager[Sides]]
    needs: tuple[str, ...] = ()
    rounds: int = 5


@dataclasses.dataclass(frozen=True)
class Result:
    """``ratio`` is the median of the rounds' ratios, ``spread`` the least and the greatest of them.
    ``processor_ratio`` is the median of those of processor time, which a busy machine disturbs least; of
    sides that measure it.
    """

    name: str
    peer: str
    unit: str
    bound: str
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    processor_ratio: float | None = None
    left_out: str = ""

    @property
    def is_met(self) -> bool | None:
        """None where there is nothing to meet."""
        if self.ratio is None or not self.bound:
            return None
        relation, limit = self.bound.split()
        return self.ratio <= float(limit) if relation == "<=" else self.ratio >= float(limit)


def run(bench: Bench) -> Result:
    """One warm-up, then ``rounds`` of ours and peer, the order changing from round to round."""
    head = (bench.name, bench.peer, bench.unit, bench.bound)
    absent = [gone for name in bench.needs for gone in missing(name)]
    if absent:
        return Result(*head, left_out=f"not found on PATH: {', '.join(absent)}")
    with scratch.directory() as directory, bench.sides(directory) as sides:
        _figure(sides.ours)
        _figure(sides.peer)
        pairs = [_pair(sides, flipped=number % 2 == 1) for number in range(bench.rounds)]
    ratios = [ours.seconds / theirs.seconds for ours, theirs in pairs]
    processor = [ours.processor_s / theirs.processor_s for ours, theirs in pairs if theirs.processor_s]
    return Result(
        *head,
        statistics.median(ours.seconds for ours, _ in pairs),
        statistics.median(theirs.seconds for _, theirs in pairs),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        statistics.median(processor) if processor else None,
    )


def _pair(sides: Sides, *, flipped: bool) -> tuple[Timed, Timed]:
    if flipped:
        theirs = _figure(sides.peer)
        return _figure(sides.ours), theirs
    return _figure(sides.ours), _figure(sides.peer)


def _figure(side: Side) -> Timed:
    """A figure that is no time stands in the place of the seconds."""
    started_s = time.perf_counter()
    figure = side()
    if isinstance(figure, Timed):
        return figure
    return Timed(time.perf_counter() - started_s if figure is None else figure, 0.0)


def table(results: Sequence[Result]) -> str:
    """For people."""
    rows = [("benchmark", "ours", "peer", "ratio", "least..greatest", "cpu", "bound", "")]
    for item in results:
        if item.ratio is None or item.spread is None:
            rows.append((item.name, "", "", "", "", "", item.bound, f"left out: {item.left_out}"))
            continue
        verdict = {True: "met", False: "NOT MET", None: ""}[item.is_met]
        rows.append((
            item.name, f"{item.ours:.4g} {item.unit}", f"{item.theirs:.4g} {item.unit} ({item.peer})",
            f"{item.ratio:.3f}", f"{item.spread[0]:.3f}..{item.spread[1]:.3f}",
            "" if item.processor_ratio is None else f"{item.processor_ratio:.3f}", item.bound, verdict,
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
