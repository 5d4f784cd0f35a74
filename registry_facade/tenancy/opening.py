"""The part of the composition root that builds the gate, if there is to be one."""

import asyncio
import contextlib

import structlog

from registry_facade.cache.catalog import Catalog
from registry_facade.errors import CacheUnusable
from registry_facade.metrics import FacadeMetrics
from registry_facade.pulls import Pulls
from registry_facade.settings import FacadeSettings
from registry_facade.sources.upstream import Upstreams
from registry_facade.specs.base import ImageSpecProvider
from registry_facade.tenancy.callers import Callers, read_pepper
from registry_facade.tenancy.gate import Gate
from registry_facade.tenancy.ledger import Ledger
from registry_facade.tenancy.tokens import TokenFile

_log = structlog.get_logger(__name__)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


async def gate_of(
    settings: FacadeSettings,
    pulls: Pulls,
    upstreams: Upstreams,
    catalog: Catalog,
    provider: ImageSpecProvider,
    metrics: FacadeMetrics,
    stack: contextlib.AsyncExitStack,
) -> Gate | None:
    """None where everybody may pull. Raises SettingsInvalid or CacheUnusable."""
    access = settings.access
    if access.mode == "anonymous":
        return None
    if settings.tls_certificate is None and settings.listen[0] not in _LOOPBACK:
        _log.warning("credentials_in_the_clear", listen=settings.listen[0], do="set tls_certificate")
    tokens = await asyncio.to_thread(TokenFile, access.tokens_file)
    pepper_path = settings.cache_dir / "callers.key"
    try:
        pepper = await asyncio.to_thread(read_pepper, pepper_path)
    except OSError as error:
        raise CacheUnusable(str(pepper_path), error.strerror or str(error)) from error
    ledger = await stack.enter_async_context(
        Ledger(settings.cache_dir / "grants.sqlite", ttl_s=access.ttl_s, grace_s=access.grace_s)
    )
    return Gate(
        Callers(tokens, pepper, delegated=access.mode == "delegated"),
        ledger,
        pulls,
        upstreams,
        catalog,
        provider,
        metrics,
        settings.stale_budget_s,
    )
