"""Runs `registry_facade.soci.build` for a layer, behind every pull.

The process is of the scheduler's idle class; what it takes from a pull's memory and caches that cannot help,
so it is also stopped while somebody reads a blob of this process.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocikit.digest import Digest
from registry_facade.soci.errors import BuildFailed

PATIENCE_S = 60.0
"""It is stopped for so long altogether: a facade that never rests has its layers indexed too."""
_LOOK_EVERY_S = 0.05
_SAID_BYTES = 2000


async def run_build(
    layer: Digest, path: Path, out: Path, is_busy: Callable[[], bool] | None
) -> dict[str, Any]:
    """What the process answers; ``is_busy`` says when it has to wait, None that somebody waits for it.

    Raises BuildFailed. The process is gone when this returns, however it does.
    """
    await asyncio.to_thread(out.parent.mkdir, parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "registry_facade.soci.build"),
        *(str(path), layer, str(out), str(os.getpid()), "awaited" if is_busy is None else "idle"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    pacing = asyncio.create_task(_pace(process, is_busy)) if is_busy is not None else None
    try:
        said, complaint = await process.communicate()
    finally:
        if pacing is not None:
            pacing.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
    if process.returncode != 0:
        raise BuildFailed(layer, _reason(process.returncode, complaint[-_SAID_BYTES:]))
    answer: dict[str, Any] = json.loads(said)
    return answer


async def _pace(process: asyncio.subprocess.Process, is_busy: Callable[[], bool]) -> None:
    stopped_s, is_stopped = 0.0, False
    while stopped_s < PATIENCE_S:
        if is_busy() != is_stopped:
            is_stopped = not is_stopped
            _signal(process, signal.SIGSTOP if is_stopped else signal.SIGCONT)
        await asyncio.sleep(_LOOK_EVERY_S)
        stopped_s += _LOOK_EVERY_S if is_stopped else 0.0
    _signal(process, signal.SIGCONT)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _reason(status: int | None, complaint: bytes) -> str:
    if status is not None and status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
    return last or f"its process ended with status {status}"
