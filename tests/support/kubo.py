"""Kubo nodes on loopback in a private swarm: no bootstrap, no routing, nothing leaves the machine."""

import contextlib
import json
import secrets
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.components import program, require
from tests.support.links import Link
from tests.support.processes import Process, free_port, logs

_SETUP = Path(__file__).parents[2] / "k8s" / "base" / "kubo-setup.sh"


@dataclass(frozen=True, slots=True)
class KuboNode:
    """``process`` may be stopped and started; its addresses stay."""

    api_url: str
    gateway_url: str
    swarm_address: str
    peer_id: str
    root: Path
    process: Process

    def ipfs(self, *args: str) -> str:
        """Runs the ``ipfs`` command against this node; its output."""
        done = subprocess.run(
            [program("ipfs"), *args],
            env=_environment(self.root),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    def connect(self, other: "KuboNode") -> None:
        """Makes ``other`` a peer, so that blocks are exchanged; blocking."""
        self.ipfs("swarm", "connect", f"{other.swarm_address}/p2p/{other.peer_id}")


KuboFactory = Callable[[], AbstractContextManager[KuboNode]]


def new_swarm_key() -> str:
    return f"/key/swarm/psk/1.0.0/\n/base16/\n{secrets.token_hex(32)}\n"


def _environment(root: Path) -> dict[str, str]:
    return {"IPFS_PATH": str(root), "HOME": str(root), "LIBP2P_FORCE_PNET": "1", "IPFS_TELEMETRY": "off"}


@contextlib.contextmanager
def kubo_node(root: Path, *, swarm_key: str, link: Link | None = None) -> Iterator[KuboNode]:
    """Nodes with the same ``swarm_key`` can be connected with one another.

    With a ``link`` it stands at its far end.
    """
    require("kubo")
    root.mkdir(parents=True, exist_ok=True)
    ipfs = program("ipfs")
    subprocess.run(
        [ipfs, "init", "--profile=test"], env=_environment(root), check=True, capture_output=True, timeout=60
    )
    (root / "swarm.key").write_text(swarm_key)
    api, gateway, swarm = free_port(), free_port(), free_port()
    path = root / "config"
    settings = json.loads(path.read_text())
    peer_id = settings["Identity"]["PeerID"]
    host = link.address if link is not None else "127.0.0.1"
    path.write_text(json.dumps(_private(settings, host, api, gateway, swarm)))
    argv = [*(link.inside if link is not None else ()), ipfs, "daemon"]
    process = Process(
        "kubo", argv, log=root / "daemon.log", ready=logs("Daemon is ready"), env=_environment(root)
    )
    with process:
        yield KuboNode(
            api_url=f"http://{host}:{api}",
            gateway_url=f"http://{host}:{gateway}",
            swarm_address=f"/ip4/{host}/tcp/{swarm}",
            peer_id=peer_id,
            root=root,
            process=process,
        )


def _private(settings: dict[str, Any], host: str, api: int, gateway: int, swarm: int) -> dict[str, Any]:
    """As the manifests set up a node, at addresses of its own."""
    for line in _SETUP.read_text().splitlines():
        if line.startswith("ipfs config "):
            *flags, key, value = shlex.split(line)[2:]
            *path, last = key.split(".")
            inner = settings
            for name in path:
                inner = inner.setdefault(name, {})
            inner[last] = json.loads(value) if flags else value
    settings["Addresses"] |= {
        "API": f"/ip4/{host}/tcp/{api}",
        "Gateway": f"/ip4/{host}/tcp/{gateway}",
        "Swarm": [f"/ip4/{host}/tcp/{swarm}"],
    }
    return settings
