"""Sizes, rates and durations as people write them.

``10MiB`` and ``10M`` are 10 x 2^20 bytes, ``10MB`` is 10 x 10^6: the suffixes of GNU coreutils.
"""

import re
from decimal import Decimal

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(i?B?)\s*\Z", re.IGNORECASE)
_DURATION = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?\s*\Z")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes meant by ``text``, e.g. ``512``, ``64K``, ``1.5GiB``, ``20MB``. Raises ValueError."""
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write bytes or a number with K, M, G, T, KiB, MB ...")
    number, power, suffix = match.groups()
    decimal = suffix.upper() == "B" and power != ""
    return int(Decimal(number) * (1000 if decimal else 1024) ** _POWERS[power.upper()])


def parse_rate(text: str) -> int:
    """Bytes per second meant by ``text``, e.g. ``20MiB/s``; ``/s`` may be left out. Raises ValueError."""
    return parse_size(text.strip().removesuffix("/s"))


def parse_duration(text: str) -> float:
    """Seconds meant by ``text``, e.g. ``1.5``, ``250ms``, ``10m``, ``2h``. Raises ValueError."""
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write seconds or a number with ms, s, m, h, d")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def format_size(size_bytes: float) -> str:
    """A size for people, in binary units: ``0 B``, ``1.4 MiB``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError  # the loop always returns at TiB
