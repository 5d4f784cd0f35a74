"""What the cache knows of one digest, for people who wonder."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocikit.digest import Digest
from registry_facade.cache.catalog import Catalog
from servicekit.units import format_size


async def explain(cache_dir: Path, digest: Digest) -> Mapping[str, Any]:
    """As `explain_with`, beside a running facade. Raises CacheUnusable."""
    async with Catalog(cache_dir / "catalog.sqlite") as catalog:
        return await explain_with(catalog, digest)


async def explain_with(catalog: Catalog, digest: Digest) -> Mapping[str, Any]:
    """Whether it is here, where it came from, when it was verified and used, who refers to it, why it went.

    Raises CacheUnusable.
    """
    known, evicted = await catalog.known(digest), await catalog.evicted(digest)
    size, places = await catalog.places(digest)
    parents = await catalog.parents(digest)
    media_type = await catalog.media_type(digest)
    tags = await catalog.tags_of(digest)
    found = dataclasses.asdict(known) if known is not None else {}
    found.pop("stamp", None)
    if known is not None:
        found["pinned"] = bool(known.pinned)  # a number in the database
    return {
        "digest": digest,
        "state": "absent",
        "size": size,
        **found,
        "media_type": media_type,
        "seen_in": [f"{upstream}/{repository}" for upstream, repository in places],
        "referred_to_by": [f"{upstream}/{repository}@{parent}" for parent, upstream, repository in parents],
        "tags": tags,
        "evicted_s": evicted[0] if evicted is not None else None,
        "evicted_because": evicted[1] if evicted is not None else None,
    }


def shown(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """For people: times as dates, sizes with units. Pure."""
    made: dict[str, Any] = {}
    for name, value in found.items():
        if name.endswith("_s"):
            moment = dt.datetime.fromtimestamp(value, dt.UTC) if value else None
            made[name.removesuffix("_s")] = f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else None
        else:
            made[name] = format_size(value) if name == "size" and value is not None else value
    return made


async def set_pin(cache_dir: Path, digest: Digest, *, pinned: bool) -> bool:
    """Keeps a blob from being evicted, or no longer; False when it is not here. Raises CacheUnusable."""
    async with Catalog(cache_dir / "catalog.sqlite") as catalog:
        return await catalog.pin(digest, pinned=pinned)
