"""Small things that are asked for all the time, in memory: least recently used goes first. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class MemoryCache(Generic[K, V]):
    """Holds values up to a sum of sizes. One event loop only."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        self.drop(key)
        self._entries[key] = (value, size_bytes)
        self._held_bytes += size_bytes
        while self._held_bytes > self._max_bytes and self._entries:
            _, (_, dropped_bytes) = self._entries.popitem(last=False)
            self._held_bytes -= dropped_bytes

    def drop(self, key: K) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._held_bytes -= found[1]
