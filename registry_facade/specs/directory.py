"""Image specs as files of a directory; only these may name files of this machine."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ocikit.reference import is_repository
from registry_facade.errors import ImageSpecInvalid, ImageSpecNotFound
from registry_facade.image_spec import ImageSpec, parse_image_spec


@dataclass(frozen=True)
class DirectorySpecs:
    """One ``<image-id>.json`` per image; a changed file counts from the next pull on."""

    directory: Path
    upstreams: Collection[str]

    async def spec(self, image_id: str) -> ImageSpec:
        return await asyncio.to_thread(self._read, image_id)

    def _read(self, image_id: str) -> ImageSpec:
        if not is_repository(image_id):
            raise ImageSpecNotFound(image_id)
        try:
            data = (self.directory / f"{image_id}.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageSpecNotFound(image_id) from error
        except OSError as error:
            raise ImageSpecInvalid(image_id, [error.strerror or str(error)]) from error
        return parse_image_spec(data, image_id, upstreams=self.upstreams, directory=self.directory)
