"""The part of the composition root that builds what indexes layers."""

import contextlib
import importlib.util

from registry_facade.cache.claims import Claims
from registry_facade.cache.storage import Storage
from registry_facade.settings import FacadeSettings
from registry_facade.soci.indexes import SociIndexes, ztoc_memory
from registry_facade.soci.metrics import SociMetrics
from servicekit.metrics import Metrics
from servicekit.settings import SettingsInvalid

_NEEDED = ("flatbuffers", "indexed_gzip")


async def soci_indexes(
    settings: FacadeSettings, storage: Storage, metrics: Metrics, stack: contextlib.AsyncExitStack
) -> SociIndexes | None:
    """None where they are not asked for. Raises SettingsInvalid."""
    if not settings.soci:
        return None
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise SettingsInvalid(["facade.soci: needs the extra: pip install 'lapstrake[soci]'"])
    memory = await stack.enter_async_context(ztoc_memory(settings.cache_dir / "soci.sqlite"))
    claims = Claims(settings.cache_dir / "soci", "")
    return await stack.enter_async_context(SociIndexes(storage, memory, claims, SociMetrics.on(metrics)))
