"""The facade against nginx (the same file by sendfile) and docker-registry, on loopback, in one run.

Manifests and small blobs: 16 connections, one worker of ours against all cores for docker-registry, requests
per second. Two workers share the machine's cores with the generator: on two cores the best there can be is
two, less what wrk takes.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Transport
from ocikit.layout import LayoutRepository
from ocikit.repository import Repository
from tests.bench.harness import Bench, Sides
from tests.bench.load import megabytes_per_s, requests_per_s
from tests.support.components import program
from tests.support.docker_registry import docker_registry
from tests.support.facade import facade_process
from tests.support.images import MadeLayer, made_layer, push_image
from tests.support.processes import Process, accepts, free_port

WARM_BYTES = 512 << 20


def benches() -> list[Bench]:
    registry, by_digest = ("docker-registry",), _by("manifests/{manifest}")
    rates = ("docker-registry", "wrk")
    return [
        Bench("warm 512 MiB blob", "nginx", "MB/s", ">= 0.9", _warm_nginx, ("nginx",), rounds=25),
        Bench("warm 512 MiB blob", "docker-registry", "MB/s", ">= 1.0", _warm_registry, registry, rounds=25),
        Bench(
            "warm 512 MiB blob: nginx's sendfile alone",
            "docker-registry",
            "MB/s",
            "",
            _nginx_registry,
            ("nginx", *registry),
            rounds=25,
        ),
        Bench("manifest by tag", "docker-registry", "req/s", ">= 8", _by("manifests/v1"), rates),
        Bench("manifest by digest", "docker-registry", "req/s", ">= 8", by_digest, rates),
        Bench("4 KiB blob", "docker-registry", "req/s", ">= 6", _by("blobs/{blob}"), rates),
        Bench("composed manifest", "docker-registry", "req/s", ">= 8", _composed, rates),
        Bench("manifest by tag, two workers", "one worker", "req/s", "", _workers, ("wrk", "taskset")),
    ]


# ----- peers -----


async def _push(origin: str, layers: list[MadeLayer]) -> None:
    address = origin.removeprefix("http://")
    async with Transport() as transport:
        client = RegistryClient(RegistryHost(address, origin), transport)
        await push_image(RegistryRepository(client, "x"), "v1", layers)


async def _push_layout(repository: Repository, layers: list[MadeLayer]) -> str:
    return (await push_image(repository, "v1", layers)).digest


@contextlib.contextmanager
def _nginx(directory: Path, root: Path) -> Iterator[str]:
    port = free_port()
    settings = directory / "nginx.conf"
    settings.write_text(
        f"daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; sendfile on; client_body_temp_path {directory}/body;\n"
        f"proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u;\n"
        f"scgi_temp_path {directory}/s; server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    if os.geteuid() == 0:
        settings.write_text(f"user root;\n{settings.read_text()}")
    argv: list[str | Path] = [program("nginx"), "-c", settings]
    with Process("nginx", argv, log=directory / "nginx.log", ready=accepts(port)):
        yield f"127.0.0.1:{port}"


def _large_layout(directory: Path) -> tuple[Path, str]:
    """A layout with one blob of random bytes, written without holding it."""
    path, hasher = directory / "large", hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(WARM_BYTES >> 20):
            data = os.urandom(1 << 20)
            hasher.update(data)
            file.write(data)
    layout = directory / "layout"
    asyncio.run(_push_layout(LayoutRepository(layout, create=True), [made_layer({"a": b"1"})]))
    path.rename(layout / "blobs" / "sha256" / hasher.hexdigest())
    return layout, f"sha256:{hasher.hexdigest()}"


@contextlib.contextmanager
def _warm_nginx(directory: Path) -> Iterator[Sides]:
    layout, digest = _large_layout(directory)
    encoded = digest.partition(":")[2]
    with (
        facade_process(directory / "facade", "--upstream", f"x=oci:{layout}") as facade,
        _nginx(directory, layout / "blobs" / "sha256") as nginx,
    ):
        yield Sides(
            lambda: megabytes_per_s(facade.address, f"/v2/x/blobs/{digest}"),
            lambda: megabytes_per_s(nginx, f"/{encoded}"),
        )


@contextlib.contextmanager
def _warm_registry(directory: Path) -> Iterator[Sides]:
    layout, digest = _large_layout(directory)
    path = f"/v2/x/blobs/{digest}"
    with (
        facade_process(directory / "facade", "--upstream", f"x=oci:{layout}") as facade,
        _registry_of(directory, layout, digest) as registry,
    ):
        yield Sides(lambda: megabytes_per_s(facade.address, path), lambda: megabytes_per_s(registry, path))


@contextlib.contextmanager
def _nginx_registry(directory: Path) -> Iterator[Sides]:
    """What sendfile(2) reaches here at the most; this docker-registry reads and writes."""
    layout, digest = _large_layout(directory)
    with (
        _nginx(directory, layout / "blobs" / "sha256") as nginx,
        _registry_of(directory, layout, digest) as registry,
    ):
        yield Sides(
            lambda: megabytes_per_s(nginx, f"/{digest.partition(':')[2]}"),
            lambda: megabytes_per_s(registry, f"/v2/x/blobs/{digest}"),
        )


@contextlib.contextmanager
def _registry_of(directory: Path, layout: Path, digest: str) -> Iterator[str]:
    """The address of a registry whose repository x has the blob, as the same file."""
    with docker_registry(directory / "registry") as registry:
        asyncio.run(_push(registry.origin, [made_layer({"a": b"1"})]))
        encoded = digest.partition(":")[2]
        target = registry.blob_path(digest)
        target.parent.mkdir(parents=True)
        os.link(layout / "blobs" / "sha256" / encoded, target)
        links = registry.root / "docker/registry/v2/repositories/x/_layers/sha256" / encoded
        links.mkdir(parents=True)
        (links / "link").write_text(digest)
        yield registry.address


def _by(path: str) -> Any:
    @contextlib.contextmanager
    def sides(directory: Path) -> Iterator[Sides]:
        with _small_images(directory) as (facade, registry, manifest, blob):
            asked = "/v2/x/" + path.format(manifest=manifest, blob=blob)
            yield Sides(lambda: requests_per_s(facade, asked), lambda: requests_per_s(registry, asked))

    return sides


@contextlib.contextmanager
def _small_images(directory: Path) -> Iterator[tuple[str, str, str, str]]:
    """(facade, docker-registry, digest of the manifest, digest of a 4 KiB layer)."""
    layer = made_layer({"a": os.urandom(3900)})
    layout = LayoutRepository(directory / "layout", create=True)
    manifest = asyncio.run(_push_layout(layout, [layer]))
    specs = directory / "specs"
    specs.mkdir()
    (specs / "ws.json").write_text('{"base": "x/x:v1", "layers": [{"files": {"/a": "b"}}]}')
    arguments = ("--upstream", f"x=oci:{layout.directory}", "--image-specs", specs)
    with (
        facade_process(directory / "facade", *arguments) as facade,
        docker_registry(directory / "registry") as registry,
    ):
        asyncio.run(_push(registry.origin, [layer]))
        yield facade.address, registry.address, manifest, layer.layer.descriptor.digest


@contextlib.contextmanager
def _composed(directory: Path) -> Iterator[Sides]:
    with _small_images(directory) as (facade, registry, _, _):
        yield Sides(
            lambda: requests_per_s(facade, "/v2/workspaces/ws/manifests/v1"),
            lambda: requests_per_s(registry, "/v2/x/manifests/v1"),
        )


@contextlib.contextmanager
def _workers(directory: Path) -> Iterator[Sides]:
    """One worker has a core to itself and wrk another; two workers and wrk share both."""
    layout = LayoutRepository(directory / "layout", create=True)
    asyncio.run(_push_layout(layout, [made_layer({"a": b"1"})]))
    upstream = ("--upstream", f"x=oci:{layout.directory}")
    with (
        facade_process(
            directory / "two", *upstream, "--workers", "2", inside=("taskset", "-c", "0,1")
        ) as two,
        facade_process(directory / "one", *upstream, inside=("taskset", "-c", "0")) as one,
    ):
        path = "/v2/x/manifests/v1"
        yield Sides(
            lambda: requests_per_s(two.address, path, connections=64, cores=(0, 1)),
            lambda: requests_per_s(one.address, path, connections=64, cores=(1,)),
        )
