"""Image specs from a gRPC service that speaks gitpod's ``registryfacade.SpecProvider``.

Needs grpcio, the optional extra ``lapstrake[grpc]``; imported only where ``spec_service.url`` begins with
``grpc``.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import grpc
import grpc.aio

from ocikit.errors import SourceUnavailable
from ocikit.reference import is_repository
from registry_facade.errors import ImageSpecNotFound
from registry_facade.image_spec import ImageSpec
from registry_facade.specs.gitpod import decode_response, encode_request
from registry_facade.specs.store import MAX_SPEC_BYTES

METHOD = "/registryfacade.SpecProvider/GetImageSpec"
_NAME = "image spec service"
_ABSENT = frozenset({grpc.StatusCode.NOT_FOUND})


@dataclass(frozen=True)
class GrpcSpecs:
    """Use as an async context manager: it closes its channel."""

    channel: Any
    timeout_s: float
    upstreams: Collection[str]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def spec(self, image_id: str) -> ImageSpec:
        """Raises ImageSpecNotFound, ImageSpecInvalid, or SourceUnavailable."""
        if not is_repository(image_id):
            raise ImageSpecNotFound(image_id)
        call = self.channel.unary_unary(METHOD)
        try:
            data = await call(encode_request(image_id), timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _ABSENT:
                raise ImageSpecNotFound(image_id) from error
            raise SourceUnavailable(_NAME, f"{error.code().name}: {(error.details() or '')[:200]}") from error
        return decode_response(data, image_id, self.upstreams)


async def grpc_specs(
    url: str,
    *,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    timeout_s: float,
    upstreams: Collection[str],
) -> GrpcSpecs:
    """``grpc://`` is plain, ``grpcs://`` TLS, with a certificate mTLS. Raises OSError for bad files."""
    parts = urlsplit(url)
    options = [("grpc.max_receive_message_length", MAX_SPEC_BYTES * 16)]  # content layers lie in it
    if parts.scheme == "grpc":
        channel = grpc.aio.insecure_channel(parts.netloc, options=options)
    else:
        trusted, chain, own = await asyncio.to_thread(
            lambda: [path.read_bytes() if path else None for path in (ca, certificate, key)]
        )
        credentials = grpc.ssl_channel_credentials(trusted, own, chain)
        channel = grpc.aio.secure_channel(parts.netloc, credentials, options=options)
    return GrpcSpecs(channel, timeout_s, upstreams)
