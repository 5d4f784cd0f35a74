"""A digest index in Redis: many nodes share what one has added."""

import contextlib
from collections.abc import AsyncIterator

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ocikit.cid import is_cid
from ocikit.digest import Digest
from ocikit.errors import SourceUnavailable
from registry_facade.digest_index.base import DigestIndex
from servicekit.redact import redact_url
from servicekit.secrets import Secret

_PREFIX = "lapstrake:cid:"
_KEPT_S = 90 * 24 * 3600
"""Mappings nobody renews go by themselves; whoever adds the blob again puts it again."""
_DEADLINE_S = 0.5
_CONNECTIONS = 8
_FORGET = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisIndex:
    """One pool of connections to ``url`` (``redis://`` or ``rediss://``)."""

    def __init__(self, url: str, password: Secret | None = None) -> None:
        self._title = f"digest index {redact_url(url)}"
        pool = BlockingConnectionPool.from_url(
            url,
            password=password.reveal() if password else None,
            socket_connect_timeout=_DEADLINE_S,
            socket_timeout=_DEADLINE_S,
            timeout=_DEADLINE_S,
            retry=Retry(NoBackoff(), 0),  # a hint is not worth waiting for
            max_connections=_CONNECTIONS,
        )
        self._redis = Redis.from_pool(pool)

    async def get(self, digest: Digest) -> str | None:
        async with self._unavailable():
            value = await self._redis.get(_PREFIX + digest)
        cid = value.decode(errors="replace") if isinstance(value, bytes) else ""
        return cid if is_cid(cid) else None

    async def put(self, digest: Digest, cid: str) -> None:
        async with self._unavailable():
            await self._redis.set(_PREFIX + digest, cid, ex=_KEPT_S)

    async def forget(self, digest: Digest, cid: str) -> None:
        async with self._unavailable():
            await self._redis.eval(_FORGET, 1, _PREFIX + digest, cid)

    async def aclose(self) -> None:
        await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def _unavailable(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise SourceUnavailable(self._title, str(error) or type(error).__name__) from error


def _conforms(index: RedisIndex) -> DigestIndex:
    return index
