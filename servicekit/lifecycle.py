"""From start to a drained end: readiness off, stop accepting, finish what runs, cancel the rest, close.

A second signal ends the wait.
"""

import asyncio
import contextlib
import ipaddress
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import structlog
from aiohttp import web

from servicekit.web import Readiness

_log = structlog.get_logger(__name__)


class ListenFailed(Exception):
    """The address cannot be bound."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {reason}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Listener:
    """One application on one address; port 0 picks a free one."""

    app: web.Application
    host: str
    port: int
    tls: ssl.SSLContext | None = None
    reuse_port: bool = False


@contextlib.asynccontextmanager
async def listening(listeners: Sequence[Listener], *, drain_s: float) -> AsyncIterator[list[tuple[str, int]]]:
    """Serves until the block ends, then drains for at most ``drain_s``; yields the bound addresses.

    Raises ListenFailed. Applications are cleaned up in reverse order of their start.
    """
    async with contextlib.AsyncExitStack() as stack:
        addresses: list[tuple[str, int]] = []
        for listener in listeners:
            runner = web.AppRunner(
                listener.app,
                access_log=None,
                handle_signals=False,
                shutdown_timeout=drain_s,
                handler_cancellation=True,
            )
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            site = web.TCPSite(
                runner,
                listener.host,
                listener.port,
                ssl_context=listener.tls,
                reuse_port=listener.reuse_port or None,
                backlog=1024,
            )
            try:
                await site.start()
            except OSError as error:
                raise ListenFailed(listener.host, listener.port, error.strerror or str(error)) from error
            addresses.append(runner.addresses[0][:2])
        yield addresses


async def serve_until_signal(
    listeners: Sequence[Listener],
    readiness: Readiness,
    *,
    drain_s: float,
    on_started: Callable[[list[tuple[str, int]]], None] = lambda _: None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains for at most ``drain_s`` seconds."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with listening(listeners, drain_s=drain_s) as addresses:
        _log.info("started", addresses=[f"{host}:{port}" for host, port in addresses])
        on_started(addresses)
        await stop.wait()
        readiness.refuse("shutdown", "draining")
        _log.info("draining", deadline_s=drain_s)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    _log.info("stopped")
