"""From the text STORE to a store with all its wrappers; the one place where they are stacked."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from content.errors import InvalidStore
from content.metrics import StoreMetrics
from content.objects.base import MultipartStore, StoreProperties
from content.objects.directory import DirectoryObjectStore
from content.objects.probe import probe
from content.objects.s3 import S3ObjectStore, s3_client
from content.objects.wrappers import Bounded, Metered, Retrying, Throttled
from servicekit.backoff import Backoff
from servicekit.metrics import Metrics
from servicekit.throttle import Bucket, Throttle


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """``s3://bucket/prefix`` or ``file:///dir``, parsed."""

    scheme: str
    bucket: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidStore."""
        parts = urlsplit(text)
        if parts.query or parts.fragment:
            raise InvalidStore(text, "a store has no query and no fragment")
        if parts.scheme == "s3" and parts.netloc:
            return cls("s3", parts.netloc, parts.path.strip("/"))
        if parts.scheme == "file" and not parts.netloc and len(parts.path) > 1:
            return cls("file", "", unquote(parts.path))
        raise InvalidStore(text, "it names no bucket and no directory")


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """``sent`` and ``received`` limit bytes per second over all who share the store. ``known`` is what a
    probe found out about this store before; without it, there is a new one.
    """

    s3_endpoint: str | None = None
    concurrency: int = 4
    sent: Bucket = dataclasses.field(default_factory=Throttle)
    received: Bucket = dataclasses.field(default_factory=Throttle)
    metrics: StoreMetrics = dataclasses.field(default_factory=lambda: StoreMetrics.on(Metrics()))
    known: StoreProperties | None = None


@contextlib.asynccontextmanager
async def open_store(text: str, options: StoreOptions) -> AsyncIterator[MultipartStore]:
    """The store that ``text`` names, probed; closed at the end. Raises InvalidStore, and as `probe`."""
    raw = await _raw(StoreAddress.parse(text), options)
    try:
        yield wrapped(raw, options)
    finally:
        await raw.close()


def wrapped(raw: MultipartStore, options: StoreOptions) -> MultipartStore:
    """Outermost first: retry, so that each try waits for its bytes and its turn, and is counted."""
    metered = Metered(raw, options.metrics)
    bounded = Bounded(metered, options.concurrency)
    throttled = Throttled(bounded, options.sent, options.received)
    return Retrying(throttled, Backoff(attempts=6, first_s=0.2, cap_s=10.0))


async def _raw(address: StoreAddress, options: StoreOptions) -> MultipartStore:
    if address.scheme == "file":
        return DirectoryObjectStore(Path(address.path))
    client = await asyncio.to_thread(s3_client, options.s3_endpoint, connections=options.concurrency + 2)
    hoped = options.known or StoreProperties(
        conditional_put=True, part_copy=True, checks_crc32=True, concurrency=options.concurrency
    )
    store = S3ObjectStore(client, address.bucket, address.path, hoped)
    if options.known is not None:
        return store
    try:
        store.learn(await probe(Retrying(store, Backoff(attempts=3)), store.learn))
    except BaseException:
        await store.close()
        raise
    return store
