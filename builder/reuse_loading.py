"""From names to what the reuse report counts: manifests and configs only, never a layer."""

from collections.abc import Sequence

from builder.names import is_image_tag
from builder.parallel import each
from builder.reuse import ImageUse, image_use
from ocikit.descriptor import Platform
from ocikit.opening import RepositoryOpener
from ocikit.reference import Reference, RepositoryName
from ocikit.repository import load_image

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
