"""One name, one image for each platform: named when all that belongs together is tested."""

from collections.abc import Sequence
from dataclasses import dataclass

from builder.images import TriedImage, raise_failures
from builder.parallel import each
from ocikit.compose import compose_index
from ocikit.digest import Digest
from ocikit.errors import ManifestNotFound
from ocikit.repository import Repository, push_images


@dataclass(frozen=True, slots=True)
class MadeImage:
    """``digest`` is what the name stands for: the one image's manifest, or the index of several.

    ``is_new`` is False when the repository had exactly this under this name before.
    """

    name: str
    images: tuple[TriedImage, ...]
    digest: Digest
    is_new: bool

    @property
    def size_bytes(self) -> int:
        return sum(image.size_bytes for image in self.images)


async def name_images(
    repository: Repository, platforms: Sequence[Sequence[TriedImage]]
) -> Sequence[MadeImage]:
    """``platforms`` hold the same names in the same order, one sequence for each platform.

    What fails a test for any platform gets no name. Raises TestsFailed when all others have theirs.
    """
    together = list(zip(*platforms, strict=True))

    async def name(images: tuple[TriedImage, ...]) -> MadeImage | None:
        if any(image.has_failed for image in images):
            return None
        tag, composed = images[0].wanted.name, [image.composed for image in images]
        digest = compose_index(composed).digest if len(images) > 1 else composed[0].manifest_descriptor.digest
        is_new = await _present(repository, tag) != digest
        if is_new:
            await push_images(repository, composed, tag)
        return MadeImage(tag, images, digest, is_new)

    named = await each(together, name, jobs=8)
    raise_failures([result for images in together for image in images for result in image.results])
    return [image for image in named if image is not None]


async def _present(repository: Repository, tag: str) -> Digest | None:
    try:
        return (await repository.resolve(tag)).digest
    except ManifestNotFound:
        return None
