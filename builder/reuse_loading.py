"""From names to what the reuse report counts: manifests and configs only, never a layer."""

from collections.abc import Sequence

from builder.chunk_images import inputs_of
from builder.fingerprint import Inputs, differences
from builder.names import base_tag, chunked_tag, is_image_tag
from builder.parallel import each
from builder.reuse import ImageUse, LayerUse, image_use
from builder.reuse_diff import LayerDifference
from ocikit.descriptor import Platform
from ocikit.errors import InvalidInput, NotFound
from ocikit.opening import RepositoryOpener
from ocikit.reference import Reference, RepositoryName
from ocikit.repository import Repository, load_image

_AT_A_TIME = 16


async def load_images(
    opener: RepositoryOpener, texts: Sequence[str], platform: Platform | None
) -> Sequence[ImageUse]:
    """Each of ``texts`` is an image, or a repository: then all images of it that are no parts of others."""
    references = [reference for text in texts for reference in await _references(opener, text)]
    opened = {name: opener.open(name) for name in {reference.name for reference in references}}

    async def load(reference: Reference) -> ImageUse:
        repository = opened[reference.name]
        return image_use(str(reference), await load_image(repository, reference.reference, platform))

    return await each(references, load, jobs=_AT_A_TIME)


async def _references(opener: RepositoryOpener, text: str) -> Sequence[Reference]:
    rest = text.removeprefix("oci:") if text.startswith("oci:") else text.rpartition("/")[2]
    if ":" in rest or "@" in rest:
        return [Reference.parse(text)]
    name = RepositoryName.parse(text)
    tags = await opener.open(name).tags()
    return [name.with_reference(tag) for tag in tags if is_image_tag(tag)]


async def changed_inputs(
    opener: RepositoryOpener, first: ImageUse, second: ImageUse, misses: Sequence[LayerDifference]
) -> Sequence[Sequence[str]]:
    """For each of ``misses`` what changed of its chunk's inputs; empty where the chunk is not there to tell.

    Chunks are looked for in the repositories of the images they are in.
    """
    before, now = (opener.open(Reference.parse(image.name).name) for image in (first, second))

    async def changes(miss: LayerDifference) -> Sequence[str]:
        if miss.before is None:
            return ()
        old, new = await _inputs(before, miss.before), await _inputs(now, miss.layer)
        return differences(new, old) if old is not None and new is not None else ()

    return await each(misses, changes, jobs=_AT_A_TIME)


async def _inputs(repository: Repository, layer: LayerUse) -> Inputs | None:
    hashed = layer.input_hash
    tag = base_tag(hashed) if layer.chunk == "base" else chunked_tag(layer.chunk, hashed)
    try:
        return inputs_of((await load_image(repository, tag)).config)
    except (NotFound, InvalidInput):
        return None
