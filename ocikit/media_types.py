"""Media types, and what follows from them.

Docker's types are read everywhere and written nowhere: the bytes are the same, so an image that is
composed from Docker parts is described in OCI terms.
"""

from ocikit.errors import UnsupportedMediaType

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"

DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

ACCEPTED = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_INDEX}, {DOCKER_MANIFEST}"
"""The Accept header for "whatever is there"."""

_TO_OCI = {
    DOCKER_INDEX: OCI_INDEX,
    DOCKER_MANIFEST: OCI_MANIFEST,
    DOCKER_CONFIG: OCI_CONFIG,
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD,
}
_LAYER_COMPRESSION = {
    OCI_LAYER: "",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
}


def to_oci(media_type: str) -> str:
    """The OCI name of the same bytes; types that have none are returned as they are."""
    return _TO_OCI.get(media_type, media_type)


def is_index(media_type: str) -> bool:
    return media_type in INDEXES


def is_manifest(media_type: str) -> bool:
    return media_type in MANIFESTS


def is_layer(media_type: str) -> bool:
    return to_oci(media_type) in _LAYER_COMPRESSION


def layer_compression(media_type: str) -> str:
    """``""``, ``"gzip"`` or ``"zstd"``. Raises UnsupportedMediaType for what is no layer."""
    compression = _LAYER_COMPRESSION.get(to_oci(media_type))
    if compression is None:
        raise UnsupportedMediaType(media_type, "a layer: tar, tar+gzip or tar+zstd")
    return compression


def layer_media_type(compression: str) -> str:
    """The OCI layer media type for ``""``, ``"gzip"`` or ``"zstd"``; ValueError otherwise."""
    for media_type, name in _LAYER_COMPRESSION.items():
        if name == compression:
            return media_type
    raise ValueError(f"unknown layer compression {compression!r}")
