"""What container runtimes must be told to pull through the facade, written for each, and taken back.

* containerd: ``<certs.d>/<registry>/hosts.toml``; the facade first, with ``pull`` and ``resolve``, behind it
  ``server``, the registry itself.
* podman, skopeo, buildah, CRI-O: ``<registries.conf.d>/lapstrake-<registry>.conf``; the facade as mirror,
  addressed by path prefix.
* Docker: ``registry-mirrors`` in ``daemon.json``, among what stands there already; Docker Hub only.

A foreign file in the same place is kept beside it and put back by `undo`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ocikit.distribution.client import RegistryHost
from ocikit.errors import InvalidInput
from registry_facade.addressing import as_path_segment
from servicekit.atomic import atomic_write

Client = Literal["containerd", "podman", "docker"]
CLIENTS: Mapping[str, Client] = {
    "containerd": "containerd",
    "podman": "podman",
    "skopeo": "podman",
    "cri-o": "podman",
    "docker": "docker",
}
"""Which of the three files a program reads."""
DEFAULT_PLACES: Mapping[Client, Path] = {
    "containerd": Path("/etc/containerd/certs.d"),
    "podman": Path("/etc/containers/registries.conf.d"),
    "docker": Path("/etc/docker/daemon.json"),
}
_MARK = "# written by lapstrake facade hosts\n"
_ASIDE = ".before-lapstrake"
_HUB = "docker.io"


class HostsInvalid(InvalidInput):
    """What is there, or asked for, cannot be brought together."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """``registry`` as references write it; ``facade`` an http or https URL; ``ca`` what signed its key."""

    registry: str
    facade: str
    ca: Path | None = None

    @property
    def address(self) -> str:
        return urlsplit(self.facade).netloc

    @property
    def is_plain(self) -> bool:
        return urlsplit(self.facade).scheme == "http"


# ----- the files' text: pure -----


def hosts_toml(mirror: Mirror) -> str:
    """As containerd's docs/hosts.md has it."""
    lines = [
        f"server = {json.dumps(RegistryHost.of(mirror.registry).origin)}",
        "",
        f"[host.{json.dumps(mirror.facade.rstrip('/'))}]",
        '  capabilities = ["pull", "resolve"]',
    ]
    if mirror.ca is not None:
        lines.append(f"  ca = {json.dumps(str(mirror.ca))}")
    return _MARK + "\n".join(lines) + "\n"


def registries_conf(mirror: Mirror) -> str:
    """containers-registries.conf(5), version 2: the first mirror that answers is used, then the registry."""
    registry_is_plain = RegistryHost.of(mirror.registry).origin.startswith("http://")
    lines = [
        "[[registry]]",
        f"prefix = {json.dumps(mirror.registry)}",
        f"location = {json.dumps(mirror.registry)}",
        *(["insecure = true"] if registry_is_plain else []),
        "",
        "[[registry.mirror]]",
        f"location = {json.dumps(f'{mirror.address}/{as_path_segment(mirror.registry)}')}",
        *(["insecure = true"] if mirror.is_plain else []),
    ]
    return _MARK + "\n".join(lines) + "\n"


def daemon_json(current: Mapping[str, Any], mirror: Mirror) -> dict[str, Any]:
    """``current`` with the facade as the first mirror; other keys and mirrors stay as they are."""
    changed = dict(current)
    for key, value in _daemon_entries(mirror).items():
        changed[key] = [value, *(item for item in _listed(current, key) if item != value)]
    return changed


def without_daemon_entries(current: Mapping[str, Any], added: Mapping[str, str]) -> dict[str, Any]:
    """``current`` without what was ``added``; a list that is then empty goes too."""
    changed = dict(current)
    for key, value in added.items():
        changed[key] = [item for item in _listed(current, key) if item != value]
        if not changed[key]:
            del changed[key]
    return changed


def _daemon_entries(mirror: Mirror) -> Mapping[str, str]:
    if mirror.registry != _HUB:
        raise HostsInvalid(f"Docker mirrors {_HUB} only, not {mirror.registry}")
    entries = {"registry-mirrors": f"{mirror.facade.rstrip('/')}/"}
    return {**entries, "insecure-registries": mirror.address} if mirror.is_plain else entries


def _listed(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key, [])
    if not isinstance(found, list):
        raise HostsInvalid(f"daemon.json: {key} must be a list")
    return found


# ----- the files: blocking -----


def write(client: Client, mirror: Mirror, place: Path) -> Path:
    """The file that was written; again is the same. Raises HostsInvalid or OSError."""
    if client == "docker":
        return _write_daemon(mirror, place)
    path = _path(client, mirror.registry, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not _is_ours(path):
        path.rename(_aside(path))
    text = hosts_toml(mirror) if client == "containerd" else registries_conf(mirror)
    atomic_write(path, text.encode())
    return path


def undo(client: Client, registry: str, place: Path) -> bool:
    """Takes back what `write` did; False when there was nothing of ours. Raises HostsInvalid or OSError."""
    if client == "docker":
        return _undo_daemon(place)
    path = _path(client, registry, place)
    if not path.exists() or not _is_ours(path):
        return False
    path.unlink()
    if _aside(path).exists():
        _aside(path).rename(path)
    elif client == "containerd" and not any(path.parent.iterdir()):
        path.parent.rmdir()
    return True


def _path(client: Client, registry: str, place: Path) -> Path:
    if client == "containerd":
        return place / registry / "hosts.toml"
    return place / f"lapstrake-{as_path_segment(registry)}.conf"


def _is_ours(path: Path) -> bool:
    return path.read_bytes().startswith(_MARK.encode())


def _aside(path: Path) -> Path:
    return path.with_name(path.name + _ASIDE)


def _write_daemon(mirror: Mirror, path: Path) -> Path:
    """JSON has no comments, and dockerd refuses keys it does not know: the note of what is ours is a file
    beside it, with the bytes that were there before.
    """
    _undo_daemon(path)
    before = path.read_bytes() if path.exists() else None
    current = _parsed(path, before) if before is not None else {}
    written = _dumped(daemon_json(current, mirror))
    entries = _daemon_entries(mirror)
    note = {
        "before": before.decode() if before is not None else None,
        "written": written.decode(),
        "added": {key: value for key, value in entries.items() if value not in _listed(current, key)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(_aside(path), _dumped(note))
    atomic_write(path, written)
    return path


def _undo_daemon(path: Path) -> bool:
    """Byte for byte as before; if somebody changed the file since, only our entries are taken out."""
    if not _aside(path).exists():
        return False
    note = _parsed(_aside(path), _aside(path).read_bytes())
    current = path.read_bytes() if path.exists() else None
    if current is not None and current.decode(errors="replace") != note["written"]:
        atomic_write(path, _dumped(without_daemon_entries(_parsed(path, current), note["added"])))
    elif current is not None and note["before"] is not None:
        atomic_write(path, note["before"].encode())
    elif current is not None:
        path.unlink()
    _aside(path).unlink()
    return True


def _parsed(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise HostsInvalid(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise HostsInvalid(f"{path}: must be an object")
    return document


def _dumped(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
