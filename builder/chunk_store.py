"""Finding and keeping bases and chunks in a repository."""

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from builder.chunk_images import StoredChunk, inputs_of
from builder.fingerprint import Inputs
from builder.names import base_tag, chunked_prefix, chunked_tag
from ocikit import media_types
from ocikit.blobs import copy_blob
from ocikit.descriptor import Descriptor, Platform
from ocikit.errors import InvalidInput, ManifestNotFound
from ocikit.manifest import child_descriptors
from ocikit.repository import Image, Repository, load_image, push_config_and_manifest

_EARLIER = 20
"""How many earlier builds of a chunk are looked at to say what changed."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image, and the repository that has it."""

    image: Image
    repository: Repository


class ChunkStore:
    """``target`` is written and read; ``elsewhere`` is only read, for what ``target`` lacks.

    What is for another platform than ``platform`` is as good as absent.
    """

    def __init__(self, target: Repository, platform: Platform, elsewhere: Repository | None = None) -> None:
        self.target = target
        self.platform = platform
        self.elsewhere = elsewhere
        self._tags: asyncio.Task[Sequence[str]] | None = None

    async def base(self, inputs: Inputs) -> Found | None:
        return await self._find(base_tag(inputs.hash))

    async def chunk(self, name: str, inputs: Inputs, base_digest: str) -> Found | None:
        """The build of exactly these inputs, preferably on the base with ``base_digest``."""
        found = await self._find(chunked_tag(name, inputs.hash))
        if found is None or self.elsewhere is None or found.repository is self.elsewhere:
            return found
        if StoredChunk(name, found.image).base_digest == base_digest:
            return found
        other = await self._load(self.elsewhere, chunked_tag(name, inputs.hash))
        fits = other is not None and StoredChunk(name, other.image).base_digest == base_digest
        return other if fits else found

    async def _find(self, tag: str) -> Found | None:
        found = await self._load(self.target, tag)
        if found is not None or self.elsewhere is None:
            return found
        return await self._load(self.elsewhere, tag)

    async def _load(self, repository: Repository, tag: str) -> Found | None:
        """None also for something under that tag that is no chunk: it is built anew then."""
        try:
            return Found(await load_image(repository, tag, self.platform), repository)
        except (ManifestNotFound, InvalidInput):
            return None

    async def earlier_inputs(self, name: str, *, is_base: bool = False) -> Sequence[Inputs]:
        """Of other builds of the chunk, where they can be read."""
        known = [inputs_of(item.image.config) for item in await self._earlier(name, is_base=is_base)]
        return [inputs for inputs in known if inputs is not None]

    async def same_but_base(self, name: str, inputs: Inputs) -> Found | None:
        """An earlier build of the chunk from the same inputs on another base."""
        for found in reversed(await self._earlier(name)):
            other = inputs_of(found.image.config)
            if other is not None and dataclasses.replace(other, base=inputs.base) == inputs:
                return found
        return None

    async def _earlier(self, name: str, *, is_base: bool = False) -> Sequence[Found]:
        prefix, suffix = ("base--", "") if is_base else (chunked_prefix(name), "--chunked")
        if self._tags is None:  # read once: what this run adds is no earlier build
            self._tags = asyncio.create_task(_tags(self.target))
        tags = [
            tag
            for tag in await asyncio.shield(self._tags)
            if tag.startswith(prefix)
            and tag.endswith(suffix)
            and _is_hash(tag[len(prefix) :].removesuffix(suffix))
        ]
        found = await asyncio.gather(*(self._load(self.target, tag) for tag in tags[-_EARLIER:]))
        return [item for item in found if item is not None]

    async def take(self, found: Found, tag: str) -> Image:
        """Brings what was found elsewhere into the target: mounted where possible, else copied."""
        if found.repository is not self.target:
            for child in child_descriptors(found.image.manifest):
                await transfer_blob(child, found.repository, self.target)
            await self.target.put_manifest(found.image.raw, tag)
        return found.image

    async def put(self, config: bytes, manifest: bytes, tag: str) -> Descriptor:
        """Layers come first; the tag moves last."""
        return await push_config_and_manifest(self.target, config, manifest, tag)


async def _tags(repository: Repository) -> Sequence[str]:
    try:
        return await repository.tags()
    except ManifestNotFound:  # a repository that nothing was ever pushed to
        return ()


def _is_hash(text: str) -> bool:
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)


async def transfer_blob(descriptor: Descriptor, source: Repository, target: Repository) -> None:
    """Without moving bytes through here where the target can take it from the source itself."""
    if not await target.mount(descriptor.digest, descriptor.size, source):
        await copy_blob(source.blobs, target.blobs, descriptor)


async def stage_as_layout(found: Image, source: Repository, layout: Repository, tag: str) -> None:
    """A copy of an image where an engine can read it; what is there already is not copied again."""
    try:
        staged = await layout.resolve(tag)
    except ManifestNotFound:
        staged = None
    if staged is not None and staged.digest == found.descriptor.digest:
        return
    for child in child_descriptors(found.manifest):
        await transfer_blob(child, source, layout)
    if found.raw.media_type not in {media_types.OCI_MANIFEST, media_types.DOCKER_MANIFEST}:
        raise InvalidInput(f"{source.title} has a base of media type {found.raw.media_type}")
    await layout.put_manifest(found.raw, tag)
