"""Images as administration sees them: every blob that a tag or digest leads to, as far as it is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ocikit.digest import Digest
from ocikit.errors import ManifestNotFound
from registry_facade.admin.purges import Purges
from registry_facade.cache.catalog import Catalog
from registry_facade.cache.storage import Storage
from registry_facade.image_spec import ImageRef
from registry_facade.manifests import Manifests

_MAX_BLOBS = 10_000


@dataclass(frozen=True, slots=True)
class CachedImages:
    """Safe for concurrent use."""

    catalog: Catalog
    storage: Storage
    manifests: Manifests
    purges: Purges

    async def describe(self, ref: ImageRef) -> Mapping[str, Any]:
        """Raises ManifestNotFound for an image that was never pulled through here."""
        top, blobs = await self._blobs(ref)
        known = [(digest, size, await self.catalog.known(digest)) for digest, size in blobs]
        rows = [
            {
                "digest": digest,
                "size": size if size is not None else found.size if found is not None else None,
                "state": found.state if found is not None else "absent",
                "pinned": bool(found.pinned) if found is not None else False,
            }
            for digest, size, found in known
        ]
        return {"image": ref.text, "digest": top, "blobs": rows}

    async def pin(self, ref: ImageRef, *, pinned: bool) -> Mapping[str, Any]:
        """Keeps all that is here of the image, or no longer; what is absent cannot be pinned.

        Raises ManifestNotFound.
        """
        top, blobs = await self._blobs(ref)
        done = [await self.catalog.pin(digest, pinned=pinned) for digest, _ in blobs]
        return {"image": ref.text, "digest": top, "changed": sum(done), "absent": len(done) - sum(done)}

    async def purge(self, ref: ImageRef, *, blobs: bool) -> Mapping[str, Any]:
        """Forgets what a tag stood for, so that the next pull asks the upstream.

        With ``blobs`` what only this image needs is deleted too. Raises ManifestNotFound.
        """
        top, found = await self._blobs(ref)
        forgotten = not isinstance(ref.reference, Digest) and await self.manifests.purge_tag(
            ref.target, ref.reference
        )
        own = await self._only_of(top, [digest for digest, _ in found]) if blobs else []
        for digest in own:
            await self.storage.delete(digest, "purged")
        tag = "" if isinstance(ref.reference, Digest) else ref.reference
        await self.purges.note(ref.target, tag, own)
        return {"image": ref.text, "digest": top, "tag_forgotten": forgotten, "deleted": len(own)}

    async def _blobs(self, ref: ImageRef) -> tuple[Digest, Sequence[tuple[Digest, int | None]]]:
        """The image's own digest, and every blob below it with the size that its manifest states."""
        top = await self._digest(ref)
        found: dict[Digest, int | None] = {top: None}
        waiting = [top]
        while waiting and len(found) < _MAX_BLOBS:
            for child, size in await self.catalog.children(waiting.pop()):
                if child not in found:
                    found[child] = size
                    waiting.append(child)
        return top, list(found.items())

    async def _digest(self, ref: ImageRef) -> Digest:
        target, reference = ref.target, ref.reference
        if isinstance(reference, Digest):
            if await self.catalog.has_manifest(target.upstream, target.repository, reference):
                return reference
        elif (known := await self.manifests.known_tag(target, reference)) is not None:
            return known.digest
        raise ManifestNotFound(ref.text)

    async def _only_of(self, top: Digest, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those that no manifest from outside the image refers to; the manifest itself is one of them."""
        inside = set(digests)
        own = []
        for digest in digests:
            parents = {parent for parent, _, _ in await self.catalog.parents(digest)}
            if parents <= inside and (digest == top or parents):
                own.append(digest)
        return own
