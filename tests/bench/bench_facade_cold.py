"""Cold pulls: docker-registry stands behind a network link of a stated rate, in a namespace of its own.

What came over the link is counted by the kernel, so that neither side's own count is believed. Readers hash
what they get and are checked.
"""

import asyncio
import contextlib
import hashlib
import os
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Transport
from registry_facade.cache.catalog import Catalog
from tests.bench.harness import Bench, Sides
from tests.bench.load import Fetch, Fetched, Wanted, readers
from tests.support.docker_registry import DockerRegistry, docker_registry
from tests.support.facade import FacadeProcess, facade_process
from tests.support.images import MadeLayer, made_layer, push_image
from tests.support.links import Link, can_link, limited_link

MIB = 1 << 20
BLOB_BYTES = 64 * MIB
SLOW = 10 * MIB
FAST = 100 * MIB
CLIENTS = 50
LAYERS = 12
LAYER_BYTES = (1 << 30) // LAYERS
IMAGES = 10_000
_SHARED = [
    Wanted() if number % 2 else Wanted(at := number * 1_314_159 % (BLOB_BYTES - MIB), at + MIB)
    for number in range(CLIENTS)
]
"""Half want all of the blob, half a MiB somewhere."""


def benches() -> list[Bench]:
    root = ("docker-registry", "ip", "tc") if can_link() else ("root, ip and tc",)
    pull = (*root, "skopeo")
    return [
        Bench("50 cold clients, wall", "one direct download", "s", "<= 1.15", _wall, root, rounds=1),
        Bench("50 cold clients, bytes", "one direct download", "bytes", "<= 1.02", _bytes, root, rounds=1),
        Bench(
            "50 cold clients, source killed", "one direct download", "s", "<= 1.15", _killed, root, rounds=1
        ),
        Bench("50 cold clients, memory growth", "64 MiB", "MiB", "<= 1", _growth, root, rounds=1),
        Bench("waiter's first byte", "20 ms and the upstream's", "s", "<= 1", _waiter, root, rounds=3),
        Bench("cold 12-layer 1 GiB pull", "skopeo direct", "s", "<= 1.1", _image, pull, rounds=1),
        Bench("memory, 1 GiB blobs in flight", "128 MiB", "MiB", "<= 1", _memory, root, rounds=1),
        Bench("start with 10,000 cached images", "2 s", "s", "<= 1", _start, rounds=3),
    ]


@dataclass(frozen=True)
class _Blob:
    digest: str
    data: bytes
    repository: str = "x"

    @property
    def path(self) -> str:
        return f"/v2/{self.repository}/blobs/{self.digest}"


async def _push(registry: DockerRegistry, layers: list[MadeLayer]) -> None:
    async with Transport() as transport:
        client = RegistryClient(RegistryHost(registry.address, registry.origin), transport)
        await push_image(RegistryRepository(client, "x"), "v1", layers)


def _placed(registry: DockerRegistry, data: bytes) -> _Blob:
    """A blob in repository x, put where docker-registry keeps it."""
    encoded = hashlib.sha256(data).hexdigest()
    target = registry.blob_path(f"sha256:{encoded}")
    target.parent.mkdir(parents=True)
    target.write_bytes(data)
    link = registry.root / "docker/registry/v2/repositories/x/_layers/sha256" / encoded / "link"
    link.parent.mkdir(parents=True)
    link.write_text(f"sha256:{encoded}")
    return _Blob(f"sha256:{encoded}", data)


@dataclass(frozen=True)
class _Setting:
    link: Link
    registry: DockerRegistry
    fetch: Fetch
    directory: Path

    @contextlib.contextmanager
    def facade(self, *more: str) -> Iterator[FacadeProcess]:
        """With an empty cache."""
        place = self.directory / f"facade-{time.monotonic_ns()}"
        with facade_process(place, "--upstream", f"x={self.registry.origin}", *more) as facade:
            yield facade

    def direct(self, blob: _Blob) -> Fetched:
        (got,) = self.fetch(self.registry.address, blob.path, [Wanted()])
        _check([got], [Wanted()], blob)
        return got

    def shared(self, facade: FacadeProcess, blob: _Blob) -> float:
        """How long fifty readers took; each got the right bytes."""
        started_s = time.perf_counter()
        got = self.fetch(facade.address, blob.path, _SHARED)
        wall_s = time.perf_counter() - started_s
        _check(got, _SHARED, blob)
        return wall_s


def _check(got: list[Fetched], wanted: list[Wanted], blob: _Blob) -> None:
    for item, asked in zip(got, wanted, strict=True):
        expected = blob.data[asked.start : asked.stop] if asked.stop else blob.data
        assert item.sha256 == hashlib.sha256(expected).hexdigest()


@contextlib.contextmanager
def _setting(directory: Path, bytes_per_s: int) -> Iterator[_Setting]:
    with (
        limited_link(bytes_per_s) as link,
        docker_registry(directory / "registry", link=link) as registry,
        readers() as fetch,
    ):
        asyncio.run(_push(registry, [made_layer({"a": b"1"})]))
        yield _Setting(link, registry, fetch, directory)


@contextlib.contextmanager
def _wall(directory: Path) -> Iterator[Sides]:
    with _setting(directory, SLOW) as setting:
        blob = _placed(setting.registry, os.urandom(BLOB_BYTES))

        def ours() -> float:
            with setting.facade() as facade:
                return setting.shared(facade, blob)

        yield Sides(ours, lambda: setting.direct(blob).wall_s)


@contextlib.contextmanager
def _bytes(directory: Path) -> Iterator[Sides]:
    with _setting(directory, SLOW) as setting:
        blob = _placed(setting.registry, os.urandom(BLOB_BYTES))

        def counted(work: Callable[[], object]) -> float:
            before = setting.link.received_bytes
            work()
            return float(setting.link.received_bytes - before)

        def ours() -> float:
            with setting.facade() as facade:
                return counted(lambda: setting.shared(facade, blob))

        yield Sides(ours, lambda: counted(lambda: setting.direct(blob)))


@contextlib.contextmanager
def _killed(directory: Path) -> Iterator[Sides]:
    """The registry is killed when half of the blob has come; another one has the image too."""
    with _setting(directory, SLOW) as setting:
        layer = made_layer({"a": os.urandom(BLOB_BYTES)})
        asyncio.run(_push(setting.registry, [layer]))
        blob = _Blob(layer.layer.descriptor.digest, layer.blob)

        def kill_after(size_bytes: int, victim: DockerRegistry, before: int) -> None:
            while setting.link.received_bytes - before < size_bytes:
                time.sleep(0.01)
            victim.process.kill()

        def ours() -> float:
            with (
                docker_registry(setting.registry.root, link=setting.link) as victim,
                setting.facade("--upstream", f"first={victim.origin}") as facade,
            ):
                for name in ("x", "first"):  # where the image is; the last one seen is asked first
                    urllib.request.urlopen(f"{facade.url}/v2/{name}/x/manifests/v1").read()  # noqa: S310 (our own http URL)
                before = setting.link.received_bytes
                killer = threading.Thread(
                    target=kill_after, args=(BLOB_BYTES // 2, victim, before), daemon=True
                )
                killer.start()
                wall_s = setting.shared(facade, _Blob(blob.digest, blob.data, "first/x"))
                killer.join()
                assert not victim.process.is_running
                return wall_s

        yield Sides(ours, lambda: setting.direct(blob).wall_s)


def _memory_mib(facade: FacadeProcess, field: str) -> float:
    status = Path(f"/proc/{facade.process.pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


@contextlib.contextmanager
def _growth(directory: Path) -> Iterator[Sides]:
    with _setting(directory, SLOW) as setting:
        blob = _placed(setting.registry, os.urandom(BLOB_BYTES))

        def ours() -> float:
            with setting.facade() as facade:
                before = _memory_mib(facade, "VmRSS")
                setting.shared(facade, blob)
                return _memory_mib(facade, "VmHWM") - before

        yield Sides(ours, lambda: 64.0)


@contextlib.contextmanager
def _waiter(directory: Path) -> Iterator[Sides]:
    """Ten readers come to a blob that is on its way; the slowest first byte counts."""
    with _setting(directory, SLOW) as setting:
        blob = _placed(setting.registry, os.urandom(BLOB_BYTES // 4))
        waiters = [Wanted()] * 10

        def ours() -> float:
            with setting.facade() as facade, readers() as first:
                before = setting.link.received_bytes
                under_way = threading.Thread(target=lambda: first(facade.address, blob.path, [Wanted()]))
                under_way.start()
                while setting.link.received_bytes - before < MIB:
                    time.sleep(0.001)
                got = setting.fetch(facade.address, blob.path, waiters)
                under_way.join()
                _check(got, waiters, blob)
                return max(item.first_byte_s for item in got)

        yield Sides(ours, lambda: 0.020 + setting.direct(blob).first_byte_s)


@contextlib.contextmanager
def _image(directory: Path) -> Iterator[Sides]:
    with _setting(directory, FAST) as setting:
        layers = [made_layer({f"layer{number}": os.urandom(LAYER_BYTES)}) for number in range(LAYERS)]
        asyncio.run(_push(setting.registry, layers))

        def pull(address: str) -> float:
            target = directory / f"pulled-{time.monotonic_ns()}"
            argv = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{address}/x:v1"]
            started_s = time.perf_counter()
            subprocess.run([*argv, f"dir:{target}"], check=True, capture_output=True)
            wall_s = time.perf_counter() - started_s
            subprocess.run(["rm", "-r", target], check=True)
            return wall_s

        def ours() -> float:
            with setting.facade() as facade:
                return pull(facade.address)

        yield Sides(ours, lambda: pull(setting.registry.address))


@contextlib.contextmanager
def _memory(directory: Path) -> Iterator[Sides]:
    """Two blobs of 1 GiB on their way at once, three readers each."""
    with _setting(directory, 2 * FAST) as setting:
        piece = os.urandom(MIB)
        blobs = [_placed(setting.registry, (piece + bytes([number])) * 1023) for number in range(2)]

        def ours() -> float:
            with setting.facade() as facade, readers() as others:
                second = threading.Thread(
                    target=lambda: others(facade.address, blobs[1].path, [Wanted()] * 3)
                )
                second.start()
                got = setting.fetch(facade.address, blobs[0].path, [Wanted()] * 3)
                second.join()
                _check(got, [Wanted()] * 3, blobs[0])
                return _memory_mib(facade, "VmHWM")

        yield Sides(ours, lambda: 128.0)


@contextlib.contextmanager
def _start(directory: Path) -> Iterator[Sides]:
    cache = directory / "facade" / "cache"
    asyncio.run(_fill(cache))

    def ours() -> float:
        started_s = time.perf_counter()
        with facade_process(directory / "facade", "--upstream", f"x=oci:{directory}"):
            return time.perf_counter() - started_s

    yield Sides(ours, lambda: 2.0)


async def _fill(cache: Path) -> None:
    """Manifest, config and layer of each image, and the catalog as their pulls would have left it."""
    path = cache / "catalog.sqlite"
    async with Catalog(path):
        pass
    stored, manifests, links, tags = [], [], [], []
    for number in range(IMAGES):
        names = [hashlib.sha256(f"{kind}{number}".encode()).hexdigest() for kind in ("m", "c", "l")]
        digests = [f"sha256:{name}" for name in names]
        stored += [(digest, 1000, 1.0 * number) for digest in digests]
        manifests.append((digests[0], "x", "x", "application/vnd.oci.image.manifest.v1+json", 1.0))
        links += [(child, digests[0], 1000) for child in digests[1:]]
        tags.append(("x", "x", f"v{number}", digests[0], 1.0))
        for name in names:
            target = cache / "blobs" / "sha256" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"x" * 1000)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO blobs (digest, size, state, used_s) VALUES (?, ?, 'stored', ?)", stored
        )
        connection.executemany("INSERT INTO manifests VALUES (?, ?, ?, ?, ?)", manifests)
        connection.executemany("INSERT INTO links VALUES (?, ?, ?)", links)
        connection.executemany("INSERT INTO tags VALUES (?, ?, ?, ?, ?)", tags)
