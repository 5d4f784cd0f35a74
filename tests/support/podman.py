"""A podman of our own, with the overlay driver on a file system of its own, that pulls images in parts."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.components import program, require
from tests.support.mounts import tmpfs

_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{root}/graph"
runroot = "{root}/run"
[storage.options]
pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
"""


@dataclass(frozen=True, slots=True)
class Podman:
    """``home`` holds its settings."""

    home: Path

    def pull(self, image: str) -> str:
        """Without TLS; what it logged of that."""
        return self._podman("--log-level=debug", "pull", "--tls-verify=false", image)[1]

    def run(self, image: str, *command: str, user: str = "0") -> bytes:
        """The standard output of ``command`` in a fresh container of a pulled image."""
        limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
        fixed = ("--rm", "--pull=never", "--network=none", "--log-driver=none", *limits)
        return self._podman("run", *fixed, f"--user={user}", image, *command)[0]

    def _podman(self, *args: str) -> tuple[bytes, str]:
        """In mounts of its own, which end with it."""
        fixed = (
            "unshare",
            "--mount",
            program("podman"),
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
        )
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
        }
        done = subprocess.run((*fixed, *args), check=False, capture_output=True, timeout=90, env=env)
        log = done.stderr.decode(errors="replace")
        assert done.returncode == 0, log[-4000:]
        return done.stdout, log


@contextlib.contextmanager
def podman(home: Path) -> Iterator[Podman]:
    """Ended, nothing of it is left but its settings in ``home``; for root."""
    require("podman")
    # podman takes no run root of more than 50 characters
    with (
        tempfile.TemporaryDirectory(prefix="podman-") as short,
        tmpfs(Path(short) / "fs", size="256m") as root,
    ):
        home.mkdir()
        (home / "storage.conf").write_text(_STORAGE.format(root=root))
        yield Podman(home)
