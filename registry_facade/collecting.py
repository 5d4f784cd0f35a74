"""``facade gc``: what goes from the IPFS node to keep it within its budget, and why."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from registry_facade.cache.catalog import Catalog
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.opening import collector_of, opened_index
from registry_facade.ipfs.pins import HIGH, LOW, Plan
from registry_facade.settings import FacadeSettings
from servicekit.metrics import Metrics


async def collect(settings: FacadeSettings, *, dry_run: bool) -> Mapping[str, Any]:
    """Beside a running facade. Raises SourceUnavailable or CacheUnusable."""
    index = opened_index(settings)
    try:
        async with Catalog(settings.cache_dir / "catalog.sqlite") as catalog:
            collector = collector_of(settings, index, catalog, IpfsMetrics.on(Metrics()))
            plan = await collector.plan() if dry_run else await collector.run()
    finally:
        await index.aclose()
    return described(plan, dry_run=dry_run)


def described(plan: Plan, *, dry_run: bool) -> Mapping[str, Any]:
    """A plan as people and scripts read it."""
    return {
        "dry_run": dry_run,
        "occupied_bytes": plan.usage.occupied_bytes,
        "budget_bytes": plan.usage.budget_bytes,
        "is_needed": plan.is_needed,
        "why": _why(plan),
        "layers": [
            {
                "digest": pin.digest,
                "cid": pin.cid,
                "size": pin.size,
                "last_pulled": dt.datetime.fromtimestamp(pin.used_s, dt.UTC).isoformat(timespec="seconds"),
                "why": f"number {number} of those pulled longest ago",
            }
            for number, pin in enumerate(plan.victims, 1)
        ],
        "unpinned_bytes": plan.unpinned_bytes,
        "freed_bytes": plan.freed_bytes,
    }


def _why(plan: Plan) -> str:
    share = plan.usage.occupied_bytes / max(1, plan.usage.budget_bytes)
    if not plan.is_needed:
        return f"{share:.0%} of the budget is used; nothing goes below {HIGH:.0%}"
    return f"{share:.0%} of the budget is used, more than {HIGH:.0%}; down to {LOW:.0%}"
