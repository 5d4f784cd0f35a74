"""Images out of a seed: real tar layers, real configs, the same bytes for the same seed.

Small on purpose; what a test needs is distinct content, not much of it.
"""

import gzip
import io
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import zstandard

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.image_config import ImageConfig
from ocikit.manifest import Index, Manifest, RawManifest
from ocikit.repository import Repository

LINUX = Platform("linux", "amd64")


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """A layer with its bytes: ``data`` as stored, ``tar`` uncompressed."""

    data: bytes
    tar: bytes
    layer: Layer


@dataclass(frozen=True, slots=True)
class ImageBlobs:
    """One platform's image with all its bytes."""

    raw: RawManifest
    manifest: Manifest
    config: ImageConfig
    config_bytes: bytes
    layers: tuple[LayerBlob, ...]

    @property
    def blobs(self) -> Mapping[Digest, bytes]:
        """Config and layers by digest; the manifest is not among them."""
        return {
            self.manifest.config.digest: self.config_bytes,
            **{blob.layer.descriptor.digest: blob.data for blob in self.layers},
        }


@dataclass(frozen=True, slots=True)
class IndexBlobs:
    raw: RawManifest
    images: tuple[ImageBlobs, ...]


def layer_of(files: Mapping[str, bytes], *, compression: str = "gzip") -> LayerBlob:
    """A layer of regular files owned by root; ``compression`` is ``""``, ``"gzip"`` or ``"zstd"``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
    tar = out.getvalue()
    data = _compress(tar, compression)
    descriptor = Descriptor(media_types.layer_media_type(compression), Digest.of(data), len(data))
    return LayerBlob(data, tar, Layer(descriptor, Digest.of(tar)))


def random_layer(
    seed: int, *, files: int = 3, file_bytes: int = 2000, compression: str = "gzip"
) -> LayerBlob:
    source = random.Random(seed)
    content = {f"data/{seed}-{at}": source.randbytes(file_bytes) for at in range(files)}
    return layer_of(content, compression=compression)


def image_of(
    layers: Sequence[LayerBlob], *, platform: Platform = LINUX, env: Mapping[str, str] | None = None
) -> ImageBlobs:
    """An image of these layers, bottom first."""
    config = ImageConfig(
        platform,
        tuple(blob.layer.diff_id for blob in layers),
        tuple({"created_by": f"layer {at}"} for at in range(len(layers))),
        created="2024-01-01T00:00:00Z",
    ).with_env(env or {"PATH": "/usr/bin:/bin"})
    data = config.dump()
    manifest = Manifest(
        Descriptor(media_types.OCI_CONFIG, Digest.of(data), len(data)),
        tuple(blob.layer.descriptor for blob in layers),
    )
    raw = RawManifest.of(media_types.OCI_MANIFEST, manifest.dump())
    return ImageBlobs(raw, manifest, config, data, tuple(layers))


def random_image(
    seed: int, *, layers: int = 3, compression: str = "gzip", platform: Platform = LINUX
) -> ImageBlobs:
    return image_of(
        [random_layer(seed * 1000 + at, compression=compression) for at in range(layers)], platform=platform
    )


def random_index(seed: int, platforms: Sequence[Platform]) -> IndexBlobs:
    """One image per platform, under one index."""
    images = tuple(
        random_image(seed * 100 + at, layers=1, platform=platform) for at, platform in enumerate(platforms)
    )
    index = Index(
        tuple(
            Descriptor(
                image.raw.media_type, image.raw.digest, len(image.raw.data), platform=image.config.platform
            )
            for image in images
        )
    )
    return IndexBlobs(RawManifest.of(media_types.OCI_INDEX, index.dump()), images)


async def push_image(repository: Repository, image: ImageBlobs, tag: str | None = None) -> Descriptor:
    """Blobs first, then the manifest, then the tag."""
    for digest, data in image.blobs.items():
        async with repository.blobs.ingest(digest, len(data)) as writer:
            await writer.write(data)
            await writer.commit()
    return await repository.put_manifest(image.raw, tag)


async def push_index(repository: Repository, index: IndexBlobs, tag: str | None = None) -> Descriptor:
    for image in index.images:
        await push_image(repository, image)
    return await repository.put_manifest(index.raw, tag)


def _compress(tar: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(tar, 6, mtime=0)
    return zstandard.compress(tar) if compression == "zstd" else tar
