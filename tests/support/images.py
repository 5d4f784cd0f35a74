"""Small real images: tars of files, gzipped, with config and manifest."""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.image_config import ImageConfig
from ocikit.manifest import Index, Manifest, RawManifest
from ocikit.repository import Repository, push_config_and_manifest

AMD64 = Platform("linux", "amd64")
BUSYBOX = Path("/bin/busybox")


@dataclass(frozen=True)
class MadeLayer:
    blob: bytes
    layer: Layer


def made_layer(files: Mapping[str, bytes]) -> MadeLayer:
    """A gzipped tar of executable files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    blob = gzip.compress(out.getvalue(), 1, mtime=0)
    descriptor = Descriptor(media_types.OCI_LAYER_GZIP, Digest.of(blob), len(blob))
    return MadeLayer(blob, Layer(descriptor, Digest.of(out.getvalue())))


def tar_of(files: Mapping[str, bytes], path: Path) -> Path:
    """Written to ``path``: a directory ``etc``, then ``files``, then a symlink ``link`` to etc/greeting."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("etc")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "etc/greeting"
        tar.addfile(link)
    return path


def image_documents(
    layers: Sequence[MadeLayer], execution: Mapping[str, Any] | None = None, platform: Platform = AMD64
) -> tuple[bytes, bytes]:
    """(manifest, config)."""
    config = ImageConfig(
        platform, tuple(made.layer.diff_id for made in layers), execution=execution or {"Cmd": ["/bin/cat"]}
    ).dump()
    manifest = Manifest(
        Descriptor(media_types.OCI_CONFIG, Digest.of(config), len(config)),
        tuple(made.layer.descriptor for made in layers),
    )
    return manifest.dump(), config


async def push_image(
    repository: Repository,
    tag: str | None,
    layers: Sequence[MadeLayer],
    execution: Mapping[str, Any] | None = None,
    platform: Platform = AMD64,
) -> Descriptor:
    """Into a layout directory or a registry."""
    for made in layers:
        async with repository.blobs.ingest(made.layer.descriptor.digest, len(made.blob)) as writer:
            await writer.write(made.blob)
            await writer.commit()
    manifest, config = image_documents(layers, execution, platform)
    return await push_config_and_manifest(repository, config, manifest, tag)


async def push_index(
    repository: Repository, tag: str, entries: Sequence[tuple[Platform, Descriptor]]
) -> Descriptor:
    manifests = tuple(
        Descriptor(found.media_type, found.digest, found.size, platform=platform)
        for platform, found in entries
    )
    return await repository.put_manifest(RawManifest.of(media_types.OCI_INDEX, Index(manifests).dump()), tag)
