"""Debian's docker-registry (the Distribution project's), with its storage in a directory."""

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.support.components import program, require
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
def docker_registry(root: Path, *, proxy: str | None = None) -> Iterator[DockerRegistry]:
    """``proxy`` makes it a pull-through cache of that origin; it then refuses pushes."""
    require("docker-registry")
    root.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(root)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if proxy is not None:
        settings["proxy"] = {"remoteurl": proxy}
    path = root / "config.json"
    path.write_text(json.dumps(settings))  # YAML's flow style is JSON
    argv: list[str | Path] = [program("docker-registry"), "serve", path]
    with Process("docker-registry", argv, log=root / "registry.log", ready=accepts(port)) as process:
        yield DockerRegistry(f"127.0.0.1:{port}", root, process)
