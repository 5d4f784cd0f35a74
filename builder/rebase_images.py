"""Moving stored images onto a new base: an image alone, or every platform of an index."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from builder.chunk_store import transfer_blob
from builder.rebase import rebase_image
from ocikit.combine import BASE_DIGEST
from ocikit.compose import ComposedImage
from ocikit.descriptor import Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidManifest, ManifestNotFound
from ocikit.manifest import Index, parse_manifest_or_index
from ocikit.repository import Image, Repository, load_image, push_images

Gate = Callable[[ComposedImage], Awaitable[None]]
"""Raises when an image must not be named."""


@dataclass(frozen=True, slots=True)
class Place:
    """An image's name in a repository; ``title`` is both, for people."""

    repository: Repository
    reference: str | Digest
    title: str


async def rebase_images(
    source: Place, onto: Place, target: Repository, tag: str, platforms: Sequence[Platform], gate: Gate
) -> Digest:
    """Moves ``source`` onto the base ``onto`` and names it ``tag``: an index stays an index.

    ``platforms`` leaves only these; none means all there are. Everything passes ``gate`` before anything is
    named. Raises InvalidManifest for an image that does not say what its base was, NotBuiltFromBase, and what
    ``gate`` does.
    """
    chosen = platforms or await _offered(source)
    composed = [await _moved(source, onto, target, platform) for platform in chosen]
    for image in composed:
        await gate(image)
    return (await push_images(target, composed, tag)).digest


async def _offered(source: Place) -> Sequence[Platform | None]:
    """The platforms of an index; of an image alone, whichever it is for."""
    document = parse_manifest_or_index(await source.repository.manifest(source.reference))
    if not isinstance(document, Index):
        return [None]
    return [item.platform for item in document.manifests if item.platform and item.platform.os != "unknown"]


async def _moved(source: Place, onto: Place, target: Repository, platform: Platform | None) -> ComposedImage:
    image = await load_image(source.repository, source.reference, platform)
    recorded = image.manifest.annotations.get(BASE_DIGEST, "")
    if not recorded:
        raise InvalidManifest("does not say on which base it was built", source.title)
    old = await _old_base(Digest.parse(recorded), source, onto)
    new = await _new_base(onto, image, platform)
    composed = rebase_image(image, old, new, (source.title, str(onto.reference)))
    from_base = {layer.digest for layer in new.manifest.layers}
    for layer in composed.layers:
        origin = onto.repository if layer.digest in from_base else source.repository
        await transfer_blob(layer, origin, target)
    await _keep(new, onto.repository, target)
    return composed


async def _old_base(digest: Digest, source: Place, onto: Place) -> Image:
    for repository in (source.repository, onto.repository):
        with contextlib.suppress(ManifestNotFound):
            return await load_image(repository, digest)
    places = f"{source.repository.title} or {onto.repository.title}"
    raise ManifestNotFound(f"{digest}, the base of {source.title}, in {places}")


async def _keep(base: Image, origin: Repository, target: Repository) -> None:
    """Beside what stands on it, for the next move asks for it."""
    with contextlib.suppress(ManifestNotFound):
        await target.resolve(base.descriptor.digest)
        return
    await transfer_blob(base.manifest.config, origin, target)
    await target.put_manifest(base.raw)


async def _new_base(onto: Place, image: Image, platform: Platform | None) -> Image:
    own = image.config.platform
    return await load_image(onto.repository, onto.reference, platform or (own if own.os else None))
