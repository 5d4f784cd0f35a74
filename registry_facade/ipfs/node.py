"""Administration of a Kubo node: its size, its pins, its garbage collection, its peers.

By ipfshttpclient, in threads; docs/decisions/0020-ipfshttpclient.md says why, and why not for blobs.
"""

import asyncio
import contextlib
import functools
import ipaddress
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ipfshttpclient
from ipfshttpclient.exceptions import Error, ErrorResponse

from ocikit.errors import SourceUnavailable
from registry_facade.ipfs.kubo import NAME
from registry_facade.ipfs.pins import Pin

T = TypeVar("T")
TIMEOUT_S = 5.0
COLLECT_S = 600.0
"""Collecting walks everything that is pinned; adding waits meanwhile."""


@dataclass(frozen=True, slots=True)
class Repository:
    """``max_bytes`` is the node's own StorageMax, at which it collects if it was started with --enable-gc."""

    occupied_bytes: int
    max_bytes: int


class Node:
    """Safe for concurrent use. Every method raises SourceUnavailable."""

    def __init__(self, api_url: str) -> None:
        warnings.filterwarnings(
            "ignore", "The 'strict' parameter", FutureWarning
        )  # of urllib3, by the client
        self._address = multiaddr(api_url)

    async def repository(self) -> Repository:
        found = await self._do(lambda client: client.repo.stat(opts={"size-only": True}))
        return Repository(_number(found, "RepoSize"), _number(found, "StorageMax"))

    async def pins(self) -> Sequence[Pin]:
        """The facade's own."""
        opts = {"names": True}
        found = await self._do(lambda client: client.pin.ls(type="recursive", opts=opts))
        keys = found.get("Keys") or {}
        named = ((cid, entry.get("Name", "")) for cid, entry in keys.items() if isinstance(entry, Mapping))
        return [pin for cid, name in named if (pin := Pin.parse(cid, name)) is not None]

    async def rename(self, pin: Pin) -> None:
        """Gives the pin of ``pin.cid`` the name that ``pin`` has now."""
        await self._do(lambda client: client.pin.add(pin.cid, opts={"name": pin.name}))

    async def unpin(self, cid: str) -> None:
        """Lets `collect` have ``cid``; not pinned is success."""

        def remove(client: Any) -> None:
            try:
                client.pin.rm(cid)
            except ErrorResponse as error:
                if "not pinned" not in str(error):
                    raise

        await self._do(remove)

    async def collect(self) -> None:
        """Deletes what is not pinned; returns when that is done."""
        await self._do(lambda client: client.repo.gc(opts={"silent": True}, timeout=COLLECT_S))

    async def swarm_peers(self) -> int:
        """How many other nodes it is connected with."""
        found = await self._do(lambda client: client.swarm.peers())
        return len(found.get("Peers") or [])

    async def config(self) -> Mapping[str, Any]:
        """Its settings, without secrets."""
        found = await self._do(lambda client: client.config.get())
        return dict(found)

    async def _do(self, work: Callable[[Any], T]) -> T:
        return await asyncio.to_thread(functools.partial(self._run, work))

    def _run(self, work: Callable[[Any], T]) -> T:
        with _translated(), ipfshttpclient.Client(self._address, timeout=TIMEOUT_S) as client:
            return work(client)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (Error, OSError) as error:
        reason = str(error) or type(error).__name__
        raise SourceUnavailable(NAME, reason.splitlines()[0][:200]) from error


def multiaddr(url: str) -> str:
    """How the client wants the address of an ``http(s)://HOST[:PORT]``."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"/{kind}/{host}/tcp/{port}/{parts.scheme}"


def _number(found: Mapping[str, Any], key: str) -> int:
    value = found.get(key)
    if not isinstance(value, int) or value < 0:
        raise SourceUnavailable(NAME, f"its repository has no {key}")
    return value
