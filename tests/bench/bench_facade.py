"""The facade against nginx (the same file by sendfile) and docker-registry, on loopback, in one run.

Manifests and small blobs: 16 connections for a second, requests per second. The generator is Python and
takes a core of its own; on a machine of two cores that is part of what is measured, for both sides alike.
"""

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Transport
from ocikit.layout import LayoutRepository
from ocikit.media_types import OCI_MANIFEST
from ocikit.repository import Repository
from tests.bench.harness import Bench, Sides
from tests.support.components import program
from tests.support.docker_registry import docker_registry
from tests.support.facade import facade_process
from tests.support.images import MadeLayer, made_layer, push_image
from tests.support.processes import Process, accepts, free_port
from tests.support.scripted_registry import ScriptedRegistry, scripted_registry

CONNECTIONS = 16
SECONDS = 1.0
WARM_BYTES = 512 << 20
COLD_BYTES = 64 << 20
COLD_RATE = 10 << 20
CLIENTS = 50


def benches() -> list[Bench]:
    registry, by_digest = ("docker-registry",), _by("manifests/{manifest}")
    return [
        Bench("warm 512 MiB blob", "nginx", "MB/s", ">= 0.9", _warm_nginx, ("nginx",), rounds=3),
        Bench("warm 512 MiB blob", "docker-registry", "MB/s", ">= 1.0", _warm_registry, registry, rounds=3),
        Bench("manifest by tag", "docker-registry", "req/s", ">= 8", _by("manifests/v1"), registry),
        Bench("manifest by digest", "docker-registry", "req/s", ">= 8", by_digest, registry),
        Bench("4 KiB blob", "docker-registry", "req/s", ">= 6", _by("blobs/{blob}"), registry),
        Bench("composed manifest", "docker-registry", "req/s", ">= 8", _composed, registry),
        Bench("50 cold clients, wall", "one direct download", "s", "<= 1.15", _cold_wall, rounds=1),
        Bench("50 cold clients, upstream bytes", "the blob", "bytes", "<= 1.02", _cold_bytes, rounds=1),
    ]


# ----- load -----


class _Client(asyncio.Protocol):
    """Asks again as soon as an answer is complete."""

    def __init__(self, request: bytes, counted: list[int]) -> None:
        self._request = request
        self._counted = counted
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._held[:end].lower()
        assert b" 200 " in head[:16], head
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._held) >= end + 4 + length:
            self._held = self._held[end + 4 + length :]
            self._counted[0] += 1
            self._transport.write(self._request)


def _requests_per_s(address: str, path: str) -> float:
    async def load() -> float:
        host, _, port = address.partition(":")
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {OCI_MANIFEST}, */*\r\n\r\n"
        request, counted = head.encode(), [0]
        loop = asyncio.get_running_loop()
        opened = [
            await loop.create_connection(lambda: _Client(request, counted), host, int(port))
            for _ in range(CONNECTIONS)
        ]
        started_s = time.perf_counter()
        await asyncio.sleep(SECONDS)
        rate = counted[0] / (time.perf_counter() - started_s)
        for transport, _ in opened:
            transport.abort()
        return rate

    return asyncio.run(load())


def _megabytes_per_s(address: str, path: str) -> float:
    """One stream into a buffer that is thrown away."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        buffer, received, started_s = bytearray(1 << 20), 0, time.perf_counter()
        while count := connection.recv_into(buffer):
            received += count
        duration_s = time.perf_counter() - started_s
    assert received >= WARM_BYTES
    return received / duration_s / 1e6


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
            lambda: _megabytes_per_s(facade.address, f"/v2/x/blobs/{digest}"),
            lambda: _megabytes_per_s(nginx, f"/{encoded}"),
        )


@contextlib.contextmanager
def _warm_registry(directory: Path) -> Iterator[Sides]:
    layout, digest = _large_layout(directory)
    with (
        facade_process(directory / "facade", "--upstream", f"x=oci:{layout}") as facade,
        docker_registry(directory / "registry") as registry,
    ):
        asyncio.run(_push(registry.origin, [made_layer({"a": b"1"})]))
        target = registry.blob_path(digest)
        target.parent.mkdir(parents=True)
        os.link(layout / "blobs" / "sha256" / digest.partition(":")[2], target)
        links = registry.root / "docker/registry/v2/repositories/x/_layers/sha256" / digest.partition(":")[2]
        links.mkdir(parents=True)
        (links / "link").write_text(digest)
        path = f"/v2/x/blobs/{digest}"
        yield Sides(
            lambda: _megabytes_per_s(facade.address, path), lambda: _megabytes_per_s(registry.address, path)
        )


def _by(path: str) -> Any:
    @contextlib.contextmanager
    def sides(directory: Path) -> Iterator[Sides]:
        with _small_images(directory) as (facade, registry, manifest, blob):
            asked = "/v2/x/" + path.format(manifest=manifest, blob=blob)
            yield Sides(lambda: _requests_per_s(facade, asked), lambda: _requests_per_s(registry, asked))

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
            lambda: _requests_per_s(facade, "/v2/workspaces/ws/manifests/v1"),
            lambda: _requests_per_s(registry, "/v2/x/manifests/v1"),
        )


# ----- cold -----


@contextlib.contextmanager
def _limited_upstream(data: bytes) -> Iterator[tuple[ScriptedRegistry, str]]:
    """In a thread of its own, so that the clients' loop does not slow it."""
    ready: list[ScriptedRegistry] = []
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        async with scripted_registry() as upstream:
            upstream.bytes_per_s = COLD_RATE
            ready.append(upstream)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait()
    try:
        yield ready[0], ready[0].add_blob(data)
    finally:
        stop.set()
        thread.join()


def _download(url: str, start: int, length: int) -> Coroutine[Any, Any, str]:
    async def run() -> str:
        import aiohttp

        headers = {"Range": f"bytes={start}-{start + length - 1}"} if length else {}
        hasher = hashlib.sha256()
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.get(url, headers=headers) as response,
        ):
            async for piece in response.content.iter_any():
                hasher.update(piece)
        return hasher.hexdigest()

    return run()


def _fifty(url: str, data: bytes) -> None:
    """Half want all, half a MiB somewhere; each gets the right bytes."""
    wanted = [
        (0, 0) if number % 2 else (number * 1_314_159 % COLD_BYTES, 1 << 20) for number in range(CLIENTS)
    ]

    async def run() -> list[str]:
        return list(await asyncio.gather(*(_download(url, *item) for item in wanted)))

    for (start, length), got in zip(wanted, asyncio.run(run()), strict=True):
        expected = data[start : start + length] if length else data
        assert got == hashlib.sha256(expected).hexdigest()


@contextlib.contextmanager
def _cold_wall(directory: Path) -> Iterator[Sides]:
    data, fresh = os.urandom(COLD_BYTES), iter(range(1000))
    with _limited_upstream(data) as (upstream, digest):

        def ours() -> float:
            place = directory / str(next(fresh))
            # clients in a process of their own: the upstream here must keep its rate meanwhile
            spawning = multiprocessing.get_context("spawn")
            with (
                facade_process(place, "--upstream", f"x={upstream.origin}") as facade,
                ProcessPoolExecutor(1, mp_context=spawning) as clients,
            ):
                clients.submit(os.getpid).result()
                url, started_s = f"{facade.url}/v2/x/blobs/{digest}", time.perf_counter()
                clients.submit(_fifty, url, data).result()
                return time.perf_counter() - started_s

        def direct() -> float:
            started_s = time.perf_counter()
            asyncio.run(_download(f"{upstream.origin}/v2/x/blobs/{digest}", 0, 0))
            return time.perf_counter() - started_s

        yield Sides(ours, direct)


@contextlib.contextmanager
def _cold_bytes(directory: Path) -> Iterator[Sides]:
    data, fresh = os.urandom(COLD_BYTES), iter(range(1000))
    with _limited_upstream(data) as (upstream, digest):

        def ours() -> float:
            upstream.sent_bytes.clear()
            place = directory / str(next(fresh))
            with facade_process(place, "--upstream", f"x={upstream.origin}") as facade:
                _fifty(f"{facade.url}/v2/x/blobs/{digest}", data)
            return float(upstream.sent_bytes[digest])

        yield Sides(ours, lambda: float(COLD_BYTES))
