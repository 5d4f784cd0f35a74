"""Pre-pulling the images of the settings, at the start and then again and again."""

import platform as _machine
from collections.abc import Sequence

from ocikit.descriptor import Platform
from registry_facade.warming.warmer import Warmer
from servicekit.clock import Clock, SystemClock


async def keep_warm(
    warmer: Warmer,
    images: Sequence[str],
    platform: Platform | None,
    rate_bytes_s: float | None,
    every_s: float,
    *,
    clock: Clock = SystemClock(),
) -> None:
    """Until cancelled. A tag that has moved is followed the next time."""
    while True:
        async for _ in warmer.warm(images, platform, rate_bytes_s):
            pass
        await clock.sleep(every_s)


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def this_platform() -> Platform:
    """What this machine runs, as images call it."""
    machine = _machine.machine()
    return Platform("linux", _ARCHITECTURES.get(machine, machine))
