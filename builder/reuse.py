"""How far a set of images shares its layers: pure arithmetic over manifests and configs.

A layer has four identities: its digest (compressed bytes: what is stored and sent), its diff_id (content),
its chain_id (content on top of what lies below: what a snapshotter unpacks and keeps), and the chunk it came
from. Reuse is lost between any two of them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.chunk_images import INPUT_HASH, UNCOMPRESSED_BYTES, chunk_of
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
    input_hash: str = ""


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
        uses.append(
            LayerUse(
                layer.descriptor.digest,
                layer.diff_id,
                chain,
                layer.descriptor.size,
                _number(annotations.get(UNCOMPRESSED_BYTES, "")),
                chunk_of(layer.descriptor),
                annotations.get(INPUT_HASH, ""),
            )
        )
    return ImageUse(name, tuple(uses))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


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


HISTOGRAM_STEPS = (1, 5, 10, 15, 20, 25, 30)


def refcount_histogram(images: Sequence[ImageUse]) -> Sequence[tuple[int, int, int]]:
    """(k, layers, bytes) of the distinct layers that at least k images use; to be read with their number."""
    uses = refcounts(images)
    sizes = _sizes(images)
    return [
        (
            step,
            sum(count >= step for count in uses.values()),
            sum(sizes[digest] for digest, count in uses.items() if count >= step),
        )
        for step in HISTOGRAM_STEPS
    ]


def refcounts(images: Sequence[ImageUse]) -> Mapping[Digest, int]:
    """How many images use each layer; twice in one image counts once."""
    counts: dict[Digest, int] = defaultdict(int)
    for image in images:
        for digest in {use.digest for use in image.layers}:
            counts[digest] += 1
    return counts


@dataclass(frozen=True, slots=True)
class LayerCount:
    """A distinct layer, where it comes from, and how many images use it."""

    layer: LayerUse
    images: int


def layer_counts(images: Sequence[ImageUse]) -> Sequence[LayerCount]:
    """The largest first."""
    uses = refcounts(images)
    layers = {layer.digest: layer for image in images for layer in image.layers}
    ordered = sorted(layers.values(), key=lambda layer: (-layer.size_bytes, layer.digest))
    return [LayerCount(layer, uses[layer.digest]) for layer in ordered]


def pull_matrix(images: Sequence[ImageUse]) -> Mapping[str, Mapping[str, int]]:
    """Bytes to pull: ``matrix[a][b]`` for b on a node that has a; ``matrix[""][b]`` for b on an empty one."""
    sizes = _sizes(images)
    layers = {image.name: {use.digest for use in image.layers} for image in images}
    return {
        before: {
            name: sum(sizes[digest] for digest in digests - layers.get(before, set()))
            for name, digests in layers.items()
        }
        for before in ("", *layers)
    }


@dataclass(frozen=True, slots=True)
class ImageCost:
    """``marginal_bytes`` are used by no other image; ``fair_bytes`` split each layer among its users."""

    name: str
    size_bytes: int
    marginal_bytes: int
    fair_bytes: float


def image_costs(images: Sequence[ImageUse]) -> Sequence[ImageCost]:
    uses, sizes = refcounts(images), _sizes(images)
    costs: list[ImageCost] = []
    for image in images:
        digests = {use.digest for use in image.layers}
        costs.append(
            ImageCost(
                image.name,
                sum(sizes[digest] for digest in digests),
                sum(sizes[digest] for digest in digests if uses[digest] == 1),
                sum(sizes[digest] / uses[digest] for digest in digests),
            )
        )
    return costs


@dataclass(frozen=True, slots=True)
class ChunkChurn:
    """A chunk over successive versions of images; ``survival`` is in how many of them a layer of it lives."""

    chunk: str
    new_bytes: int
    total_bytes: int
    survival: float


def churn(versions: Sequence[Sequence[ImageUse]]) -> Sequence[ChunkChurn]:
    """``versions`` are sets of images, oldest first: what each chunk made anew from one to the next."""
    lives: dict[str, dict[Digest, int]] = defaultdict(lambda: defaultdict(int))
    new: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    known: set[Digest] = set()
    for at, images in enumerate(versions):
        present = {use.digest: use for image in images for use in image.layers}
        for digest, use in present.items():
            lives[use.chunk][digest] += 1
            if at:
                total[use.chunk] += use.size_bytes
                new[use.chunk] += 0 if digest in known else use.size_bytes
        known |= present.keys()
    return [
        ChunkChurn(chunk, new[chunk], total[chunk], sum(digests.values()) / len(digests))
        for chunk, digests in sorted(lives.items())
    ]


def _sizes(images: Sequence[ImageUse]) -> Mapping[Digest, int]:
    return {use.digest: use.size_bytes for image in images for use in image.layers}


def recompression_waste(uses: Sequence[LayerUse]) -> int:
    """Bytes stored because the same content was compressed more than once, differently."""
    forms: dict[Digest, dict[Digest, int]] = defaultdict(dict)
    for use in uses:
        forms[use.diff_id][use.digest] = use.size_bytes
    return sum(sum(sizes.values()) - min(sizes.values()) for sizes in forms.values())


def _total(sizes: Mapping[Digest, int | None]) -> int | None:
    known = [size for size in sizes.values() if size is not None]
    return sum(known) if len(known) == len(sizes) else None
