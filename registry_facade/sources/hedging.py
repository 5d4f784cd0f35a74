"""Asking a near source, and a trusted one too when the near one takes longer than it usually does.

Whoever gives the first byte serves; the near source that lost still gets to say what it has to say, in the
background, so that a CID nobody has is found out although nobody waited for it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from ocikit.blobs import BlobReader
from ocikit.digest import Digest
from ocikit.errors import OciError
from ocikit.ranges import ByteRange, ContentRange
from registry_facade.metrics import FacadeMetrics
from registry_facade.sources.chain import Origin, Selection
from registry_facade.sources.pace import Pace, Paces
from servicekit.tasks import BackgroundTasks

Failed = Callable[[Origin, OciError], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A source that has begun to give; ``pieces`` raise what a BlobReader raises."""

    origin: Origin
    content_range: ContentRange
    pieces: AsyncGenerator[bytes, None]


class _Attempt:
    """One request in a task of its own, which enters and leaves the source's context."""

    def __init__(self, origin: Origin, digest: Digest, wanted: ByteRange | None, pace: Pace) -> None:
        self.origin = origin
        self._over = asyncio.Event()
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task = asyncio.create_task(self._run(digest, wanted, pace), name=f"ask {origin.source.name}")

    async def _run(self, digest: Digest, wanted: ByteRange | None, pace: Pace) -> None:
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        try:
            with pace.busy():
                async with self.origin.source.open(digest, wanted) as reader:
                    pieces = _pieces(reader)
                    first = await anext(pieces, b"")
                    pace.answered(loop.time() - asked_s)
                    if not self.answer.done():
                        self.answer.set_result(
                            Answer(self.origin, reader.content_range, _from_first(first, pieces))
                        )
                        await self._over.wait()
                    await pieces.aclose()
        except Exception as error:  # noqa: BLE001 (whoever waits for the answer gets it)
            if not self.answer.done():
                self.answer.set_exception(error)
        finally:
            self.answer.cancel()

    async def end(self) -> None:
        """Lets go of the source, whether or not it has answered."""
        self._over.set()
        if not self.answer.done() or self.answer.cancelled():
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def conclude(self, failed: Failed) -> None:
        """Waits for a verdict that no reader needs any more."""
        self._over.set()
        await asyncio.wait({self._task})
        if not self.answer.cancelled() and isinstance(error := self.answer.exception(), OciError):
            failed(self.origin, error)


class Hedge:
    """Safe for concurrent use on one event loop."""

    def __init__(self, paces: Paces, metrics: FacadeMetrics, background: BackgroundTasks) -> None:
        self.paces = paces
        self._metrics = metrics
        self._background = background

    @contextlib.asynccontextmanager
    async def open(
        self,
        selection: Selection,
        digest: Digest,
        wanted: ByteRange | None,
        failed: Failed,
        *,
        is_urgent: bool = True,
    ) -> AsyncIterator[Answer | None]:
        """None when those that were asked failed; each was told to ``failed``.

        What is not urgent is asked of one source at a time, and says nothing of that source's pace.
        Raises what the sources said when there is none left to ask.
        """
        origin = selection.next()
        pace = self.paces.of(origin.source.name) if is_urgent else Pace()
        attempts = [_Attempt(origin, digest, wanted, pace)]
        winner: _Attempt | None = None
        try:
            is_doubtful = is_urgent and not selection.has_given(origin)
            farther = selection.behind(origin) if is_doubtful else None
            if farther is not None and not await self._in_time(attempts[0]):
                attempts.append(_Attempt(farther, digest, wanted, self.paces.of(farther.source.name)))
            winner = await _first(attempts, failed)
            if winner is not None and farther is not None and len(attempts) > 1:
                self._metrics.hedges.labels(origin.source.name, winner.origin.source.name).inc()
            self._dismiss([attempt for attempt in attempts if attempt is not winner], digest, failed)
            attempts = [winner] if winner is not None else []
            yield winner.answer.result() if winner is not None else None
        finally:
            if winner is not None:
                await winner.end()
            else:
                self._dismiss(attempts, digest, failed)

    def _dismiss(self, attempts: Sequence[_Attempt], digest: Digest, failed: Failed) -> None:
        """At once, so that what a near source says while another serves is heard too."""
        for attempt in attempts:
            is_over = attempt.origin.trusted or attempt.answer.done()
            verdict = attempt.end() if is_over else attempt.conclude(failed)
            _ = self._background.start(verdict, name=f"verdict {digest.short}")

    async def _in_time(self, attempt: _Attempt) -> bool:
        """Whether it answers, or fails, before it has been waited for long enough."""
        patience_s = self.paces.of(attempt.origin.source.name).patience_s
        done, _ = await asyncio.wait({attempt.answer}, timeout=patience_s)
        return bool(done)


async def _first(attempts: Sequence[_Attempt], failed: Failed) -> _Attempt | None:
    """The first that answers; those that fail before it are told to ``failed``."""
    waiting = {attempt.answer: attempt for attempt in attempts}
    while waiting:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for answer in sorted(done, key=lambda item: attempts.index(waiting[item])):
            attempt = waiting.pop(answer)
            error = answer.exception() if not answer.cancelled() else None
            if error is None and not answer.cancelled():
                return attempt
            if isinstance(error, OciError):
                failed(attempt.origin, error)
            elif error is not None:
                raise error
    return None


async def _pieces(reader: BlobReader) -> AsyncGenerator[bytes, None]:
    async for data in reader:
        yield data


async def _from_first(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async for data in rest:
        yield data
