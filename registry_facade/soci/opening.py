"""The part of the composition root that builds what indexes layers."""

import contextlib
import importlib.util

from registry_facade.cache.claims import Claims
from registry_facade.settings import FacadeSettings
from registry_facade.soci.indexes import SociIndexes, ztoc_memory
from registry_facade.soci.metrics import SociMetrics
from registry_facade.sources.read_through import ReadThrough
from servicekit.metrics import Metrics
from servicekit.settings import SettingsInvalid

_NEEDED = ("flatbuffers", "indexed_gzip")


async def soci_indexes(
    settings: FacadeSettings, cache: ReadThrough, metrics: Metrics, stack: contextlib.AsyncExitStack
) -> SociIndexes | None:
    """None where they are not asked for; else they hear what comes into ``cache``. Raises SettingsInvalid."""
    if not settings.soci:
        return None
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise SettingsInvalid(["facade.soci: needs the extra: pip install 'lapstrake[soci]'"])
    memory = await stack.enter_async_context(ztoc_memory(settings.cache_dir / "soci.sqlite"))
    claims = Claims(settings.cache_dir / "soci", "")
    indexes = await stack.enter_async_context(SociIndexes(cache, memory, claims, SociMetrics.on(metrics)))
    cache.tell(indexes.stored)
    return indexes
