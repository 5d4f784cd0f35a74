"""The rate that was asked for against the rate that was achieved."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from servicekit.throttle import Throttle
from tests.bench.harness import Bench, Sides

_RATE_BYTES_S = 64 << 20
_PIECE_BYTES = 256 << 10
_PIECES = 128


async def _achieved_bytes_s(tasks: int) -> float:
    node = Throttle(_RATE_BYTES_S)
    jobs = [Throttle(None, parent=node) for _ in range(tasks)]
    await node.acquire(_PIECE_BYTES)  # the first piece is free; what follows pays for it
    started_s = time.perf_counter()

    async def work(job: Throttle) -> None:
        for _ in range(_PIECES // tasks):
            await job.acquire(_PIECE_BYTES)

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(work(job))
    return _PIECES * _PIECE_BYTES / (time.perf_counter() - started_s)


def _bench(tasks: int, bound: str) -> Bench:
    @contextlib.contextmanager
    def sides(_directory: Path) -> Iterator[Sides]:
        yield Sides(ours=lambda: asyncio.run(_achieved_bytes_s(tasks)), peer=lambda: float(_RATE_BYTES_S))

    name = f"throttle: achieved rate, {tasks} job{'s' * (tasks > 1)}, {bound[:2]} asked"
    return Bench(name, "the rate asked", "B/s", bound, sides)


def benches() -> list[Bench]:
    return [_bench(tasks, bound) for tasks in (1, 8) for bound in ("<= 1.05", ">= 0.90")]
