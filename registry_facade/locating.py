"""Where a blob can be had: neighbours, the repository that was asked, and any other it was seen in."""

from collections.abc import Awaitable, Callable, Sequence

from ocikit.blobs import BlobSource
from ocikit.digest import Digest
from registry_facade.addressing import COMPOSED, Target
from registry_facade.breaker import Breaker, Guarded
from registry_facade.cache.catalog import Catalog
from registry_facade.errors import CacheUnusable
from registry_facade.layers.web import UrlPlaces
from registry_facade.sharing import Audience, Seen, SharingRules
from registry_facade.sources.chain import Origin
from registry_facade.sources.neighbours import Neighbours, Place
from registry_facade.sources.read_through import Located
from registry_facade.sources.upstream import Upstreams, UpstreamSource
from servicekit.clock import SystemClock


class Locator:
    """Neighbours come before every upstream."""

    def __init__(
        self,
        upstreams: Upstreams,
        catalog: Catalog,
        neighbours: Neighbours,
        sharing: SharingRules,
        urls: UrlPlaces,
    ) -> None:
        self._upstreams = upstreams
        self._catalog = catalog
        self._neighbours = neighbours
        self._sharing = sharing
        self._urls = urls
        self._breakers: dict[str, Breaker] = {}

    async def locate(
        self,
        target: Target,
        digest: Digest,
        prepare: Callable[[], Awaitable[None]] | None = None,
        *,
        via: Upstreams | None = None,
        for_peer: bool = False,
    ) -> Located:
        """Origins in the order to ask them; ``prepare`` may make known what is not.

        ``via`` is asked for the repository of ``target`` before the facade's own credentials are.
        """
        size, places = await self._places(digest)
        found = self._repositories(target, places)
        if not found and prepare is not None and self._urls.source(digest) is None:
            await prepare()
            size, places = await self._places(digest)
            found = self._repositories(target, places)
        shared = next((place for place in found if place.upstream in self._upstreams.names), None)
        far = [self._source(place, self._upstreams) for place in found]
        if target.is_composed and (named := self._urls.source(digest)) is not None:
            far.append(named)
        if via is not None:
            far.insert(0, self._source(Place(target.upstream, target.repository), via))
        audience = await self.audience(target, digest)
        near = self._neighbours.origins(shared, audience, for_peer=for_peer)
        return Located([*near, *map(Origin, far)], size, audience)

    async def audience(self, target: Target | None, digest: Digest) -> Audience:
        """Who may be asked for a blob or given it; ``target`` counts only where no image of it is known."""
        asked = [] if target is None or target.is_composed else [Seen(target.upstream, target.repository)]
        try:
            known = await self._catalog.seen_in(digest)
        except CacheUnusable:
            known = []
        seen = [Seen(*item) for item in known if item[0] != COMPOSED]
        return self._sharing.audience(seen or asked)

    def _repositories(self, target: Target, places: Sequence[tuple[str, str]]) -> Sequence[Place]:
        asked = [] if target.is_composed else [(target.upstream, target.repository)]
        return [
            Place(upstream, repository)
            for upstream, repository in dict.fromkeys([*asked, *places])
            if upstream in self._upstreams.names or upstream.startswith("oci:")
        ]

    def _source(self, place: Place, upstreams: Upstreams) -> BlobSource:
        name = place.upstream
        breaker = self._breakers.setdefault(name, Breaker(SystemClock(), f"upstream {name}"))
        return Guarded(UpstreamSource(upstreams.named(name).repository(place.repository)), breaker)

    async def _places(self, digest: Digest) -> tuple[int | None, Sequence[tuple[str, str]]]:
        try:
            return await self._catalog.places(digest)
        except CacheUnusable:  # then only the repository that was asked is known
            return None, ()
