"""SOCI's index of an image, version 2, and how an image names it. Pure functions.

After awslabs/soci-snapshotter, soci/soci_index.go. The snapshotter writes the index anew from what it has
read, and expects its digest: so these are the bytes that Go makes of an image-spec manifest, not our own
canonical ones.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ocikit import media_types
from ocikit.compose import ComposedImage, with_annotations
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.manifest import Index, Manifest, RawManifest

ARTIFACT_TYPE = "application/vnd.amazon.soci.index.v2+json"
ZTOC_TYPE = "application/octet-stream"
INDEX_DIGEST = "com.amazon.soci.index-digest"
IMAGE_MANIFEST_DIGEST = "com.amazon.soci.image-manifest-digest"
MIN_LAYER_BYTES = 10 << 20
"""Smaller layers are fetched whole, as with SOCI's own tool."""
SPAN_BYTES = 4 << 20
"""Of uncompressed data, as with SOCI's own tool: what is fetched and inflated at least, to read one byte."""
BUILD_TOOL = "lapstrake 1"
"""The number changes when other bytes are made of the same layer."""
EMPTY_CONFIG = b"{}"
_EMPTY_DIGEST = Digest.of(EMPTY_CONFIG)


@dataclasses.dataclass(frozen=True, slots=True)
class LayerZtoc:
    """A layer as an image names it, and the blob of its zTOC."""

    layer: Descriptor
    digest: Digest
    size: int


def can_have_ztoc(layer: Descriptor) -> bool:
    """Whether it is a gzip that is worth it."""
    return (
        media_types.to_oci(layer.media_type) == media_types.OCI_LAYER_GZIP and layer.size >= MIN_LAYER_BYTES
    )


def soci_index(ztocs: Sequence[LayerZtoc]) -> RawManifest:
    """The index of an image with these zTOCs, bottom layer first."""
    document = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": {"mediaType": ARTIFACT_TYPE, "digest": _EMPTY_DIGEST, "size": len(EMPTY_CONFIG)},
        "layers": [_ztoc(found) for found in ztocs],
        "annotations": {"com.amazon.soci.build-tool-identifier": BUILD_TOOL},
    }
    return RawManifest.of(media_types.OCI_MANIFEST, json.dumps(document, separators=(",", ":")).encode())


def _ztoc(found: LayerZtoc) -> dict[str, Any]:
    annotations = {
        "com.amazon.soci.image-layer-digest": found.layer.digest,
        "com.amazon.soci.image-layer-mediaType": found.layer.media_type,
        "com.amazon.soci.span-size": str(SPAN_BYTES),
    }
    return {"mediaType": ZTOC_TYPE, "digest": found.digest, "size": found.size, "annotations": annotations}


def naming(image: ComposedImage, index: RawManifest) -> ComposedImage:
    """The image with the annotation that leads a snapshotter to its index."""
    return with_annotations(image, {INDEX_DIGEST: index.digest})


def unnamed(manifest: Manifest) -> Manifest:
    """The manifest without the name of an index, which is for other layers, in another repository."""
    kept = {key: value for key, value in manifest.annotations.items() if key != INDEX_DIGEST}
    return dataclasses.replace(manifest, annotations=kept)


def entry(image: ComposedImage, index: RawManifest) -> Descriptor:
    """What an OCI index says of the SOCI index of one of its images, which `naming` made."""
    return dataclasses.replace(
        index.descriptor,
        platform=image.platform,
        artifact_type=ARTIFACT_TYPE,
        annotations={IMAGE_MANIFEST_DIGEST: image.manifest_descriptor.digest},
    )


def with_entries(index: Index, images: Sequence[ComposedImage], entries: Sequence[Descriptor]) -> Index:
    """The index with ``images`` in place of its manifests, in the same order, and ``entries`` behind."""
    named = tuple(
        dataclasses.replace(manifest, digest=image.manifest_descriptor.digest, size=len(image.manifest))
        for manifest, image in zip(index.manifests, images, strict=True)
    )
    return dataclasses.replace(index, manifests=(*named, *entries))
