"""The engine of a real BuildKit: a running buildkitd, spoken to through buildctl.

The base is handed over as a local OCI layout, so the daemon needs no registry. The result comes back as
another, with uncompressed layers. BuildKit keeps one layer per instruction; its own cache decides what of an
unfinished chunk is built again.
"""

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from builder.compression import decompressed
from builder.engine import BuildEngine, BuildRequest, BuiltImage, LogLine
from builder.errors import BuildFailed, EngineUnavailable
from builder.processes import TIED, run_logged
from ocikit import media_types
from ocikit.digest import Digest
from ocikit.errors import OciError
from ocikit.layout import LayoutRepository
from ocikit.manifest import Index
from ocikit.repository import load_image
from servicekit.threads import in_thread

_BASE = "lapstrake-base"
_READ_BYTES = 1 << 20


class BuildkitEngine:
    """Safe for concurrent use; the daemon is somebody else's."""

    name = "buildkit"

    @classmethod
    async def start(cls) -> "BuildkitEngine":
        """Raises EngineUnavailable when no daemon answers; ``BUILDKIT_HOST`` says where it is."""
        if shutil.which("buildctl") is None:
            raise EngineUnavailable("buildkit", "buildctl is not installed")
        status, tail = await run_logged(["buildctl", "debug", "workers"], lambda _: None)
        if status != 0:
            raise EngineUnavailable("buildkit", " / ".join(tail[-1:]) or "buildkitd does not answer")
        return cls()

    async def build(self, request: BuildRequest, on_log: LogLine) -> BuiltImage:
        context = request.output / "context"
        await in_thread(_stage, request, context)
        image = request.output / "image"
        base = await _base_digest(request)
        status, tail = await run_logged(_arguments(request, context, image, base), on_log)
        if status != 0:
            raise BuildFailed(request.name, f"buildctl ends with {status}", tail)
        try:
            return await asyncio.to_thread(_read, image)
        except (OSError, OciError, KeyError, json.JSONDecodeError) as error:
            raise BuildFailed(request.name, f"buildkit left an image that cannot be read: {error}") from error

    async def close(self) -> None:
        return


def _stage(request: BuildRequest, context: Path) -> None:
    """The Dockerfile and what is ignored, as BuildKit looks for them: beside the context, not in it."""
    context.mkdir()
    shutil.copyfile(request.dockerfile, context / "Dockerfile")
    (context / "Dockerfile.dockerignore").write_text("\n".join([*request.ignore, ""]))


async def _base_digest(request: BuildRequest) -> str:
    if request.base is None:
        return ""
    return (await LayoutRepository(request.base[0]).resolve(request.base[1])).digest


def _arguments(request: BuildRequest, dockerfile: Path, image: Path, base_digest: str) -> Sequence[str]:
    args, contexts = dict(request.args), {name: f"local:{name}" for name in request.contexts}
    sources = [f"--local={name}={path}" for name, path in sorted(request.contexts.items())]
    if request.base is not None:
        args["base"] = _BASE
        contexts[_BASE] = f"oci-layout://{_BASE}@{base_digest}"
        sources.append(f"--oci-layout={_BASE}={request.base[0]}")
    output = (
        f"type=oci,tar=false,dest={image},compression=uncompressed,force-compression=true,oci-mediatypes=true"
    )
    return [
        *TIED, "buildctl", "build", "--progress=plain", "--frontend=dockerfile.v0",
        f"--opt=platform={request.platform}",
        f"--local=context={request.context}", f"--local=dockerfile={dockerfile}", *sources,
        *(f"--opt=build-arg:{name}={value}" for name, value in sorted(args.items())),
        *(f"--opt=context:{name}={value}" for name, value in sorted(contexts.items())),
        *(f"--secret=id={name},src={path}" for name, path in sorted(request.secrets.items())),
        f"--output={output}",
    ]  # fmt: skip


def _read(directory: Path) -> BuiltImage:
    repository = LayoutRepository(directory)
    image = asyncio.run(load_image(repository, _only_manifest(directory)))
    layers: list[Path] = []
    for layer in image.manifest.layers:
        blob = directory / "blobs" / layer.digest.algorithm / layer.digest.encoded
        layers.append(_plain(blob, media_types.layer_compression(layer.media_type)))
    return BuiltImage(image.config, tuple(layers))


def _only_manifest(directory: Path) -> Digest:
    index = Index.parse((directory / "index.json").read_bytes())
    return index.manifests[0].digest


def _plain(blob: Path, kind: str) -> Path:
    """Layers of the base come compressed as they are in the layout."""
    if kind == "":
        return blob
    plain = blob.with_name(f"{blob.name}.tar")
    with blob.open("rb") as source, plain.open("wb") as target:
        for piece in decompressed(iter(lambda: source.read(_READ_BYTES), b""), kind, blob.name[:12]):
            target.write(piece)
    return plain


def _conforms(engine: BuildkitEngine) -> BuildEngine:
    return engine
