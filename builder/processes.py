"""Running programs: their output line by line, and no process left behind by a cancelled caller."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from builder.errors import EngineUnavailable

TIED = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") is not None else ()
"""In front of a command: when this process is killed, so that it cannot kill the command, the kernel does."""
_READ_BYTES = 1 << 16
_MAX_LINE = 4000
_TAIL_LINES = 20


@contextlib.asynccontextmanager
async def running(
    argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Starts ``argv`` in a process group of its own, which is dead when the block has ended.

    stdout and stderr come as one pipe. Raises EngineUnavailable when the program cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise EngineUnavailable(argv[0], error.strerror or str(error)) from error
    try:
        yield process
    finally:
        await end_process(process)


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Kills the group of ``process``, if it is still there, and waits."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines without their ends; endless ones are cut, carriage returns end a line too."""
    rest = b""
    while data := await stream.read(_READ_BYTES):
        *whole, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
        rest = rest[:_MAX_LINE]
        for line in whole:
            if line:
                yield line[:_MAX_LINE].decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


async def run_logged(
    argv: Sequence[str], on_line: Callable[[str], None], *, cwd: Path | None = None
) -> tuple[int, Sequence[str]]:
    """Runs to the end; the exit status and the last lines of the output."""
    tail: list[str] = []
    async with running(argv, cwd=cwd) as process:
        if process.stdout is not None:
            async for line in lines_of(process.stdout):
                on_line(line)
                tail = [*tail[1 - _TAIL_LINES :], line]
        return await process.wait(), tail
