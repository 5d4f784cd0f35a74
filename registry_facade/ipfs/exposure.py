"""Whether a Kubo node is on the public network. Until it has said that it is not, it is told nothing."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from ocikit.errors import SourceUnavailable
from registry_facade.ipfs.node import Node

_LOOK_S = 60.0
_PUBLIC = ("auto", "bootstrap.libp2p.io", "QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ")

_log = structlog.get_logger(__name__)


def knows_the_public_network(config: Mapping[str, Any]) -> bool:
    """By a node's config: it is told, or may tell itself, of nodes to begin with that are everybody's.

    A node with a swarm key runs only without AutoConf, and has no use for public bootstrap nodes.
    """
    autoconf = config.get("AutoConf")
    if not isinstance(autoconf, Mapping) or autoconf.get("Enabled") is not False:
        return True
    bootstrap = config.get("Bootstrap") or []
    return any(part in str(address) for address in bootstrap for part in _PUBLIC)


class Exposure:
    """One event loop; `look` at the start, `keep_looking` in a task."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.is_known = False
        self.is_public = False

    async def look(self) -> None:
        """Never raises: a node that does not answer is what it was."""
        try:
            found = knows_the_public_network(await self._node.config())
        except SourceUnavailable:
            return
        if found and not self.is_public:
            _log.warning("ipfs_node_is_public", consequence="only layers of public_images are read or added")
        self.is_public, self.is_known = found, True

    async def keep_looking(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S if self.is_known else 1.0)
            await self.look()
