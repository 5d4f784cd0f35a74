"""Why two images do not share a layer: pure."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from builder.reuse import ImageUse, LayerUse


class Miss(enum.StrEnum):
    """The first that applies."""

    RECOMPRESSED = "recompressed: the same content in other bytes"
    REORDERED = "reordered: shared bytes, but unpacked again on top of other layers"
    NONDETERMINISTIC = "nondeterministic: the same inputs gave another content"
    CHANGED = "changed: the chunk's inputs changed"
    NEW = "new: the other image has no such chunk"


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """A layer of the second image that the first does not have as it is.

    ``before`` is one of the same chunk in the first, where the chunk's inputs changed.
    """

    layer: LayerUse
    reason: Miss
    before: LayerUse | None = None


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """Bytes to pull the second image cold, and onto a node that has the first."""

    cold_bytes: int
    warm_bytes: int
    misses: tuple[LayerDifference, ...]


def diff(first: ImageUse, second: ImageUse) -> ImageDifference:
    have = {layer.digest for layer in first.layers}
    fresh = {layer.digest: layer.size_bytes for layer in second.layers if layer.digest not in have}
    misses = [
        LayerDifference(layer, reason, _same_chunk(first.layers, layer) if reason is Miss.CHANGED else None)
        for layer in second.layers
        if (reason := _miss(first.layers, layer)) is not None
    ]
    cold = {layer.digest: layer.size_bytes for layer in second.layers}
    return ImageDifference(sum(cold.values()), sum(fresh.values()), tuple(misses))


def _same_chunk(others: Sequence[LayerUse], layer: LayerUse) -> LayerUse | None:
    return next((other for other in others if layer.chunk and other.chunk == layer.chunk), None)


def _miss(others: Sequence[LayerUse], layer: LayerUse) -> Miss | None:
    if any(other.chain_id == layer.chain_id and other.digest == layer.digest for other in others):
        return None
    if any(other.digest == layer.digest for other in others):
        return Miss.REORDERED
    if any(other.diff_id == layer.diff_id for other in others):
        return Miss.RECOMPRESSED
    same_chunk = _same_chunk(others, layer)
    if same_chunk is None:
        return Miss.NEW
    return Miss.NONDETERMINISTIC if same_chunk.input_hash == layer.input_hash != "" else Miss.CHANGED
