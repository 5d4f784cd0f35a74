"""What all providers of image specs have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ocikit.errors import OciError
from registry_facade.errors import ImageSpecNotFound
from registry_facade.image_spec import ImageSpec


class ImageSpecProvider(Protocol):
    """Safe for concurrent use."""

    async def spec(self, image_id: str) -> ImageSpec:
        """The spec as it is now.

        Raises ImageSpecNotFound, ImageSpecInvalid, or, when it cannot be told now, a retryable OciError.
        """


@dataclass(frozen=True, slots=True)
class FirstSpecs:
    """The first provider that knows an image decides; with none at all, nothing is composed.

    While one cannot answer, an image that no other knows is not said to be absent.
    """

    providers: Sequence[ImageSpecProvider] = ()

    async def spec(self, image_id: str) -> ImageSpec:
        failure: OciError | None = None
        for provider in self.providers:
            try:
                return await provider.spec(image_id)
            except ImageSpecNotFound:
                continue
            except OciError as error:
                if not error.retryable:
                    raise
                failure = failure or error
        raise failure or ImageSpecNotFound(image_id)
