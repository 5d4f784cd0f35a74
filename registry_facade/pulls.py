"""What a pull asks for, whoever asks: manifests, places of blobs, tags, referrers; composed images included.

``via`` are upstreams as the caller's own credentials see them; None: as the facade's own do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ocikit.digest import Digest
from ocikit.manifest import Index
from registry_facade.addressing import Target
from registry_facade.composing import Composer
from registry_facade.locating import Locator
from registry_facade.manifests import FoundManifest, Manifests
from registry_facade.sources.read_through import Locate
from registry_facade.sources.upstream import Upstreams


@dataclass(frozen=True, slots=True)
class Pulls:
    """Safe for concurrent use on one event loop. Checks no rights: see `registry_facade.tenancy`."""

    manifests: Manifests
    composer: Composer
    locator: Locator

    async def manifest(self, target: Target, reference: str | Digest) -> FoundManifest:
        if target.is_composed:
            return await self.composer.manifest(target.repository, reference)
        return await self.manifests.get(target, reference)

    def locate(self, target: Target, digest: Digest, via: Upstreams | None = None) -> Locate:
        if not target.is_composed:
            return lambda: self.locator.locate(target, digest, via=via)
        return lambda: self.locator.locate(
            target, digest, prepare=lambda: self.composer.prepare(target.repository, digest)
        )

    async def tags(self, target: Target, via: Upstreams | None = None) -> Sequence[str]:
        return ["latest"] if target.is_composed else await self.manifests.tags(target, via)

    async def referrers(self, target: Target, digest: Digest, via: Upstreams | None = None) -> Index:
        if target.is_composed:
            return await self.composer.referrers(target.repository, digest)
        return await self.manifests.referrers(target, digest, via)
