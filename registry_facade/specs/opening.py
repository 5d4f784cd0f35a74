"""The part of the composition root that builds the providers of image specs, as configured."""

import asyncio
import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from ocikit.distribution.transport import Deadlines, Transport
from registry_facade.settings import FacadeSettings, SpecServiceSettings
from registry_facade.specs.base import FirstSpecs, ImageSpecProvider
from registry_facade.specs.directory import DirectorySpecs
from registry_facade.specs.service import ServiceSpecs, client_tls
from registry_facade.specs.store import StoredSpecs
from servicekit.settings import SettingsInvalid

if TYPE_CHECKING:
    from registry_facade.specs.grpc_service import GrpcSpecs


async def stored_specs(
    settings: FacadeSettings, upstreams: Collection[str], stack: contextlib.AsyncExitStack
) -> StoredSpecs | None:
    """Raises CacheUnusable."""
    if settings.spec_store is None:
        return None
    return await stack.enter_async_context(StoredSpecs(settings.spec_store, upstreams))


async def spec_provider(
    settings: FacadeSettings,
    upstreams: Collection[str],
    stored: StoredSpecs | None,
    stack: contextlib.AsyncExitStack,
) -> ImageSpecProvider:
    """What was put here comes first, then the directory, then the service. Raises SettingsInvalid."""
    providers: list[ImageSpecProvider] = [stored] if stored is not None else []
    if settings.image_specs is not None:
        providers.append(DirectorySpecs(settings.image_specs, upstreams))
    service = settings.spec_service
    if service.url.startswith(("grpc://", "grpcs://")):
        providers.append(await stack.enter_async_context(await _grpc(service, upstreams)))
    elif service.url:
        tls = await asyncio.to_thread(client_tls, service.ca, service.certificate, service.key)
        deadlines = Deadlines(
            connect_s=service.timeout_s, first_byte_s=service.timeout_s, idle_s=service.timeout_s
        )
        transport = await stack.enter_async_context(Transport(deadlines, tls=tls))
        providers.append(ServiceSpecs(service.url, transport, service.token_file, upstreams))
    return FirstSpecs(providers)


async def _grpc(service: SpecServiceSettings, upstreams: Collection[str]) -> "GrpcSpecs":
    try:
        from registry_facade.specs.grpc_service import grpc_specs  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        problem = "facade.spec_service.url: gRPC needs the extra: pip install 'lapstrake[grpc]'"
        raise SettingsInvalid([problem]) from error
    try:
        return await grpc_specs(
            service.url,
            ca=service.ca,
            certificate=service.certificate,
            key=service.key,
            timeout_s=service.timeout_s,
            upstreams=upstreams,
        )
    except OSError as error:
        raise SettingsInvalid([f"facade.spec_service: {error.filename}: {error.strerror}"]) from error
