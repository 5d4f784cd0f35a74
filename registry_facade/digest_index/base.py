"""What every digest index promises."""

from typing import Protocol

from ocikit.digest import Digest


class DigestIndex(Protocol):
    """A map digest -> CID. Safe for concurrent use.

    Everything it says is a hint: it may have forgotten, and whoever writes to it may lie. Every method
    raises SourceUnavailable, and soon, when the index cannot be asked. The owner closes it.
    """

    async def get(self, digest: Digest) -> str | None:
        """The CID last put, None when there is none or what is stored has not the form of a CID."""

    async def put(self, digest: Digest, cid: str) -> None:
        """Replaces what was there."""

    async def forget(self, digest: Digest, cid: str) -> None:
        """Removes the mapping if it still says ``cid``; a better one that came meanwhile stays."""

    async def aclose(self) -> None:
        """Lets go of connections and files; no method may be called afterwards."""
