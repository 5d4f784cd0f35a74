"""A repository of images by name, wherever it is: an OCI layout directory or a registry.

The builder, the reuse report and the facade's sources all speak to this one protocol, so that a directory
and a registry are interchangeable for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ocikit import media_types
from ocikit.blobs import BlobSource, BlobStore, read_blob
from ocikit.compose import ComposedImage, compose_index
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidManifest, ManifestNotFound
from ocikit.image_config import ImageConfig
from ocikit.manifest import Index, Manifest, RawManifest, parse_manifest_or_index


class Repository(Protocol):
    """Safe for concurrent use. Errors are OciErrors; absent is ManifestNotFound or BlobNotFound."""

    @property
    def title(self) -> str:
        """As people write it: ``registry/repo`` or ``oci:DIR``."""

    @property
    def blobs(self) -> BlobStore:
        """Its blobs; those of a registry are not walkable."""

    async def resolve(self, reference: str | Digest) -> Descriptor:
        """The descriptor a tag or digest stands for, cheaply. Raises ManifestNotFound."""

    async def manifest(self, reference: str | Digest) -> RawManifest:
        """Verified against ``reference`` when that is a digest."""

    async def tags(self) -> Sequence[str]:
        """In byte order."""

    async def put_manifest(self, raw: RawManifest, tag: str | None = None) -> Descriptor:
        """Stores it, then points ``tag`` at it. Blobs come first; a tag never names what is not there."""

    async def mount(self, digest: Digest, size: int, source: "Repository") -> bool:
        """Makes a blob of ``source`` available without moving bytes through here; False if it cannot be."""


@dataclass(frozen=True, slots=True)
class Image:
    """One platform's image: manifest and config, parsed, with the bytes they came from."""

    raw: RawManifest
    manifest: Manifest
    config: ImageConfig

    @property
    def descriptor(self) -> Descriptor:
        return self.raw.descriptor


async def load_image(
    repository: Repository, reference: str | Digest, platform: Platform | None = None
) -> Image:
    """The image for ``platform``; None is right only for a reference that is not an index, or has one entry.

    Of an image in an index the index's word counts, of one alone its config's. Raises ManifestNotFound (also
    when the platform is not offered), InvalidManifest, InvalidConfig.
    """
    raw = await repository.manifest(reference)
    document, title = parse_manifest_or_index(raw), f"{repository.title}:{reference}"
    is_chosen = False
    while isinstance(document, Index):
        chosen = choose_platform(document, platform, title)
        raw, is_chosen = await repository.manifest(chosen.digest), True
        document = parse_manifest_or_index(raw)
    image = await complete_image(repository.blobs, raw, document)
    offered = image.config.platform
    if platform is not None and not is_chosen and offered.os and not offered.satisfies(platform):
        raise ManifestNotFound(f"{title} for {platform} (it is for {offered})")
    return image


def choose_platform(index: Index, platform: Platform | None, title: str) -> Descriptor:
    """Raises ManifestNotFound, or InvalidManifest when a platform is needed to choose."""
    if platform is not None:
        chosen = index.select(platform)
        if chosen is None:
            raise ManifestNotFound(f"{title} for {platform}")
        return chosen
    images = [item for item in index.manifests if item.platform is None or item.platform.os != "unknown"]
    if len(images) != 1:
        offered = ", ".join(str(item.platform) for item in images)
        raise InvalidManifest(f"has several platforms ({offered}); name one", title)
    return images[0]


async def complete_image(blobs: BlobSource, raw: RawManifest, manifest: Manifest) -> Image:
    """Reads the config and checks that it fits. Raises InvalidManifest or InvalidConfig."""
    if media_types.to_oci(manifest.config.media_type) != media_types.OCI_CONFIG:
        raise InvalidManifest(f"its config is {manifest.config.media_type}, not an image's", str(raw.digest))
    config = ImageConfig.parse(
        await read_blob(blobs, manifest.config), f"config {manifest.config.digest.short}"
    )
    if len(config.diff_ids) != len(manifest.layers):
        raise InvalidManifest(
            f"{len(manifest.layers)} layers but {len(config.diff_ids)} diff_ids", f"image {raw.digest.short}"
        )
    return Image(raw, manifest, config)


async def push_config_and_manifest(
    repository: Repository, config: bytes, manifest: bytes, tag: str | None
) -> Descriptor:
    """Stores a composed image whose layers are there already; the tag moves last."""
    digest = Digest.of(config)
    async with repository.blobs.ingest(digest, len(config)) as writer:
        await writer.write(config)
        await writer.commit()
    return await repository.put_manifest(RawManifest.of(media_types.OCI_MANIFEST, manifest), tag)


async def push_images(repository: Repository, images: Sequence[ComposedImage], tag: str) -> Descriptor:
    """Stores composed images, one for each platform, whose layers are there already; the tag moves last.

    One alone is stored as it is, several as the index of them.
    """
    if len(images) == 1:
        return await push_config_and_manifest(repository, images[0].config, images[0].manifest, tag)
    for image in images:
        await push_config_and_manifest(repository, image.config, image.manifest, None)
    return await repository.put_manifest(compose_index(images), tag)


def as_image(composed: ComposedImage) -> Image:
    """A composed image in the form that stored ones have."""
    return Image(
        RawManifest.of(composed.manifest_descriptor.media_type, composed.manifest),
        Manifest.parse(composed.manifest),
        ImageConfig.parse(composed.config),
    )


def annotations_of(raw: RawManifest) -> Mapping[str, str]:
    return parse_manifest_or_index(raw).annotations
