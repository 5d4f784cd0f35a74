"""base + layers + config edits -> (manifest bytes, config bytes): the one composition.

The builder's combine, the facade's on-the-fly images and rebasing are this function with different inputs.
It is pure and deterministic: no clock, no environment, no I/O; the same inputs give the same bytes on every
node. ``created`` is the latest of the inputs' own. Docker media types become the OCI names of the same
bytes. History always accounts for exactly the layers (image-spec v1.1, config.md "history").
"""

import dataclasses
import datetime as dt
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ocikit import media_types
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidManifest, NotBuiltFromBase
from ocikit.image_config import ImageConfig, layer_history
from ocikit.manifest import Index, Manifest, RawManifest

MAX_LAYERS = 127
"""What overlayfs can stack in one mount, as Docker's graph driver and containerd count it."""

_NO_ANNOTATIONS: Mapping[str, str] = types.MappingProxyType({})

ConfigEdit = Callable[[ImageConfig], ImageConfig]
"""A pure change of the config; edits run in order, after the layers are in place."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A layer blob and the digest of its uncompressed tar."""

    descriptor: Descriptor
    diff_id: Digest


@dataclasses.dataclass(frozen=True, slots=True)
class Addition:
    """Layers put on top together, bottom first, with the history they bring and when they were made."""

    layers: tuple[Layer, ...]
    history: tuple[Mapping[str, Any], ...] = ()
    created: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ComposedImage:
    """Bytes to store: ``config`` under the digest that ``manifest`` names."""

    manifest: bytes
    config: bytes
    manifest_descriptor: Descriptor
    config_descriptor: Descriptor
    layers: tuple[Descriptor, ...]
    platform: Platform


def compose(
    base_manifest: Manifest,
    base_config: ImageConfig,
    additions: Sequence[Addition],
    edits: Iterable[ConfigEdit] = (),
    annotations: Mapping[str, str] = _NO_ANNOTATIONS,
) -> ComposedImage:
    """Puts ``additions`` onto the base in order, then applies ``edits``.

    ``annotations`` are added over the base's own. Raises InvalidManifest for too many layers or a base
    whose layers and diff_ids do not pair up.
    """
    base = tuple(paired_layers(base_manifest, base_config))
    layers = (*base, *(layer for addition in additions for layer in addition.layers))
    if len(layers) > MAX_LAYERS:
        raise InvalidManifest(
            f"{len(layers)} layers; container runtimes take at most {MAX_LAYERS}", "composed image"
        )
    config = dataclasses.replace(
        base_config,
        diff_ids=tuple(layer.diff_id for layer in layers),
        history=(
            *_complete_history(base_config.history, len(base), "base"),
            *(
                entry
                for addition in additions
                for entry in _complete_history(addition.history, len(addition.layers), "added")
            ),
        ),
        created=max([base_config.created, *(addition.created for addition in additions)], key=_instant),
    )
    for edit in edits:
        config = edit(config)
    config_bytes = config.dump()
    config_descriptor = Descriptor(media_types.OCI_CONFIG, Digest.of(config_bytes), len(config_bytes))
    descriptors = tuple(_as_oci(layer.descriptor) for layer in layers)
    manifest = Manifest(
        config_descriptor,
        descriptors,
        annotations={**base_manifest.annotations, **annotations},
        extra=base_manifest.extra,
    )
    raw = RawManifest.of(media_types.OCI_MANIFEST, manifest.dump())
    return ComposedImage(
        raw.data, config_bytes, raw.descriptor, config_descriptor, descriptors, config.platform
    )


def with_layer_annotations(
    image: ComposedImage, by_digest: Mapping[Digest, Mapping[str, str]]
) -> ComposedImage:
    """The image with annotations added to the descriptors of its layers."""
    layers = tuple(layer.with_annotations(by_digest.get(layer.digest, {})) for layer in image.layers)
    manifest = dataclasses.replace(Manifest.parse(image.manifest), layers=layers)
    raw = RawManifest.of(image.manifest_descriptor.media_type, manifest.dump())
    return dataclasses.replace(image, manifest=raw.data, manifest_descriptor=raw.descriptor, layers=layers)


def with_annotations(image: ComposedImage, annotations: Mapping[str, str]) -> ComposedImage:
    """The image with annotations added to its manifest."""
    manifest = Manifest.parse(image.manifest)
    manifest = dataclasses.replace(manifest, annotations={**manifest.annotations, **annotations})
    raw = RawManifest.of(image.manifest_descriptor.media_type, manifest.dump())
    return dataclasses.replace(image, manifest=raw.data, manifest_descriptor=raw.descriptor)


def compose_index(images: Sequence[ComposedImage]) -> RawManifest:
    """The index of one image for each platform, in the platforms' order whatever that of ``images``.

    Raises InvalidManifest when two are for the same platform.
    """
    by_platform = {str(image.platform): image for image in images}
    if len(by_platform) != len(images):
        raise InvalidManifest("two images for the same platform", f"index of {', '.join(by_platform)}")
    described = [
        dataclasses.replace(image.manifest_descriptor, platform=image.platform)
        for _, image in sorted(by_platform.items())
    ]
    return RawManifest.of(media_types.OCI_INDEX, Index(tuple(described)).dump())


def paired_layers(manifest: Manifest, config: ImageConfig) -> Sequence[Layer]:
    """Each layer of an image with its diff_id. Raises InvalidManifest when the counts differ."""
    if len(manifest.layers) != len(config.diff_ids):
        raise InvalidManifest(f"{len(manifest.layers)} layers but {len(config.diff_ids)} diff_ids", "image")
    return [
        Layer(descriptor, diff_id)
        for descriptor, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    ]


def strip_base(
    manifest: Manifest,
    config: ImageConfig,
    base_config: ImageConfig,
    names: tuple[str, str],
) -> Addition:
    """What ``manifest`` puts on top of its base, which it must begin with, diff_id by diff_id.

    The base is recognised by its diff_ids: a recompressed base layer is still the same layer. ``names`` are
    the image's and the base's, for the error. Raises NotBuiltFromBase.
    """
    layers, depth = paired_layers(manifest, config), len(base_config.diff_ids)
    if len(layers) < depth:
        raise NotBuiltFromBase(*names, f"it has {len(layers)} layers, the base has {depth}")
    for at, (layer, expected) in enumerate(zip(layers, base_config.diff_ids, strict=False)):
        if layer.diff_id != expected:
            raise NotBuiltFromBase(*names, f"layer {at} is {layer.diff_id}, the base has {expected}")
    base_entries = base_config.history
    own = config.history[len(base_entries) :] if config.history[: len(base_entries)] == base_entries else ()
    return Addition(tuple(layers[depth:]), tuple(own), config.created)


def _complete_history(
    history: Sequence[Mapping[str, Any]], layers: int, whose: str
) -> Sequence[Mapping[str, Any]]:
    """``history``, with an entry for each layer it forgot; one that claims too many is replaced."""
    missing = layers - layer_history(history)
    if missing < 0:
        history, missing = (), layers
    return [*history, *({"created_by": f"lapstrake: {whose} layer without history"} for _ in range(missing))]


def _instant(created: str) -> tuple[dt.datetime, str]:
    """RFC 3339 times by the moment they mean; what is no time comes before all times."""
    try:
        moment = dt.datetime.fromisoformat(created)
    except ValueError:
        return dt.datetime.min.replace(tzinfo=dt.UTC), created
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)), created


def _as_oci(descriptor: Descriptor) -> Descriptor:
    return dataclasses.replace(descriptor, media_type=media_types.to_oci(descriptor.media_type))
