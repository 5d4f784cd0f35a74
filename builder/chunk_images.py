"""How chunks and bases are kept in a repository.

A chunk is an image of its own layers only, under ``<name>--<hash>--chunked``; it says which base image it
was built on, by digest, and its config carries the inputs of its hash. No name of a registry or repository
is in any of it: the same sources give the same bytes wherever they are pushed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.fingerprint import Inputs
from builder.project import Chunk
from ocikit import combine, media_types
from ocikit.combine import INPUTS
from ocikit.compose import Layer
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.image_config import ImageConfig
from ocikit.manifest import Manifest

CHUNK_NAME = "dev.lapstrake.chunk.name"
CHUNK_VARIANT = "dev.lapstrake.chunk.variant"
INPUT_HASH = "dev.lapstrake.chunk.input-hash"
UNCOMPRESSED_BYTES = "dev.lapstrake.layer.uncompressed-bytes"
BUILT_ON = "dev.lapstrake.chunk.built-on"
"""On a chunk that was moved to another base: the tag and digest of the one its layers were made on."""
ORDER = "dev.lapstrake.order"
"""On an image: the rule by which its chunks were put in order, where it is not just how they are written."""


@dataclass(frozen=True, slots=True)
class StoredChunk(combine.Chunk):
    """A chunk out of a repository."""

    @property
    def built_on(self) -> tuple[str, str]:
        """Tag and digest of the base that its layers were made on."""
        moved = self.image.manifest.annotations.get(BUILT_ON, "")
        name, _, digest = moved.rpartition("@")
        return (name, digest) if moved else (self.base_name, self.base_digest)

    @property
    def is_moved(self) -> bool:
        return self.built_on[1] != self.base_digest

    @property
    def inputs(self) -> Inputs | None:
        return inputs_of(self.image.config)


def inputs_of(config: ImageConfig) -> Inputs | None:
    """None when the config carries none that can be read."""
    try:
        return Inputs.parse(config.extra.get(INPUTS))
    except (KeyError, TypeError, ValueError):
        return None


def layer_annotations(chunk: Chunk, inputs: Inputs) -> Mapping[str, str]:
    """What a layer's descriptor says of its origin, there and in every combined manifest."""
    variant = {CHUNK_VARIANT: chunk.variant} if chunk.variant else {}
    return {CHUNK_NAME: chunk.directory_name, **variant, INPUT_HASH: inputs.hash}


def chunk_of(layer: Descriptor) -> str:
    """The name of the chunk that a layer says it is from, with its variant; "" when it does not say."""
    named = (layer.annotations.get(name, "") for name in (CHUNK_NAME, CHUNK_VARIANT))
    return ":".join(filter(None, named))


def chunk_documents(
    config: ImageConfig, layers: Sequence[Layer], inputs: Inputs, annotations: Mapping[str, str]
) -> tuple[bytes, bytes]:
    """Config and manifest bytes of an image that is to be stored."""
    stored = dataclasses.replace(
        config,
        diff_ids=tuple(layer.diff_id for layer in layers),
        extra={**config.extra, INPUTS: json.loads(json.dumps(inputs.dump()))},
    )
    config_bytes = stored.dump()
    manifest = Manifest(
        Descriptor(media_types.OCI_CONFIG, Digest.of(config_bytes), len(config_bytes)),
        tuple(layer.descriptor for layer in layers),
        annotations={INPUT_HASH: inputs.hash, **annotations},
    )
    return config_bytes, manifest.dump()
