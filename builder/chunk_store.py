"""Finding and keeping bases and chunks in a repository."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from builder.chunk_images import StoredChunk, inputs_of
from builder.fingerprint import Inputs
from builder.names import base_tag, chunked_prefix, chunked_tag, contents_tag
from ocikit import media_types
from ocikit.blobs import copy_blob
from ocikit.descriptor import Descriptor, Platform
from ocikit.digest import Digest
from ocikit.errors import InvalidInput, ManifestNotFound
from ocikit.manifest import Manifest, RawManifest, child_descriptors
from ocikit.repository import Image, Repository, load_image, push_config_and_manifest

_EARLIER = 20
"""How many earlier builds of a chunk are looked at at a time; to say what changed, so many are enough."""


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
        self._transfers: dict[Digest, asyncio.Lock] = {}
        self._transferred: set[Digest] = set()

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
        tags = await self._earlier_tags(name, is_base=is_base)
        known = [inputs_of(item.image.config) for item in await self._load_all(tags[-_EARLIER:])]
        return [inputs for inputs in known if inputs is not None]

    async def same_but_base(self, name: str, inputs: Inputs) -> Found | None:
        """An earlier build of the chunk from the same inputs on another base."""
        tags = await self._earlier_tags(name)
        for at in range(0, len(tags), _EARLIER):
            for found in await self._load_all(tags[at : at + _EARLIER]):
                other = inputs_of(found.image.config)
                if other is not None and dataclasses.replace(other, base=inputs.base) == inputs:
                    return found
        return None

    async def _earlier_tags(self, name: str, *, is_base: bool = False) -> Sequence[str]:
        prefix, suffix = ("base--", "") if is_base else (chunked_prefix(name), "--chunked")
        if self._tags is None:  # read once: what this run adds is no earlier build
            self._tags = asyncio.create_task(_tags(self.target))
        return [
            tag
            for tag in await asyncio.shield(self._tags)
            if tag.startswith(prefix)
            and tag.endswith(suffix)
            and _is_hash(tag[len(prefix) :].removesuffix(suffix))
        ]

    async def _load_all(self, tags: Sequence[str]) -> Sequence[Found]:
        found = await asyncio.gather(*(self._load(self.target, tag) for tag in tags))
        return [item for item in found if item is not None]

    async def take(self, found: Found, tag: str) -> Image:
        """Brings what was found elsewhere into the target, with its tables of contents and its first base.

        Mounted where possible, else copied.
        """
        if found.repository is not self.target:
            await self._transfer(found.image.raw, found.repository, tag)
            chunk = StoredChunk("", found.image)
            if chunk.is_moved:
                own_tag, own_base = chunk.built_on
                with contextlib.suppress(ManifestNotFound, InvalidInput):
                    image = await load_image(found.repository, Digest.parse(own_base))
                    await self.take(Found(image, found.repository), own_tag)
            with contextlib.suppress(ManifestNotFound):
                listed = await found.repository.manifest(contents_tag(tag))
                await self._transfer(listed, found.repository, contents_tag(tag))
        return found.image

    async def _transfer(self, raw: RawManifest, source: Repository, tag: str) -> None:
        for child in child_descriptors(Manifest.parse(raw.data, raw.media_type)):
            await self._transfer_once(child, source)
        await self.target.put_manifest(raw, tag)

    async def _transfer_once(self, blob: Descriptor, source: Repository) -> None:
        """docker-registry takes a blob to be absent while it is mounted a second time."""
        async with self._transfers.setdefault(blob.digest, asyncio.Lock()):
            if blob.digest not in self._transferred:
                await transfer_blob(blob, source, self.target)
                self._transferred.add(blob.digest)

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
