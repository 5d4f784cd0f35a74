"""Settings that are taken over while the service runs, on a signal."""

import asyncio
import dataclasses
import signal
from collections.abc import Awaitable, Callable

import structlog

from content.settings import ContentSettings
from servicekit.settings import SettingsInvalid

_LIVE = frozenset({
    "tokens_file", "admin_token", "certificates_file",
    "send_rate_bytes_s", "receive_rate_bytes_s", "read_rate_bytes_s", "write_rate_bytes_s",
    "job", "periodic", "pressure", "source_protocols", "source_hosts",
})  # fmt: skip
"""Of ``job`` the rates only, of ``pressure`` not the files; the rest of them is for the start."""
_log = structlog.get_logger(__name__)


class Reloading:
    """``load`` is blocking; what it or ``take_over`` refuses changes nothing."""

    def __init__(
        self,
        settings: ContentSettings,
        load: Callable[[], ContentSettings],
        take_over: Callable[[ContentSettings], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._load = load
        self._take_over = take_over

    async def on_signal(self, number: signal.Signals) -> None:
        """Reloads each time that ``number`` comes, until it is cancelled."""
        came, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_signal_handler(number, came.set)
        try:
            while True:
                await came.wait()
                came.clear()
                await self.reload()
        finally:
            loop.remove_signal_handler(number)

    async def reload(self) -> None:
        """Logs what it did, and which changes wait for a restart."""
        try:
            settings = await asyncio.to_thread(self._load)
            await self._take_over(settings)
        except SettingsInvalid as error:
            _log.error("settings_not_reloaded", problems=error.problems)
            return
        waiting = [
            field.name
            for field in dataclasses.fields(settings)
            if field.name not in _LIVE
            and getattr(settings, field.name) != getattr(self._settings, field.name)
        ]
        _log.info("settings_reloaded", need_a_restart=waiting)
