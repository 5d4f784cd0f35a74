"""Where a blob can be had: the repository that was asked, any other it was seen in, and IPFS before both."""

from collections.abc import Awaitable, Callable, Sequence

from ocikit.digest import Digest
from registry_facade.addressing import Target
from registry_facade.cache.catalog import Catalog
from registry_facade.errors import CacheUnusable
from registry_facade.sources.chain import Origin
from registry_facade.sources.read_through import Located
from registry_facade.sources.upstream import Upstreams, UpstreamSource


class Locator:
    """``nearer`` come before every upstream."""

    def __init__(
        self,
        upstreams: Upstreams,
        catalog: Catalog,
        nearer: Sequence[Origin],
    ) -> None:
        self._upstreams = upstreams
        self._catalog = catalog
        self._nearer = nearer

    async def locate(
        self, target: Target, digest: Digest, prepare: Callable[[], Awaitable[None]] | None = None
    ) -> Located:
        """Origins in the order to ask them; ``prepare`` may make known what is not."""
        size, places = await self._places(digest)
        origins = self._origins(target, places)
        if not origins and prepare is not None:
            await prepare()
            size, places = await self._places(digest)
            origins = self._origins(target, places)
        return Located([*self._nearer, *origins], size)

    def _origins(self, target: Target, places: Sequence[tuple[str, str]]) -> Sequence[Origin]:
        asked = [] if target.is_composed else [(target.upstream, target.repository)]
        return [
            Origin(UpstreamSource(self._upstreams.named(upstream).repository(repository)))
            for upstream, repository in dict.fromkeys([*asked, *places])
            if upstream in self._upstreams.names or upstream.startswith("oci:")
        ]

    async def _places(self, digest: Digest) -> tuple[int | None, Sequence[tuple[str, str]]]:
        try:
            return await self._catalog.places(digest)
        except CacheUnusable:  # then only the repository that was asked is known
            return None, ()
