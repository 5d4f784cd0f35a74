"""What the facade has pinned, and which of it goes when the node is nearly full. Pure.

A pin's own name says all that is known of it, so that facades which share a node agree, and no database
can be lost: ``lapstrake:<digest>:<size in bytes>:<last use, seconds since 1970>``.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ocikit.digest import Digest
from ocikit.errors import InvalidDigest

PREFIX = "lapstrake:"
"""Pins of this name are the facade's own, and no others are ever removed by it."""
HIGH, LOW = 0.9, 0.75
"""Above the first share of the budget layers are unpinned, until the second is reached."""


@dataclass(frozen=True, slots=True)
class Pin:
    cid: str
    digest: Digest
    size: int
    used_s: float

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.digest}:{self.size}:{int(self.used_s)}"

    @classmethod
    def parse(cls, cid: str, name: str) -> "Pin | None":
        """None for a pin of somebody else's."""
        digest, _, numbers = name.removeprefix(PREFIX).rpartition(":")[0].rpartition(":")
        used = name.rpartition(":")[2]
        if not name.startswith(PREFIX) or not numbers.isdecimal() or not used.isdecimal():
            return None
        try:
            return cls(cid, Digest.parse(digest), int(numbers), float(used))
        except InvalidDigest:
            return None


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes in the node's repository, and how many there may be."""

    occupied_bytes: int
    budget_bytes: int

    @property
    def is_high(self) -> bool:
        return self.occupied_bytes > HIGH * self.budget_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Which pins go, the least recently pulled first; ``unpinned_bytes`` go by collecting alone."""

    usage: Usage
    victims: Sequence[Pin]
    unpinned_bytes: int
    is_needed: bool

    @property
    def freed_bytes(self) -> int:
        return self.unpinned_bytes + sum(pin.size for pin in self.victims) if self.is_needed else 0


def plan_collection(
    pins: Iterable[Pin], usage: Usage, *, needed_bytes: int = 0, kept: Collection[Digest] = ()
) -> Plan:
    """What to do so that ``needed_bytes`` more fit in. ``kept`` stay whatever comes."""
    own = sorted(pins, key=lambda pin: (pin.used_s, pin.digest))
    pinned_bytes = sum(pin.size for pin in own)
    unpinned_bytes = max(0, usage.occupied_bytes - pinned_bytes)
    if usage.occupied_bytes + needed_bytes <= HIGH * usage.budget_bytes:
        return Plan(usage, (), unpinned_bytes, is_needed=False)
    excess = min(pinned_bytes, usage.occupied_bytes) + needed_bytes - LOW * usage.budget_bytes
    victims: list[Pin] = []
    for pin in own:
        if excess <= 0:
            break
        if pin.digest not in kept:
            victims.append(pin)
            excess -= pin.size
    return Plan(usage, victims, unpinned_bytes, is_needed=True)
