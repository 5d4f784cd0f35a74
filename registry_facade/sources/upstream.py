"""Upstream registries: which there are, and one of their repositories as a source of blobs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ocikit.blobs import BlobReader
from ocikit.descriptor import Descriptor
from ocikit.digest import Digest
from ocikit.distribution.client import RegistryClient
from ocikit.distribution.credentials import Credentials, StaticCredentials
from ocikit.distribution.repository import RegistryRepository
from ocikit.errors import BlobNotFound, NotFound
from ocikit.layout import LayoutRepository
from ocikit.manifest import Index, Manifest, RawManifest, parse_manifest_or_index
from ocikit.ranges import ByteRange
from ocikit.repository import Repository
from registry_facade.errors import UpstreamUnknown


class Upstream(Protocol):
    """A registry that may be pulled through. Safe for concurrent use."""

    @property
    def name(self) -> str:
        """As ``?ns=`` and image specs write it."""

    def repository(self, name: str) -> Repository: ...

    def seen_by(self, credentials: Credentials | None) -> "Upstream":
        """The same registry, asked with somebody else's credentials; None: with none."""

    async def referrers(self, repository: str, digest: Digest) -> Index:
        """The manifests whose ``subject`` is ``digest``; empty when there are none."""


@dataclass(frozen=True, slots=True)
class RegistryUpstream:
    name: str
    client: RegistryClient

    def repository(self, name: str) -> Repository:
        return RegistryRepository(self.client, name)

    def seen_by(self, credentials: Credentials | None) -> "RegistryUpstream":
        shown = {} if credentials is None else {self.client.host.name: credentials}
        return RegistryUpstream(self.name, self.client.with_credentials(StaticCredentials(shown)))

    async def referrers(self, repository: str, digest: Digest) -> Index:
        return await self.client.referrers(repository, digest)


@dataclass(frozen=True, slots=True)
class LayoutUpstream:
    """An OCI layout directory under any repository name, or a tree of them named by repository.

    It knows no callers: what is in it is for everybody.
    """

    name: str
    directory: Path

    def repository(self, name: str) -> Repository:
        is_layout = (self.directory / "index.json").exists()
        return LayoutRepository(self.directory if is_layout else self.directory / name)

    def seen_by(self, credentials: Credentials | None) -> "LayoutUpstream":
        del credentials
        return self

    async def referrers(self, repository: str, digest: Digest) -> Index:
        layout = self.repository(repository)
        found: list[Descriptor] = []
        for entry in await _layout_entries(layout):
            document = parse_manifest_or_index(entry)
            if document.subject is not None and document.subject.digest == digest:
                found.append(_as_referrer(entry, document))
        return Index(tuple(found))


class Upstreams:
    """The allow-list: the configured upstreams by name, and layout directories that image specs name."""

    def __init__(self, configured: Iterable[Upstream]) -> None:
        self._by_name = {upstream.name: upstream for upstream in configured}
        self.names = frozenset(self._by_name)

    def seen_by(self, credentials: Credentials | None) -> "Upstreams":
        return Upstreams(upstream.seen_by(credentials) for upstream in self._by_name.values())

    def named(self, name: str) -> Upstream:
        """Raises UpstreamUnknown. ``oci:DIR`` is never a name that a request can carry."""
        if name.startswith("oci:"):
            return LayoutUpstream(name, Path(name.removeprefix("oci:")))
        if name not in self._by_name:
            raise UpstreamUnknown(name, sorted(self.names))
        return self._by_name[name]


async def _layout_entries(layout: Repository) -> list[RawManifest]:
    """The manifests the layout's index names by tag; others cannot be asked for by name."""
    names = await layout.tags()
    raws = await asyncio.gather(*(layout.manifest(name) for name in names))
    return list({raw.digest: raw for raw in raws}.values())


def _as_referrer(raw: RawManifest, document: Manifest | Index) -> Descriptor:
    """distribution-spec v1.1, "Listing Referrers": the config's type stands in for an artifact type."""
    artifact_type = document.artifact_type
    if not artifact_type and isinstance(document, Manifest):
        artifact_type = document.config.media_type
    return Descriptor(
        raw.media_type, raw.digest, len(raw.data), document.annotations, artifact_type=artifact_type
    )


@dataclass(frozen=True, slots=True)
class UpstreamSource:
    """The blobs of one upstream repository."""

    repository: Repository

    @property
    def name(self) -> str:
        return "upstream"

    async def stat(self, digest: Digest) -> Descriptor:
        try:
            return await self.repository.blobs.stat(digest)
        except NotFound as error:
            raise BlobNotFound(digest, self.repository.title) from error

    @contextlib.asynccontextmanager
    async def open(self, digest: Digest, byte_range: ByteRange | None = None) -> AsyncIterator[BlobReader]:
        async with self.repository.blobs.open(digest, byte_range) as reader:
            yield reader
