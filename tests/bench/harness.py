"""Runs ours and the peer in turn, so that a noisy machine disturbs both, and compares medians of ratios.

A benchmark module ``bench_<area>.py`` has ``benches() -> list[Bench]``. A side is a function without
arguments; it returns its figure, or None to be timed by the wall clock.
"""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.components import missing

Side = Callable[[], float | None]


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
    """``ratio`` is the median of the rounds' ratios, ``spread`` the least and the greatest of them."""

    name: str
    peer: str
    unit: str
    bound: str
    ours: float | None = None
    theirs: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
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
    with _directory() as directory, bench.sides(directory) as sides:
        _figure(sides.ours)
        _figure(sides.peer)
        pairs = [_pair(sides, flipped=number % 2 == 1) for number in range(bench.rounds)]
    ratios = [ours / theirs for ours, theirs in pairs]
    return Result(
        *head,
        statistics.median(ours for ours, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
    )


def _pair(sides: Sides, *, flipped: bool) -> tuple[float, float]:
    if flipped:
        theirs = _figure(sides.peer)
        return _figure(sides.ours), theirs
    return _figure(sides.ours), _figure(sides.peer)


def _figure(side: Side) -> float:
    started_s = time.perf_counter()
    figure = side()
    return time.perf_counter() - started_s if figure is None else figure


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lapstrake-bench-") as name:
        yield Path(name)


def table(results: Sequence[Result]) -> str:
    """For people."""
    rows = [("benchmark", "ours", "peer", "ratio", "least..greatest", "bound", "")]
    for item in results:
        if item.ratio is None or item.spread is None:
            rows.append((item.name, "", "", "", "", item.bound, f"left out: {item.left_out}"))
            continue
        verdict = {True: "met", False: "NOT MET", None: ""}[item.is_met]
        rows.append((
            item.name, f"{item.ours:.4g} {item.unit}", f"{item.theirs:.4g} {item.unit} ({item.peer})",
            f"{item.ratio:.3f}", f"{item.spread[0]:.3f}..{item.spread[1]:.3f}", item.bound, verdict,
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
