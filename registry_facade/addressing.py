"""What a request path means: parsed once, into values that cannot be half right.

``/v2/<name>/(manifests|blobs|referrers)/<reference>`` and ``/v2/<name>/tags/list``; which upstream is meant
is said by ``?ns=`` (containerd), by the first segment of the name (podman, skopeo, CRI-O mirrors), or by
there being a default (classic Docker mirrors). In a name the port of an upstream stands behind ``_``, since
a reference has no ``:`` there; clients that allow it may write ``:``. ``workspaces/<image-id>`` names a
composed image.
"""

import dataclasses
import functools
from typing import Literal

from ocikit.digest import Digest
from ocikit.errors import InvalidReference, ManifestNotFound
from ocikit.reference import is_repository, is_tag
from registry_facade.errors import UpstreamUnknown

Kind = Literal["manifests", "blobs", "tags", "referrers"]
COMPOSED = "workspaces"
_HUB_ALIASES = {"registry-1.docker.io": "docker.io", "index.docker.io": "docker.io"}
_MAX_PATH = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One request path; ``reference`` is empty for tag lists and a digest for blobs and referrers."""

    kind: Kind
    name: str
    reference: str | Digest


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A repository of an upstream; ``namespace`` is what ``?ns=`` said and the answer repeats."""

    upstream: str
    repository: str
    namespace: str = ""

    @property
    def is_composed(self) -> bool:
        return self.upstream == COMPOSED


@functools.lru_cache(maxsize=8192)
def parse_endpoint(path: str) -> Endpoint | None:
    """None for a path that is no pull of this API. Raises ManifestNotFound or InvalidDigest."""
    if not path.startswith("/v2/") or len(path) > _MAX_PATH:
        return None
    head, _, reference = path.removeprefix("/v2/").rpartition("/")
    name, _, kind = head.rpartition("/")
    if not name or not reference:
        return None
    match kind:
        case "tags" if reference == "list":
            return Endpoint("tags", name, "")
        case "manifests":
            return Endpoint("manifests", name, _tag_or_digest(name, reference))
        case "blobs" | "referrers":
            return Endpoint(kind, name, Digest.parse(reference))
        case _:
            return None


def _tag_or_digest(name: str, reference: str) -> str | Digest:
    """A malformed digest is a mistake (400); a tag that cannot exist is just not there (404)."""
    if ":" in reference:
        return Digest.parse(reference)
    if not is_tag(reference):
        raise ManifestNotFound(f"{name}:{reference[:200]}")
    return reference


def as_path_segment(registry: str) -> str:
    """``host:port`` as the first segment of a name."""
    return registry.replace(":", "_")


def as_registry(segment: str) -> str:
    """The reverse of `as_path_segment`: no host has an underscore."""
    host, underscore, port = segment.rpartition("_")
    return f"{host}:{port}" if underscore and port.isdigit() else segment


@functools.lru_cache(maxsize=8192)
def choose_target(name: str, namespace: str, upstreams: frozenset[str], default: str) -> Target:
    """The repository that is meant. Raises UpstreamUnknown or InvalidReference."""
    namespace = _HUB_ALIASES.get(namespace, namespace)
    first, _, rest = name.partition("/")
    first = first if first in upstreams else as_registry(first)
    if namespace in upstreams:
        target = Target(namespace, name, namespace)
    elif first == COMPOSED and rest:
        target = Target(COMPOSED, rest, namespace)
    elif namespace:
        raise UpstreamUnknown(namespace, sorted(upstreams))
    elif first in upstreams and rest:
        target = Target(first, rest)
    elif default:
        target = Target(default, name)
    else:
        raise UpstreamUnknown(name, sorted(upstreams))
    if not is_repository(target.repository):
        raise InvalidReference(target.repository, "a repository has lower-case words joined by / . _ -")
    return target
