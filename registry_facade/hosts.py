"""What container runtimes must be told to pull through the facade: containerd's hosts.toml.

The mirror comes first with ``pull`` and ``resolve``; ``server`` is the registry itself, where containerd
goes when the facade does not answer. What was there before is kept beside it and put back by `remove`.
"""

import json
from pathlib import Path

from ocikit.distribution.client import RegistryHost
from servicekit.atomic import atomic_write

_MARK = "# written by lapstrake facade hosts\n"
_BACKUP = "hosts.toml.before-lapstrake"


def hosts_toml(registry: str, facade: str) -> str:
    """The file for ``registry``; ``facade`` is an http or https URL. Pure."""
    origin = RegistryHost.of(registry).origin
    return (
        f"{_MARK}server = {json.dumps(origin)}\n\n"
        f'[host.{json.dumps(facade.rstrip("/"))}]\n  capabilities = ["pull", "resolve"]\n'
    )


def write_hosts(registry: str, facade: str, out: Path) -> Path:
    """Writes ``out/<registry>/hosts.toml``, keeping a foreign one for `remove_hosts`; blocking."""
    path = out / registry / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_MARK):
        path.rename(path.with_name(_BACKUP))
    atomic_write(path, hosts_toml(registry, facade).encode())
    return path


def remove_hosts(registry: str, out: Path) -> bool:
    """Undoes `write_hosts`; False when there was nothing of ours. Blocking."""
    path = out / registry / "hosts.toml"
    backup = path.with_name(_BACKUP)
    if not path.exists() or not path.read_text(encoding="utf-8").startswith(_MARK):
        return False
    path.unlink()
    if backup.exists():
        backup.rename(path)
    elif not any(path.parent.iterdir()):
        path.parent.rmdir()
    return True
