"""What can go wrong in the facade beyond `ocikit.errors`, in the same tree.

::

    OciError
     * NotFound           UpstreamUnknown  ImageSpecNotFound  UploadUnknown
     * InvalidInput       ImageSpecInvalid  LayerUnavailable
     * SourceUnavailable  PullFailed
     * AccessError        CallerUnknown
     * StoreError         CacheUnusable  AlreadyStored  ClaimedElsewhere
"""

from collections.abc import Sequence

from ocikit.errors import AccessError, InvalidInput, NotFound, SourceUnavailable, StoreError


class UpstreamUnknown(NotFound):
    """The request names no registry that is configured; nothing else is ever asked."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"{name[:200]!r} leads to none of the upstreams ({', '.join(known) or 'there are none'})"
        )


class CallerUnknown(AccessError):
    """Who asks has shown nothing that counts here, and is asked for it."""

    def __init__(self) -> None:
        super().__init__("log in to this registry: a token of its own, or what you log in upstream with")


class ImageSpecNotFound(NotFound):
    def __init__(self, image_id: str) -> None:
        super().__init__(f"there is no image spec {image_id[:200]!r}")


class UploadUnknown(NotFound):
    def __init__(self, identity: str) -> None:
        super().__init__(f"there is no upload {identity[:64]!r}")


class ImageSpecInvalid(InvalidInput):
    """All problems of one image spec, in one line."""

    def __init__(self, image_id: str, problems: Sequence[str]) -> None:
        super().__init__(f"image spec {image_id[:200]!r}: {'; '.join(problems)}")


class PullFailed(SourceUnavailable):
    """Every source of a blob failed; the reasons are those of the last attempts."""

    def __init__(self, digest: str, reasons: Sequence[str]) -> None:
        super().__init__(f"every source of {digest}", "; ".join(reasons) or "there is none")


class CacheUnusable(StoreError):
    """The cache cannot take this blob: no room, read-only, broken. It can still be passed through."""


class ClaimedElsewhere(StoreError):
    """Another process of this node is downloading the blob. Never leaves the read-through cache."""

    def __init__(self, digest: str, address: str) -> None:
        super().__init__(digest, f"is being downloaded by the worker at {address}")
        self.address = address


class AlreadyStored(StoreError):
    """There is nothing to download: the blob came in meanwhile. Never leaves the read-through cache."""

    def __init__(self, digest: str) -> None:
        super().__init__(digest, "is in the cache already")


class LayerUnavailable(InvalidInput):
    """A layer that a spec asks for cannot be made."""

    def __init__(self, title: str, reason: str) -> None:
        super().__init__(f"{title}: {reason}")
