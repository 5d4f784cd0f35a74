"""Keeping a Kubo node within its budget: what was pulled least recently is unpinned and collected.

1. The pins are read; what this facade's cache knows of later uses counts, and is written into them.
2. `pins.plan_collection` says which go.
3. They are unmapped, then unpinned, so that nobody is sent to a CID that is going away; the node collects.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping

import structlog

from ocikit.digest import Digest
from ocikit.errors import OciError, SourceUnavailable
from registry_facade.digest_index.base import DigestIndex
from registry_facade.ipfs.metrics import IpfsMetrics
from registry_facade.ipfs.node import Node
from registry_facade.ipfs.pins import LOW, Pin, Plan, Usage, plan_collection

TOUCH_S = 3600.0
"""A later use is written into a pin when it is this much later: each costs the node a walk of the layer."""
EVERY_S = 60.0
"""Between two looks at the node when nothing is added."""
_SHARE_OF_NODE = 0.9
"""Of the node's StorageMax, where no budget of our own is set."""

Uses = Mapping[Digest, tuple[float, bool]]
"""Digest -> (last use in seconds since 1970, whether it is to be kept whatever comes)."""

_log = structlog.get_logger(__name__)


class Collector:
    """Serialises itself. ``uses`` tells what the cache knows; ``budget_bytes`` 0 goes by the node's own."""

    def __init__(
        self,
        node: Node,
        index: DigestIndex,
        uses: Callable[[], Awaitable[Uses]],
        metrics: IpfsMetrics,
        *,
        budget_bytes: int,
    ) -> None:
        self._node = node
        self._index = index
        self._uses = uses
        self._metrics = metrics
        self._budget_bytes = budget_bytes
        self._turn = asyncio.Lock()
        self._futile_below_bytes = 0.0

    async def plan(self, needed_bytes: int = 0) -> Plan:
        """What `run` would do; nothing is changed. Raises SourceUnavailable."""
        usage, uses = await self.usage(), await self._uses()
        pins = [
            dataclasses.replace(pin, used_s=max(pin.used_s, uses.get(pin.digest, (0.0, False))[0]))
            for pin in await self._node.pins()
        ]
        kept = {digest for digest, (_, pinned) in uses.items() if pinned}
        return plan_collection(pins, usage, needed_bytes=needed_bytes, kept=kept)

    async def touch(self) -> None:
        """Writes later uses into the pins, for all who share the node. Raises SourceUnavailable."""
        uses = await self._uses()
        for pin in await self._node.pins():
            used_s, _ = uses.get(pin.digest, (0.0, False))
            if used_s >= pin.used_s + TOUCH_S:
                await self._node.rename(dataclasses.replace(pin, used_s=used_s))

    async def usage(self) -> Usage:
        found = await self._node.repository()
        budget_bytes = self._budget_bytes or int(_SHARE_OF_NODE * found.max_bytes)
        self._metrics.occupied_bytes.set(found.occupied_bytes)
        self._metrics.budget_bytes.set(budget_bytes)
        return Usage(found.occupied_bytes, budget_bytes)

    async def make_room(self, needed_bytes: int) -> bool:
        """Whether that much may be added, after collecting where need be. Raises SourceUnavailable."""
        async with self._turn:
            usage = await self.usage()
            if usage.occupied_bytes + needed_bytes <= usage.budget_bytes and not usage.is_high:
                return True
            if needed_bytes > LOW * usage.budget_bytes:
                return False  # all others would have to go for it
            await self._carry_out(await self.plan(needed_bytes))
            usage = await self.usage()
            return usage.occupied_bytes + needed_bytes <= usage.budget_bytes

    async def run(self) -> Plan:
        """Collects if that is due; what was done. Raises SourceUnavailable."""
        async with self._turn:
            plan = await self.plan()
            await self._carry_out(plan)
            return plan

    async def _carry_out(self, plan: Plan) -> None:
        if not plan.is_needed or not (plan.victims or plan.usage.occupied_bytes > self._futile_below_bytes):
            return
        for pin in plan.victims:
            await self._forget(pin)
            await self._node.unpin(pin.cid)
            self._metrics.unpinned.inc()
            _log.info("unpinned", digest=pin.digest, cid=pin.cid, size_bytes=pin.size, used_s=pin.used_s)
        await self._node.collect()
        # what others have pinned stays: collecting again before something is added would free nothing
        self._futile_below_bytes = 1.02 * (await self.usage()).occupied_bytes
        _log.info("collected", unpinned=len(plan.victims), freed_bytes=plan.freed_bytes)

    async def _forget(self, pin: Pin) -> None:
        try:
            await self._index.forget(pin.digest, pin.cid)
        except SourceUnavailable as error:  # readers find out by asking
            _log.info("mapping_not_removed", digest=pin.digest, reason=str(error))

    async def keep_going(self) -> None:
        """Until cancelled."""
        while True:
            try:
                self._metrics.swarm_peers.set(await self._node.swarm_peers())
                await self.touch()
                await self.run()
            except OciError as error:
                _log.warning("collecting_failed", reason=str(error))
            await asyncio.sleep(EVERY_S)
