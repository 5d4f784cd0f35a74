"""Decides, for each request, whether this caller may have that.

A caller may read a digest in a repository when the upstream has told them so within the last minutes: by
resolving it in their own name, or by resolving a manifest that names it. With a token of ours the right to
the repository is the token's, and the digest must belong to a manifest of that repository. What is refused
and what is absent take the same path and get the same answer; who showed nothing is asked for credentials.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from ocikit.digest import Digest
from ocikit.errors import AccessError, BlobNotFound, Denied, ManifestNotFound, NotFound, OciError
from ocikit.manifest import Index
from registry_facade.addressing import Target
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.memory import MemoryCache
from registry_facade.errors import CacheUnusable, CallerUnknown
from registry_facade.manifests import FoundManifest
from registry_facade.metrics import FacadeMetrics
from registry_facade.pulls import Pulls
from registry_facade.sources.upstream import Upstreams
from registry_facade.specs.base import ImageSpecProvider
from registry_facade.tenancy.callers import Caller, Callers
from registry_facade.tenancy.ledger import Ledger
from servicekit.clock import Clock, SystemClock

_log = structlog.get_logger(__name__)
_REFUSED_S = 10.0
"""How long a refusal is remembered, so that repeated guesses are not passed on to the upstream."""
_OPERATOR = Caller("operator", "operator")
"""In whose name the facade's own credentials prove things."""
Ask = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Gate:
    """Safe for concurrent use on one event loop. Raises CallerUnknown, NotFound, or what kept it from asking.

    ``budget_s`` is how long an upstream may take to confirm what was granted before.
    """

    callers: Callers
    ledger: Ledger
    pulls: Pulls
    upstreams: Upstreams
    catalog: Catalog
    provider: ImageSpecProvider
    metrics: FacadeMetrics
    budget_s: float
    clock: Clock = SystemClock()
    _seen_by: MemoryCache[str, Upstreams] = field(default_factory=lambda: MemoryCache(1000))
    _refused: MemoryCache[tuple[str, Target, str], float] = field(default_factory=lambda: MemoryCache(10_000))

    async def identify(self, header: str | None) -> Caller:
        return await self.callers.identify(header)

    def check_push(self, caller: Caller, repository: str) -> None:
        """Raises CallerUnknown or Denied. Only tokens write."""
        if caller.is_anonymous:
            raise CallerUnknown
        if caller.grants is None or not caller.grants.covers(repository, push=True):
            raise Denied("this registry", repository, "the token is not for pushing there")

    def check_covered(self, caller: Caller, target: Target, reference: str) -> None:
        """What needs a token, with nobody to ask upstream. Raises NotFound or CallerUnknown."""
        if caller.grants is None or not caller.grants.covers(_name(target)):
            raise self._refusal(caller, target, reference)

    # ----- pulls -----

    async def manifest(self, caller: Caller, target: Target, reference: str | Digest) -> FoundManifest:
        if target.is_composed or caller.grants is not None:
            await self._check_image(caller, target, reference)
            if isinstance(reference, Digest) and not target.is_composed:
                await self._check_listed(caller, target, reference)
            try:
                return await self.pulls.manifest(target, reference)
            except (NotFound, AccessError) as error:
                raise self._refusal(caller, target, reference) from error
        if isinstance(reference, Digest):
            digest, stale = reference, False
            await self._prove_manifest(caller, target, reference)
        else:
            digest, stale = await self._tag(caller, target, reference)
        raw = (await self.pulls.manifests.get(target, digest, self._via(caller))).raw
        return FoundManifest(raw, stale)

    async def blob(self, caller: Caller, target: Target, digest: Digest) -> Upstreams | None:
        """As whom the blob is to be fetched if it is not here; None: as the facade itself."""
        if target.is_composed:
            await self._check_composed_member(caller, target, digest)
            return None
        who = caller
        if caller.grants is not None:
            self.check_covered(caller, target, digest)
            if await self._parents(target, digest):
                return None
            who = _OPERATOR
        via = self._via(who)
        blobs = via.named(target.upstream).repository(target.repository).blobs
        await self._prove(who, target, digest, lambda: blobs.stat(digest), refused=caller)
        return via

    async def tags(self, caller: Caller, target: Target) -> Sequence[str]:
        via = await self._via_repository(caller, target)
        try:
            return await self.pulls.tags(target, via)
        except (NotFound, AccessError) as error:
            raise self._refusal(caller, target, "tags") from error

    async def referrers(self, caller: Caller, target: Target, digest: Digest) -> Index:
        via = await self._via_repository(caller, target)
        try:
            return await self.pulls.referrers(target, digest, via)
        except (NotFound, AccessError) as error:
            raise self._refusal(caller, target, digest) from error

    # ----- proofs -----

    async def _via_repository(self, caller: Caller, target: Target) -> Upstreams | None:
        if target.is_composed or caller.grants is not None:
            await self._check_image(caller, target, "latest")
            return None
        return self._via(caller)

    def _via(self, caller: Caller) -> Upstreams:
        if caller is _OPERATOR:
            return self.upstreams
        found = self._seen_by.get(caller.key)
        if found is None:
            found = self.upstreams.seen_by(caller.credentials)
            self._seen_by.put(caller.key, found, 1)
        return found

    async def _tag(self, caller: Caller, target: Target, tag: str) -> tuple[Digest, bool]:
        """The digest a tag has for this caller, and whether the upstream could not confirm it."""
        manifests = self.pulls.manifests
        known = await manifests.known_tag(target, tag)
        digests = [known.digest] if known is not None else []
        if (
            known is not None
            and manifests.is_fresh(known)
            and await self.ledger.holds(caller, target, digests)
        ):
            return known.digest, False
        self._check_refused(caller, target, tag)
        granted = await self.ledger.held(caller, target, digests)
        try:
            async with asyncio.timeout(self.budget_s if granted else None):
                digest = await manifests.confirm(target, tag, self._via(caller))
        except (NotFound, AccessError) as error:
            raise self._noted_refusal(caller, target, tag) from error
        except (OciError, TimeoutError) as error:
            if known is None or not granted:
                raise
            manifests.count_stale(target, tag, str(error) or f"no answer within {self.budget_s} s")
            return known.digest, True
        await self.ledger.grant(caller, target, digest)
        return digest, False

    async def _prove(
        self, who: Caller, target: Target, digest: Digest, ask: Ask, *, refused: Caller | None = None
    ) -> None:
        """Returns when ``who`` may read ``digest``; one question upstream unless that was told lately."""
        caller = refused or who
        related = [digest, *await self._parents(target, digest)]
        if await self.ledger.holds(who, target, related):
            return
        self._check_refused(caller, target, digest)
        granted = await self.ledger.held(who, target, related)
        try:
            async with asyncio.timeout(self.budget_s if granted else None):
                async with self.pulls.manifests.guarding(target):
                    await ask()
        except (NotFound, AccessError) as error:
            raise self._noted_refusal(caller, target, digest) from error
        except (OciError, TimeoutError) as error:
            if not granted:
                raise
            _log.warning("access_not_confirmed", target=_name(target), caller=caller.name, reason=str(error))
            return
        await self.ledger.grant(who, target, digest)

    async def _prove_manifest(
        self, who: Caller, target: Target, digest: Digest, *, refused: Caller | None = None
    ) -> None:
        repository = self._via(who).named(target.upstream).repository(target.repository)
        await self._prove(who, target, digest, lambda: repository.resolve(digest), refused=refused)

    async def _check_listed(self, caller: Caller, target: Target, digest: Digest) -> None:
        """That a manifest is one of this repository: another's may be in the cache too."""
        try:
            listed = await self.catalog.has_manifest(target.upstream, target.repository, digest)
        except CacheUnusable:
            listed = False
        if not listed and not await self._parents(target, digest):
            await self._prove_manifest(_OPERATOR, target, digest, refused=caller)

    async def _parents(self, target: Target, digest: Digest) -> Sequence[Digest]:
        """The manifests of this repository that name ``digest``."""
        try:
            found = await self.catalog.parents(digest)
        except CacheUnusable:
            return []
        place = (target.upstream, target.repository)
        return [parent for parent, upstream, repository in found if (upstream, repository) == place]

    # ----- composed images -----

    async def _check_image(self, caller: Caller, target: Target, reference: str | Digest) -> None:
        """The right to an image that is judged as a whole: by a token, or by all that it is made of."""
        if caller.grants is not None:
            self.check_covered(caller, target, reference)
            return
        try:
            spec = await self.provider.spec(target.repository)
        except NotFound as error:
            raise self._refusal(caller, target, reference) from error
        if not spec.for_entitled:
            raise self._refusal(caller, target, reference)
        try:
            for image in spec.images:
                if isinstance(image.reference, Digest):
                    await self._prove_manifest(caller, image.target, image.reference)
                else:
                    await self._tag(caller, image.target, image.reference)
        except NotFound as error:  # which tells of which image; that is not to be known
            raise self._refusal(caller, target, reference) from error

    async def _check_composed_member(self, caller: Caller, target: Target, digest: Digest) -> None:
        await self._check_image(caller, target, digest)
        if await self._parents(target, digest):
            return
        await self.pulls.composer.prepare(target.repository)
        if not await self._parents(target, digest):
            raise self._refusal(caller, target, digest)

    # ----- refusals -----

    def _check_refused(self, caller: Caller, target: Target, reference: str) -> None:
        until_s = self._refused.get((caller.key, target, reference))
        if until_s is not None and self.clock.monotonic() < until_s:
            raise self._refusal(caller, target, reference)

    def _noted_refusal(self, caller: Caller, target: Target, reference: str) -> OciError:
        self._refused.put((caller.key, target, reference), self.clock.monotonic() + _REFUSED_S, 1)
        return self._refusal(caller, target, reference)

    def _refusal(self, caller: Caller, target: Target, reference: str | Digest) -> OciError:
        """The same for what is not there and for what is not theirs."""
        self.metrics.refusals.labels("anonymous" if caller.is_anonymous else "not_entitled").inc()
        _log.info("not_entitled", caller=caller.name, target=_name(target), reference=reference)
        if caller.is_anonymous:
            return CallerUnknown()
        if isinstance(reference, Digest):
            return BlobNotFound(reference, _name(target))
        return ManifestNotFound(f"{_name(target)}:{reference}")


def _name(target: Target) -> str:
    return f"{target.upstream}/{target.repository}"
