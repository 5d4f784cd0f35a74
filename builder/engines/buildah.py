"""The engine without a daemon: buildah, in storage of its own.

``--isolation chroot`` needs no container runtime and works where namespaces are scarce. ``--layers=false``
makes each chunk one layer, whatever the number of its instructions: combinations of many chunks stay far
from the 127 layers that runtimes stack. Images leave by the ``dir:`` transport, which writes uncompressed
tars: compressing is ours, and once. Each command runs in mount and process namespaces of its own, so that
neither one that is killed nor a daemon that a Dockerfile starts leaves anything mounted or running.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from builder.engine import BuildEngine, BuildRequest, BuiltImage, LogLine
from builder.errors import BuildFailed, EngineUnavailable
from builder.processes import TIED, run_logged
from ocikit.errors import OciError
from ocikit.image_config import ImageConfig
from ocikit.manifest import Manifest
from servicekit.threads import in_thread

_UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
_NAMESPACES = (*TIED, *_UNSHARE) if os.geteuid() == 0 else TIED
"""Without root buildah makes its own."""


def is_available() -> bool:
    return shutil.which("buildah") is not None


class BuildahEngine:
    """Keeps pulled bases in ``storage``; ``close`` removes nothing, so that the next run need not pull.

    Several processes may share the storage. Who finds itself alone removes what killed builds have left.
    """

    name = "buildah"

    def __init__(self, storage: Path, driver: str) -> None:
        self._storage = storage
        self._lock = contextlib.ExitStack()
        self._global = [
            *_NAMESPACES, "buildah", "--root", str(storage / "root"), "--runroot", str(storage / "run"),
            "--storage-driver", driver,
        ]  # fmt: skip

    @classmethod
    async def start(cls, storage: Path) -> "BuildahEngine":
        """With overlay storage where the file system allows it, else vfs. Raises EngineUnavailable."""
        if not is_available():
            raise EngineUnavailable("buildah", "it is not installed (apt install buildah)")
        await asyncio.to_thread(storage.mkdir, parents=True, exist_ok=True)
        for driver in ("overlay", "vfs"):
            engine = cls(storage / driver, driver)
            status, tail = await run_logged([*engine._global, "info"], lambda _: None)
            if status == 0:
                await engine._take_lock()
                return engine
        raise EngineUnavailable("buildah", " / ".join(tail[-2:]) or f"`buildah info` ends with {status}")

    async def _take_lock(self) -> None:
        file = self._lock.enter_context((self._storage / "lock").open("wb"))
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await run_logged([*self._global, "rm", "--all"], lambda _: None)
        await in_thread(fcntl.flock, file, fcntl.LOCK_SH)

    async def build(self, request: BuildRequest, on_log: LogLine) -> BuiltImage:
        image_file = request.output / "image-id"
        ignore_file = request.output / "ignore"
        await asyncio.to_thread(ignore_file.write_text, "\n".join([*request.ignore, ""]))
        arguments = _build_arguments(request, image_file, ignore_file)
        directory = request.base[0].parent if request.base is not None else None
        scratch = ("env", f"TMPDIR={request.output.absolute()}")  # what a killed one leaves goes with the run
        status, tail = await run_logged([*scratch, *self._global, *arguments], on_log, cwd=directory)
        if status != 0:
            raise BuildFailed(request.name, f"buildah ends with {status}", tail)
        image_id = (await asyncio.to_thread(image_file.read_text)).strip()
        try:
            return await self._export(request, image_id)
        finally:
            await run_logged([*self._global, "rmi", "--force", image_id], lambda _: None)

    async def _export(self, request: BuildRequest, image_id: str) -> BuiltImage:
        directory = request.output / "image"
        push = ["push", "--quiet", "--disable-compression", "--format", "oci", image_id, f"dir:{directory}"]
        status, tail = await run_logged([*self._global, *push], lambda _: None)
        if status != 0:
            raise BuildFailed(request.name, f"buildah push ends with {status}", tail)
        try:
            return await asyncio.to_thread(_read_directory, directory)
        except (OSError, OciError, json.JSONDecodeError) as error:
            raise BuildFailed(request.name, f"buildah left an image that cannot be read: {error}") from error

    async def close(self) -> None:
        self._lock.close()


def _build_arguments(request: BuildRequest, image_file: Path, ignore_file: Path) -> Sequence[str]:
    args = dict(request.args)
    if request.base is not None:
        # buildah names what it imports after the path, and refuses paths that are no image names: a relative
        # one, seen from the layout's parent, leaves only the last part to be one
        layout, tag = request.base
        args["base"] = f"oci:{layout.name}:{tag}"
    return [
        "build", "--platform", str(request.platform),
        "--isolation", "chroot", "--layers=false", "--identity-label=false", "--format", "oci",
        "--iidfile", str(image_file), "--ignorefile", str(ignore_file),
        "--file", str(request.dockerfile.absolute()),
        *(f"--build-arg={name}={value}" for name, value in sorted(args.items())),
        *(f"--build-context={name}={path.absolute()}" for name, path in sorted(request.contexts.items())),
        *(f"--secret=id={name},src={path.absolute()}" for name, path in sorted(request.secrets.items())),
        str(request.context.absolute()),
    ]  # fmt: skip


def _read_directory(directory: Path) -> BuiltImage:
    manifest = Manifest.parse((directory / "manifest.json").read_bytes())
    config = ImageConfig.parse((directory / manifest.config.digest.encoded).read_bytes())
    return BuiltImage(config, tuple(directory / layer.digest.encoded for layer in manifest.layers))


def _conforms(engine: BuildahEngine) -> BuildEngine:
    return engine
