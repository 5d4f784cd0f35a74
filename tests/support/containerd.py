"""A containerd of our own: own root, state, socket and registry hosts directory."""

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.components import program, require
from tests.support.processes import Process

NAMESPACE = "lapstrake"


@dataclass(frozen=True, slots=True)
class Containerd:
    """``certs_d`` is where ``<registry>/hosts.toml`` belongs; ``pull`` passes it to ctr."""

    socket: Path
    certs_d: Path
    root: Path
    process: Process

    def ctr(self, *args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs ``ctr``; raises AssertionError with its output when it fails and ``check`` is true."""
        argv = [program("ctr"), "--address", str(self.socket), "--namespace", NAMESPACE, *map(str, args)]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=90)
        assert not check or done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stderr}"
        return done

    def pull(self, reference: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Pulls through ``certs_d`` and unpacks into the native snapshotter, which works everywhere."""
        fixed = ("--hosts-dir", self.certs_d, "--snapshotter", "native")
        return self.ctr("images", "pull", *fixed, *args, reference, check=check)

    def run(self, reference: str, name: str, *command: str) -> str:
        """The standard output of ``command`` in a fresh container of a pulled image."""
        fixed = ("--rm", "--net-host", "--snapshotter", "native")
        return self.ctr("run", *fixed, reference, name, *command).stdout


@contextlib.contextmanager
def containerd() -> Iterator[Containerd]:
    require("containerd")
    # a socket's path has at most 107 bytes, less than a test's own temporary directory may take
    root = Path(tempfile.mkdtemp(prefix="lapstrake-ctrd-"))
    try:
        with _running(root) as daemon:
            yield daemon
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _running(root: Path) -> Iterator[Containerd]:
    certs_d, socket = root / "certs.d", root / "s.sock"
    certs_d.mkdir()
    settings = root / "config.toml"
    settings.write_text(_settings(root, socket, certs_d))
    ctr = program("ctr")

    def answers(_process: Process) -> bool:
        argv = [ctr, "--address", str(socket), "--connect-timeout", "2s", "version"]
        return socket.exists() and subprocess.run(argv, check=False, capture_output=True).returncode == 0

    argv: list[str | Path] = [program("containerd"), "--config", settings]
    with Process("containerd", argv, log=root / "containerd.log", ready=answers) as process:
        daemon = Containerd(socket, certs_d, root, process)
        try:
            yield daemon
        finally:
            for container in daemon.ctr("tasks", "ls", "--quiet", check=False).stdout.split():
                daemon.ctr("tasks", "kill", "--signal", "SIGKILL", container, check=False)
                daemon.ctr("tasks", "delete", "--force", container, check=False)


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
