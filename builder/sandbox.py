"""Running a command in an image: its layers stacked by overlayfs, in namespaces of its own.

No container runtime and no daemon: ``unshare`` of util-linux, then `builder.sandbox_child`. What the command
writes lies in memory and is gone afterwards, so layers are unpacked once and shared by all runs. Its network
is a loopback of its own: tests run side by side, and what passed once can be remembered.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import EngineUnavailable
from builder.processes import TIED, end_process
from builder.unpack import UnpackedLayers
from builder.users import Identity, resolve_user
from ocikit.compose import paired_layers
from ocikit.repository import Image, Repository

_CHILD = Path(__file__).with_name("sandbox_child.py")
_UNSHARE = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child=SIGKILL")
_MAX_OUTPUT_BYTES = 64 << 20
_READ_BYTES = 1 << 16
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Command:
    """``entrypoint`` None means the image's; ``user`` empty likewise. ``terminal`` makes stdin one."""

    argv: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    env: Mapping[str, str]
    user: str
    terminal: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """``stdout`` and ``stderr`` as text, each cut at 64 MiB; ``status`` is 128 + n for a signal n."""

    status: int
    stdout: str
    stderr: str


class Sandbox:
    """Safe for concurrent use; needs root."""

    def __init__(self, layers: UnpackedLayers) -> None:
        self._layers = layers

    async def run(
        self, image: Image, repository: Repository, command: Command, *, timeout_s: float
    ) -> Outcome:
        """Raises TimeoutError, with every process of the command dead, or EngineUnavailable."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            raise EngineUnavailable("the test sandbox", "it needs root and util-linux; or use --no-test")
        layers = [
            await self._layers.ensure(layer, repository)
            for layer in paired_layers(image.manifest, image.config)
        ]
        roots = [self._layers.root / name for name in layers]
        user = command.user or str(image.config.execution.get("User") or "")
        identity = await asyncio.to_thread(resolve_user, user, roots)
        with self._layers.scratch.directory() as scratch:
            specification = _specification(image, command, identity, layers, str(scratch))
            async with asyncio.timeout(timeout_s):
                return await self._run(specification, terminal=command.terminal)

    async def _run(self, specification: dict[str, object], *, terminal: bool) -> Outcome:
        report_in, report_out = os.pipe()
        with os.fdopen(report_in, "rb") as report:
            try:
                specification |= {"report_fd": report_out, "terminal": terminal}
                process = await asyncio.create_subprocess_exec(
                    *TIED, *_UNSHARE, sys.executable, "-I", str(_CHILD), json.dumps(specification),
                    stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    cwd=self._layers.root, env={}, pass_fds=(report_out,), start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(report_out)
            try:
                stdout, stderr = await asyncio.gather(_collect(process.stdout), _collect(process.stderr))
                status = await process.wait()
            finally:
                await end_process(process)
            complaint = await asyncio.to_thread(report.read)
        if complaint:
            raise EngineUnavailable("the test sandbox", f"{complaint.decode()}; or use --no-test")
        return Outcome(status if status >= 0 else 128 - status, stdout, stderr)


def _specification(
    image: Image, command: Command, identity: Identity, layers: Sequence[str], scratch: str
) -> dict[str, object]:
    execution = image.config.execution
    entrypoint = execution.get("Entrypoint") or () if command.entrypoint is None else command.entrypoint
    env = {"PATH": _DEFAULT_PATH, "HOME": identity.home, **image.config.env, **command.env}
    return {
        "argv": [*entrypoint, *command.argv],
        "env": env,
        "uid": identity.uid,
        "gid": identity.gid,
        "groups": list(identity.groups),
        "directory": str(execution.get("WorkingDir") or "/"),
        "layers": list(dict.fromkeys(layers)),
        "scratch": scratch,
    }


async def _collect(stream: asyncio.StreamReader | None) -> str:
    kept = bytearray()
    while stream is not None and (data := await stream.read(_READ_BYTES)):
        kept += data[: max(0, _MAX_OUTPUT_BYTES - len(kept))]
    return kept.decode(errors="replace")
