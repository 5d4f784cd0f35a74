"""How far a set of images shares its layers: pure arithmetic over manifests and configs.

A layer has four identities: its digest (compressed bytes: what is stored and sent), its diff_id (content),
its chain_id (content on top of what lies below: what a snapshotter unpacks and keeps), and the chunk it came
from. Reuse is lost between any two of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.chunk_images import CHUNK_NAME, CHUNK_VARIANT, UNCOMPRESSED_BYTES
from ocikit.compose import paired_layers
from ocikit.digest import Digest, chain_id
from ocikit.repository import Image


@dataclass(frozen=True, slots=True)
class LayerUse:
    """One layer of one image. ``content_bytes`` is None where nobody wrote the uncompressed size down."""

    digest: Digest
    diff_id: Digest
    chain_id: Digest
    size_bytes: int
    content_bytes: int | None
    chunk: str


@dataclass(frozen=True, slots=True)
class ImageUse:
    name: str
    layers: tuple[LayerUse, ...]


@dataclass(frozen=True, slots=True)
class ReuseReport:
    """``order_penalty`` is 1.0 at best: unpacked bytes over what they would be were content shared at any
    depth; None unless every layer tells its uncompressed size.
    """

    images: int
    layers: int
    logical_bytes: int
    physical_bytes: int
    recompression_waste_bytes: int
    unpacked_bytes: int | None
    content_bytes: int | None
    distinct_digests: int
    distinct_diff_ids: int
    distinct_chain_ids: int

    @property
    def dedupe_ratio(self) -> float:
        return self.logical_bytes / self.physical_bytes if self.physical_bytes else 1.0

    @property
    def order_penalty(self) -> float | None:
        if self.unpacked_bytes is None or self.content_bytes is None:
            return None
        return self.unpacked_bytes / self.content_bytes if self.content_bytes else 1.0


def image_use(name: str, image: Image) -> ImageUse:
    """Raises InvalidManifest when layers and diff_ids do not pair up."""
    uses: list[LayerUse] = []
    chain: Digest | None = None
    for layer in paired_layers(image.manifest, image.config):
        annotations = layer.descriptor.annotations
        chain = layer.diff_id if chain is None else chain_id([chain, layer.diff_id])
        size = annotations.get(UNCOMPRESSED_BYTES, "")
        uses.append(
            LayerUse(
                layer.descriptor.digest,
                layer.diff_id,
                chain,
                layer.descriptor.size,
                int(size) if size.isdigit() else None,
                ":".join(filter(None, (annotations.get(CHUNK_NAME, ""), annotations.get(CHUNK_VARIANT, "")))),
            )
        )
    return ImageUse(name, tuple(uses))


def report(images: Sequence[ImageUse]) -> ReuseReport:
    """The first three metrics: stored bytes, recompression waste, order penalty."""
    uses = [use for image in images for use in image.layers]
    by_digest = {use.digest: use.size_bytes for use in uses}
    contents = {use.diff_id: use.content_bytes for use in uses}
    chains = {use.chain_id: use.content_bytes for use in uses}
    return ReuseReport(
        len(images),
        len(uses),
        sum(use.size_bytes for use in uses),
        sum(by_digest.values()),
        recompression_waste(uses),
        _total(chains),
        _total(contents),
        len(by_digest),
        len(contents),
        len(chains),
    )


def recompression_waste(uses: Sequence[LayerUse]) -> int:
    """Bytes stored because the same content was compressed more than once, differently."""
    forms: dict[Digest, dict[Digest, int]] = defaultdict(dict)
    for use in uses:
        forms[use.diff_id][use.digest] = use.size_bytes
    return sum(sum(sizes.values()) - min(sizes.values()) for sizes in forms.values())


def _total(sizes: Mapping[Digest, int | None]) -> int | None:
    known = [size for size in sizes.values() if size is not None]
    return sum(known) if len(known) == len(sizes) else None
