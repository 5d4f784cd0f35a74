"""Who but this node's own clients may come to have a layer, or hear of it: nobody, the cluster, the world.

Asking for a CID or a digest tells whoever is asked that it exists. So it is decided before anybody is asked,
from the images a layer was seen in; one that may be shared makes the layer so, for then it is no secret.
"""

import enum
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ANNOTATION = "dev.lapstrake.share"
"""On a manifest or index: ``no`` marks an image that is not to be shared."""


class Audience(enum.IntEnum):
    """``CLUSTER`` are peers with the token, and IPFS nodes of a private swarm."""

    NOBODY = 0
    CLUSTER = 1
    WORLD = 2


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that a layer is in; ``is_marked`` by its annotation."""

    upstream: str
    repository: str
    is_marked: bool = False


@dataclass(frozen=True, slots=True)
class SharingRules:
    """Patterns of ``upstream/repository`` with ``*``; ``unshared`` is stronger."""

    unshared: Sequence[str] = ()
    public: Sequence[str] = ()

    def audience(self, seen: Iterable[Seen]) -> Audience:
        """Of a layer that is in these images; a layer of no known image is the cluster's."""
        return max(map(self._of_image, seen), default=Audience.CLUSTER)

    def _of_image(self, seen: Seen) -> Audience:
        name = f"{seen.upstream}/{seen.repository}"
        if seen.is_marked or _matches(name, self.unshared):
            return Audience.NOBODY
        return Audience.WORLD if _matches(name, self.public) else Audience.CLUSTER


def is_marked(annotations: Mapping[str, str]) -> bool:
    return annotations.get(ANNOTATION, "").lower() in {"no", "false", "never"}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
