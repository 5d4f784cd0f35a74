"""How much the neighbours wait for the disk, by the kernel's pressure stall information.

``<cgroup>/io.pressure`` has the microseconds in which some task of that group waited for I/O ("some ...
total="). The share of time is taken from the growth of that number, which reacts faster than the averages
beside it. What is watched are the neighbours' files, not the node's: a backup waits for the disk itself.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def stalled_us(text: str) -> int:
    """The total of "some" in a pressure file. Raises ValueError."""
    for line in text.splitlines():
        kind, _, pairs = line.partition(" ")
        if kind == "some":
            return int(dict(pair.split("=", 1) for pair in pairs.split())["total"])
    raise ValueError("no line of 'some'")


@dataclass(frozen=True, slots=True)
class Reading:
    """Totals by file, and when they were read."""

    at_ns: int
    stalled_us: Mapping[str, int]


def read(patterns: Sequence[str]) -> Reading:
    """Of every file that matches; those that cannot be read, or vanish, are left out. Blocking."""
    found: dict[str, int] = {}
    for pattern in patterns:
        for path in Path("/").glob(pattern.lstrip("/")):
            try:
                found[str(path)] = stalled_us(path.read_text())
            except (OSError, ValueError, KeyError):
                continue
    return Reading(time.monotonic_ns(), found)


def share(before: Reading, now: Reading) -> float:
    """The greatest share of the time between in which some neighbour waited: 0 to 1."""
    elapsed_us = (now.at_ns - before.at_ns) / 1000
    if elapsed_us <= 0:
        return 0.0
    waits = [
        total - before.stalled_us[path] for path, total in now.stalled_us.items() if path in before.stalled_us
    ]
    return min(1.0, max(waits, default=0) / elapsed_us)
