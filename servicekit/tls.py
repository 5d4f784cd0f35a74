"""TLS for a server, whose certificate is replaced in the files and taken up without a restart."""

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from servicekit.settings import SettingsInvalid

_log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 2.0


@dataclass
class ServerTls:
    """``client_ca`` makes clients prove themselves with a certificate that it signed; with
    ``client_optional`` they may come without one, but not with another.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_optional: bool = False
    context: ssl.SSLContext = field(init=False)
    """New handshakes get what was loaded last; connections that are open keep theirs."""
    _seen: tuple[tuple[int, int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Blocking. Raises SettingsInvalid for files that cannot be used."""
        try:
            self._seen = self._stamps()
            self.context = self._loaded()
        except (OSError, ssl.SSLError) as error:
            raise SettingsInvalid([f"{self.certificate}, {self.key}: {_reason(error)}"]) from error

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL if self.client_optional else ssl.CERT_REQUIRED
            context.load_verify_locations(self.client_ca)
        return context

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        stats = [path.stat() for path in (self.certificate, self.key)]
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def reload(self) -> bool:
        """Takes up changed files; False when they have not changed or cannot be used. Blocking."""
        try:
            stamps = self._stamps()
            if stamps == self._seen:
                return False
            self._loaded()  # certificate and key are two files: half a rotation must not break the context
            self.context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            _log.warning("certificate_not_reloaded", path=str(self.certificate), reason=_reason(error))
            return False
        self._seen = stamps
        _log.info("certificate_reloaded", path=str(self.certificate))
        return True

    async def watch(self) -> None:
        """Looks at the files every few seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await asyncio.to_thread(self.reload)


def _reason(error: OSError | ssl.SSLError) -> str:
    return error.strerror or str(error)
