"""A blob that the cache cannot take, sent on as it comes: each reader has its own request upstream."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from ocikit.digest import Digest
from ocikit.errors import OciError
from ocikit.ranges import ByteRange, ContentRange
from ocikit.verify import Verifier
from registry_facade.open_blob import Part
from registry_facade.sources.chain import Origin, Selection


@dataclass(frozen=True, slots=True)
class PassingBlob:
    """Untrusted sources are left out: there is nowhere to verify before sending.

    A whole blob is verified as it passes, its last piece held back; a range cannot be.
    """

    digest: Digest
    size: int
    origins: Sequence[Origin]
    received: Callable[[str, int], None]
    served_from: str = "passing"

    @classmethod
    async def open(
        cls,
        digest: Digest,
        origins: Sequence[Origin],
        size: int | None,
        received: Callable[[str, int], None],
    ) -> "PassingBlob":
        """Raises what the sources said."""
        trusted = [origin for origin in origins if origin.trusted]
        selection = Selection(digest, trusted)
        while size is None:
            origin = selection.next()
            try:
                size = (await origin.source.stat(digest)).size
            except OciError as error:
                selection.failed(origin, error)
        return cls(digest, size, trusted, received)

    async def parts(self, wanted: ContentRange) -> AsyncGenerator[Part, None]:
        verifier = Verifier(self.digest, self.size, "upstream") if wanted.is_whole else None
        held = b""
        async for data in self._pieces(wanted):
            if verifier is None:
                yield data
                continue
            verifier.update(data)
            if held:
                yield held
            held = data
        if verifier is not None:
            verifier.finish()
            if held:
                yield held

    async def _pieces(self, wanted: ContentRange) -> AsyncGenerator[bytes, None]:
        """Goes on with another source where one fails."""
        selection, at = Selection(self.digest, self.origins), wanted.start
        while at < wanted.stop:
            origin = selection.next()
            stop = None if wanted.stop == wanted.size else wanted.stop
            try:
                async with origin.source.open(
                    self.digest, ByteRange(at, stop) if at or stop else None
                ) as reader:
                    async for data in reader:
                        piece = data[: wanted.stop - at]
                        at += len(piece)
                        self.received(origin.source.name, len(piece))
                        selection.progressed(origin)
                        yield piece
            except OciError as error:
                selection.failed(origin, error)
