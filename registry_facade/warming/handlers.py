"""``POST /facade/v1/warm``: pre-pull images; the answer has a line of JSON for each as it ends.

The request's body is ``{"images": [REF, ...], "platform": "linux/amd64", "limit_rate": "20MiB/s"}``, the
last two optional; the platform is this machine's where none is named. A client that goes away ends it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ocikit.descriptor import Platform
from registry_facade.responses import json_error
from registry_facade.warming.schedule import this_platform
from registry_facade.warming.warmer import Warmer
from servicekit.units import parse_rate

PATH = "/facade/v1/warm"
_MAX_IMAGES = 1000
_KEYS = frozenset({"images", "platform", "limit_rate"})


@dataclass(frozen=True, slots=True)
class WarmRequest:
    images: tuple[str, ...]
    platform: Platform | None = None
    rate_bytes_s: float | None = None

    @classmethod
    def parse(cls, raw: Any) -> "WarmRequest":
        """Raises ValueError, whose text says what is wrong."""
        if not isinstance(raw, Mapping) or not set(raw) <= _KEYS:
            raise ValueError(f"the body is an object with {', '.join(sorted(_KEYS))}")
        images = raw.get("images")
        if not isinstance(images, list) or not all(isinstance(item, str) for item in images):
            raise ValueError("images is a list of references")
        if not 1 <= len(images) <= _MAX_IMAGES:
            raise ValueError(f"images has between 1 and {_MAX_IMAGES} references")
        platform, rate = raw.get("platform"), raw.get("limit_rate")
        rate_bytes_s = parse_rate(str(rate)) if rate is not None else None
        if rate_bytes_s is not None and rate_bytes_s <= 0:
            raise ValueError("limit_rate is more than nothing")
        return cls(
            tuple(images), Platform.parse(str(platform)) if platform is not None else None, rate_bytes_s
        )


@dataclass(frozen=True, slots=True)
class WarmHandlers:
    """For the administration address: whoever reaches it may fill the cache."""

    warmer: Warmer

    def routes(self) -> list[web.RouteDef]:
        return [web.post(PATH, self.warm)]

    async def warm(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = WarmRequest.parse(json.loads(await request.text()))
        except ValueError as error:
            return json_error(400, "UNSUPPORTED", str(error))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for warmed in self.warmer.warm(
            asked.images, asked.platform or this_platform(), asked.rate_bytes_s
        ):
            await response.write(json.dumps(warmed.dump()).encode() + b"\n")
        await response.write_eof()
        return response
