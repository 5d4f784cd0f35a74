"""Asking a running facade to pre-pull."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ocikit.distribution.transport import Deadlines, Transport
from ocikit.errors import Denied, RegistryError
from registry_facade.warming.handlers import PATH
from servicekit.secrets import Secret

_DEADLINES = Deadlines(connect_s=5.0, first_byte_s=30.0, idle_s=24 * 3600.0)
"""A facade that gives way to others may be silent for long."""


async def warm(
    url: str, images: Sequence[str], platform: str | None, limit_rate: str | None, token: Secret
) -> AsyncIterator[Mapping[str, Any]]:
    """One result for each image; see `warmer.Warmed`.

    ``token`` is the facade's admin_token. Raises TransportError, Denied or RegistryError.
    """
    asked = {"images": list(images), "platform": platform, "limit_rate": limit_rate}
    body = json.dumps({key: value for key, value in asked.items() if value is not None}).encode()
    address = url.rstrip("/") + PATH
    shown = {"Authorization": f"Bearer {token.reveal()}"} if token else {}
    async with (
        Transport(_DEADLINES) as transport,
        transport.send("POST", address, headers=shown, data=body) as response,
    ):
        if response.status == 401:
            raise Denied(url, "administration", "it takes facade.admin_token")
        if response.status != 200:
            raise RegistryError("POST", address, response.status, await response.error_text())
        held = b""
        async for data in response.pieces():
            *lines, held = (held + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
