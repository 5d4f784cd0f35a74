"""Debian's docker-registry (the Distribution project's), with its storage in a directory."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.support.components import program, require
from tests.support.links import Link
from tests.support.processes import Process, accepts, free_port


@dataclass(frozen=True, slots=True)
class DockerRegistry:
    """``root`` holds its blobs and links: ``root/docker/registry/v2/blobs/sha256/..``."""

    address: str
    root: Path
    process: Process

    @property
    def origin(self) -> str:
        return f"http://{self.address}"

    def blob_path(self, digest: str) -> Path:
        """The file that holds a blob's bytes."""
        algorithm, _, encoded = digest.partition(":")
        return self.root / "docker/registry/v2/blobs" / algorithm / encoded[:2] / encoded / "data"


DockerRegistryFactory = Callable[..., AbstractContextManager[DockerRegistry]]


@contextlib.contextmanager
def docker_registry(
    root: Path, *, proxy: str | None = None, htpasswd: str | None = None, link: Link | None = None
) -> Iterator[DockerRegistry]:
    """``proxy`` makes it a pull-through cache of that origin; it then refuses pushes.

    ``htpasswd`` lines (bcrypt) say who may do anything at all there. With a ``link`` it stands at its far
    end. Several may share a ``root``.
    """
    require("docker-registry")
    root.mkdir(parents=True, exist_ok=True)
    port, host = free_port(), link.address if link is not None else "127.0.0.1"
    settings = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(root)}, "delete": {"enabled": True}},
        "http": {"addr": f"{host}:{port}"},
    }
    if proxy is not None:
        settings["proxy"] = {"remoteurl": proxy}
    if htpasswd is not None:
        (root / "htpasswd").write_text(htpasswd)
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(root / "htpasswd")}}
    path = root / f"config-{port}.json"
    path.write_text(json.dumps(settings))  # YAML's flow style is JSON
    argv: list[str | Path] = [program("docker-registry"), "serve", path]
    if link is not None:
        argv = [*link.inside, *argv]
    log = root / f"registry-{port}.log"
    with Process("docker-registry", argv, log=log, ready=accepts(port, host)) as process:
        yield DockerRegistry(f"{host}:{port}", root, process)
