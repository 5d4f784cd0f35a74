"""A Docker daemon that pulls from its Hub through the facade, as ``daemon.json`` tells it to."""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocikit.layout import LayoutRepository
from registry_facade.hosts import Mirror, write
from tests.integration.test_facade_clients import busybox_layer, received
from tests.support.components import program
from tests.support.facade import facade_process
from tests.support.images import push_image
from tests.support.processes import Process


@pytest.fixture
def root() -> Iterator[Path]:
    """A socket's path has at most 107 bytes, less than a test's own temporary directory may take."""
    path = Path(tempfile.mkdtemp(prefix="lapstrake-dockerd-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def dockerd(root: Path, settings: Path) -> Process:
    """With nothing of the machine's own: no bridge, no rules of a firewall, layers as plain directories."""
    address = f"unix://{root}/d.sock"
    argv: list[str | Path] = [
        program("dockerd"),
        *("--config-file", settings, "--host", address, "--pidfile", root / "d.pid"),
        *("--data-root", root / "data", "--exec-root", root / "exec", "--storage-driver", "vfs"),
        *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
    ]

    def answers(_: Process) -> bool:
        return (root / "d.sock").exists() and docker(root, "version", check=False).returncode == 0

    return Process("dockerd", argv, log=root / "dockerd.log", ready=answers)


def docker(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = [program("docker"), "--host", f"unix://{root}/d.sock", *arguments]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=90)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.component("docker", "busybox")
async def test_docker_pulls_images_of_its_hub_through_the_facade_and_runs_them(
    root: Path, tmp_path: Path
) -> None:
    await push_image(LayoutRepository(tmp_path / "hub", create=True), "v1", [busybox_layer()])

    def pull_and_read() -> None:
        upstream = f"docker.io=oci:{tmp_path}/hub"
        with facade_process(tmp_path, "--upstream", upstream) as facade:
            settings = write("docker", Mirror("docker.io", facade.url), root / "daemon.json")
            with dockerd(root, settings):
                docker(root, "pull", "team/app:v1")
                assert received(facade.url) > 0
                shown = docker(root, "run", "--rm", "--network=none", "team/app:v1", "cat", "/etc/greeting")
                assert shown.stdout == "hello from the image\n"

    await asyncio.to_thread(pull_and_read)
