"""One event per pull: what one client got of one image, and where it came from.

A pull is many requests, and over when none has come for `IDLE_S`. With several workers each tells its share.
"""

import asyncio
import datetime as dt
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ocikit.digest import Digest
from registry_facade.addressing import Target
from registry_facade.manifests import FoundManifest

IDLE_S = 5.0
_LOOK_EVERY_S = 1.0
_MAX_OPEN = 10_000
_MAX_REFERENCES = 8
Key = tuple[str, str, Target]


@dataclass(slots=True)
class Pull:
    """What has happened so far. ``waited_s`` is the time until each blob's first byte, summed up."""

    started_s: float
    ended_s: float
    running: int = 0
    requests: int = 0
    references: dict[str, None] = field(default_factory=dict)
    stale: bool = False
    failed: int = 0
    waited_s: float = 0.0
    sent_bytes: Counter[str] = field(default_factory=Counter)
    blobs: set[Digest] = field(default_factory=set)
    downloaded: set[Digest] = field(default_factory=set)

    def end(self, *, failed: bool) -> None:
        """Of one request."""
        self.running -= 1
        self.failed += failed
        self.ended_s = time.time()

    def found(self, reference: str | Digest, found: FoundManifest) -> None:
        if len(self.references) < _MAX_REFERENCES:
            self.references[str(reference)] = None
        self.stale = self.stale or found.stale

    def sent(self, digest: Digest, served_from: str, size_bytes: int, waited_s: float) -> None:
        self.blobs.add(digest)
        self.sent_bytes[served_from] += size_bytes
        self.waited_s += waited_s
        if served_from == "download":
            self.downloaded.add(digest)


class PullEvents:
    """One event loop only. ``received_from`` tells the bytes of a blob that came in, by source."""

    def __init__(
        self, write: Callable[[str], None], received_from: Callable[[Digest], Mapping[str, int]]
    ) -> None:
        self._write = write
        self._received_from = received_from
        self._open: dict[Key, Pull] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, peer: str, caller: str, target: Target) -> Pull:
        """For one request; to be followed by `Pull.end`."""
        key = (peer, caller, target)
        pull = self._open.get(key)
        if pull is None:
            now_s = time.time()
            pull = self._open[key] = Pull(now_s, now_s)
            if len(self._open) > _MAX_OPEN:
                self._end(next(iter(self._open)))
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)
        pull.running += 1
        pull.requests += 1
        return pull

    def close(self) -> None:
        """Tells of every pull that has not ended yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for key in list(self._open):
            self._end(key)

    def _look(self) -> None:
        before_s = time.time() - IDLE_S
        for key in [key for key, pull in self._open.items() if not pull.running and pull.ended_s < before_s]:
            self._end(key)
        again = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look) if self._open else None
        self._timer = again

    def _end(self, key: Key) -> None:
        self._write(json.dumps(self._event(key, self._open.pop(key))))

    def _event(self, key: Key, pull: Pull) -> dict[str, object]:
        peer, caller, target = key
        received: Counter[str] = Counter()
        for digest in pull.downloaded:
            received.update(self._received_from(digest))
        return {
            "event": "pull",
            "level": "info",
            "timestamp": dt.datetime.now(dt.UTC).isoformat(),
            "peer": peer,
            "caller": caller,
            "image": f"{target.upstream}/{target.repository}",
            "references": list(pull.references),
            "requests": pull.requests,
            "failed": pull.failed,
            "blobs": len(pull.blobs),
            "sent_bytes": dict(pull.sent_bytes),
            "received_bytes": dict(received),
            "waited_s": round(pull.waited_s, 6),
            "duration_s": round(pull.ended_s - pull.started_s, 6),
            "stale": pull.stale,
        }
