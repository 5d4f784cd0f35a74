"""Checks every invariant that ties an image's documents together; reports all violations, not the first."""

from collections.abc import Sequence

from ocikit import media_types
from ocikit.compose import MAX_LAYERS
from ocikit.digest import Digest
from ocikit.errors import OciError
from ocikit.image_config import ImageConfig, layer_history
from ocikit.manifest import Manifest


def image_violations(manifest: Manifest, config_bytes: bytes) -> Sequence[str]:
    """What is wrong between a manifest and the bytes of its config; empty when all holds."""
    found: list[str] = []
    if len(config_bytes) != manifest.config.size:
        found.append(f"config has {len(config_bytes)} bytes, its descriptor says {manifest.config.size}")
    if Digest.of(config_bytes, manifest.config.digest.algorithm) != manifest.config.digest:
        found.append(f"config is not {manifest.config.digest}")
    try:
        config = ImageConfig.parse(config_bytes)
    except OciError as error:
        return [*found, str(error)]
    if len(config.diff_ids) != len(manifest.layers):
        found.append(f"{len(manifest.layers)} layers but {len(config.diff_ids)} diff_ids")
    if config.history and layer_history(config.history) != len(manifest.layers):
        found.append(
            f"history tells of {layer_history(config.history)} layers, there are {len(manifest.layers)}"
        )
    if len(manifest.layers) > MAX_LAYERS:
        found.append(f"{len(manifest.layers)} layers, more than the {MAX_LAYERS} that runtimes stack")
    if not config.platform.os or not config.platform.architecture:
        found.append("config names no platform")
    return [*found, *_layer_violations(manifest, config)]


def _layer_violations(manifest: Manifest, config: ImageConfig) -> Sequence[str]:
    found: list[str] = []
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=False):
        if not media_types.is_layer(layer.media_type):
            found.append(f"layer {layer.digest.short} has the media type {layer.media_type}")
        elif media_types.layer_compression(layer.media_type) == "" and layer.digest != diff_id:
            found.append(f"uncompressed layer {layer.digest.short} differs from its diff_id {diff_id.short}")
    return found
