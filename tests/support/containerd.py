"""A containerd of our own: own root, state, socket and registry hosts directory."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.support.components import program, require
from tests.support.processes import Process

NAMESPACE = "lapstrake"
KUBERNETES = "k8s.io"
"""Where what is pulled as kubelet does it lies."""


@dataclass(frozen=True, slots=True)
class Containerd:
    """``certs_d`` is where ``<registry>/hosts.toml`` belongs; ``pull`` passes it to ctr."""

    socket: Path
    certs_d: Path
    root: Path
    process: Process
    namespace: str = NAMESPACE
    snapshotter: str = "native"

    def ctr(self, *args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs ``ctr``; raises AssertionError with its output when it fails and ``check`` is true."""
        argv = [program("ctr"), "--address", str(self.socket), "--namespace", self.namespace, *map(str, args)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=90)
        assert not check or done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stderr}"
        return done

    def pull(self, reference: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Pulls through ``certs_d`` and unpacks into the native snapshotter, which works everywhere."""
        fixed = ("--hosts-dir", self.certs_d, "--snapshotter", "native")
        return self.ctr("images", "pull", *fixed, *args, reference, check=check)

    def run(self, reference: str, name: str, *command: str) -> str:
        """The standard output of ``command`` in a fresh container of a pulled image."""
        fixed = ("--rm", "--net-host", "--snapshotter", self.snapshotter)
        return self.ctr("run", *fixed, reference, name, *command).stdout

    def pull_as_kubelet(self, reference: str) -> None:
        """By the CRI (runtime.v1.ImageService), which tells the snapshotter which image a layer is of.

        Raises grpc.RpcError.
        """
        name = reference.encode()
        image = b"\x0a" + bytes([len(name)]) + name  # ImageSpec.image = 1; PullImageRequest.image = 1
        with grpc.insecure_channel(f"unix://{self.socket}") as channel:
            pull = channel.unary_unary("/runtime.v1.ImageService/PullImage")
            pull(b"\x0a" + bytes([len(image)]) + image, timeout=90, wait_for_ready=True)


@contextlib.contextmanager
def containerd(remote_snapshotter: tuple[str, Path] | None = None) -> Iterator[Containerd]:
    """``remote_snapshotter``: the name and socket of one that `Containerd.pull_as_kubelet` pulls into."""
    require("containerd")
    # a socket's path has at most 107 bytes, less than a test's own temporary directory may take
    root = Path(tempfile.mkdtemp(prefix="lapstrake-ctrd-"))
    try:
        with _running(root, remote_snapshotter) as daemon:
            yield daemon
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _running(root: Path, remote_snapshotter: tuple[str, Path] | None) -> Iterator[Containerd]:
    certs_d, socket = root / "certs.d", root / "s.sock"
    certs_d.mkdir()
    settings = root / "config.toml"
    remote = "" if remote_snapshotter is None else _remote(*remote_snapshotter)
    settings.write_text(_settings(root, socket, certs_d) + remote)
    ctr = program("ctr")

    def answers(_process: Process) -> bool:
        argv = [ctr, "--address", str(socket), "--connect-timeout", "2s", "version"]
        return socket.exists() and subprocess.run(argv, check=False, capture_output=True).returncode == 0

    argv: list[str | Path] = [program("containerd"), "--config", settings]
    with Process("containerd", argv, log=root / "containerd.log", ready=answers) as process:
        daemon = Containerd(socket, certs_d, root, process)
        if remote_snapshotter is not None:
            daemon = dataclasses.replace(daemon, namespace=KUBERNETES, snapshotter=remote_snapshotter[0])
        try:
            yield daemon
        finally:
            for container in daemon.ctr("tasks", "ls", "--quiet", check=False).stdout.split():
                daemon.ctr("tasks", "kill", "--signal", "SIGKILL", container, check=False)
                daemon.ctr("tasks", "delete", "--force", container, check=False)


def _remote(name: str, socket: Path) -> str:
    return f"""
[proxy_plugins.{name}]
  type = "snapshot"
  address = {json.dumps(str(socket))}
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "{name}"
  disable_snapshot_annotations = false
"""


def _settings(root: Path, socket: Path, certs_d: Path) -> str:
    quoted = json.dumps  # a JSON string is a TOML string
    return f"""version = 2
root = {quoted(str(root / "root"))}
state = {quoted(str(root / "state"))}
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = {quoted(str(socket))}
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {quoted(str(certs_d))}
"""
