"""Three facades, three Kubo nodes, one upstream behind a link of 20 MB/s: peers, IPFS, both, direct pulls.

An image of ten layers, 256 MiB, is pulled as container runtimes do, three layers at a time, by a process for
each node that hashes what it gets. What comes over a link is counted by the kernel. Three nodes at once are
measured once in each setting; bytes and times are figures of the same run.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import multiprocessing
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ocikit.cid import cid_of
from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Transport
from ocikit.layout import LayoutRepository
from ocikit.media_types import OCI_MANIFEST
from ocikit.repository import Repository
from tests.bench.harness import Bench, Sides
from tests.bench.load import Wanted, fetch
from tests.support.docker_registry import docker_registry
from tests.support.facade import FacadeProcess, facade_process
from tests.support.images import MadeLayer, made_layer, push_image
from tests.support.kubo import KuboNode, kubo_node, new_swarm_key
from tests.support.links import Link, can_link, limited_link
from tests.support.processes import free_port
from tests.support.redis import redis_server

UPSTREAM_BYTES_S = 20_000_000
NODE_LINK_BYTES_S = 125_000_000
LAYERS, LAYER_BYTES = 10, (256 << 20) // 10
MANY, MANY_BYTES = 32, 8 << 20
PARALLEL = 3
NODES = 3
MEMORY_BYTES = 150 << 20


def benches() -> list[Bench]:
    here = ("docker-registry", "kubo", "redis", "ip", "tc") if can_link() else ("root, ip and tc",)

    def bench(name: str, peer: str, unit: str, bound: str, ours: Figure, theirs: Figure) -> Bench:
        @contextlib.contextmanager
        def sides(_: Path) -> Iterator[Sides]:
            yield Sides(ours, theirs)

        return Bench(name, peer, unit, bound, sides, here, rounds=1)

    found = []
    for mode, bytes_bound, wall_bound in (
        ("direct", "", ""),
        ("peers", "<= 1.05", "<= 1.15"),
        ("ipfs", "", ""),
        ("both", "<= 1.05", "<= 1.15"),
    ):
        measured = functools.partial(_three, mode)
        found += [
            bench(f"3 nodes at once, {mode}, upstream", "one direct pull", "bytes", bytes_bound,
                  lambda run=measured: run().bytes, lambda run=measured: run().direct_bytes),
            bench(f"3 nodes at once, {mode}, slowest", "one direct pull", "s", wall_bound,
                  lambda run=measured: run().wall_s, lambda run=measured: run().direct_wall_s),
        ]  # fmt: skip
    for mode, plain_bound in (("peers", ">= 0.8"), ("ipfs", ">= 0.8")):
        for against, peer, bound, rounds in (
            ("upstream", "the upstream", ">= 3", 1),
            ("plain", "plain HTTP between nodes", plain_bound, 3),
        ):
            sides = functools.partial(_second, mode, against)
            found.append(Bench(f"second node, {mode}", peer, "MB/s", bound, sides, here, rounds=rounds))
    sides, peer = functools.partial(_second, "kubo", "plain"), "plain HTTP between nodes"
    found.append(Bench("second node, Kubo's cat alone", peer, "MB/s", "", sides, here, rounds=3))
    for mode in ("upstream", "ipfs"):
        found.append(
            bench(f"memory, 32 layers in flight, {mode}", "150 MiB", "bytes", "<= 1",
                  functools.partial(_memory, mode), lambda: float(MEMORY_BYTES))
        )  # fmt: skip
    return found


Figure = Callable[[], float]


# ----- an image, and pulling it -----


@dataclass(frozen=True)
class Pulled:
    wall_s: float
    size_bytes: int

    @property
    def rate(self) -> float:
        return self.size_bytes / self.wall_s / 1e6


def _pull(address: str, name: str, digests: Sequence[str], parallel: int = PARALLEL) -> Pulled:
    """The manifest, then the layers; each is hashed."""
    started_s = time.perf_counter()
    asked = urllib.request.Request(
        f"http://{address}/v2/{name}/manifests/v1", headers={"Accept": OCI_MANIFEST}
    )
    urllib.request.urlopen(asked).read()  # noqa: S310 (our own http URL)
    with concurrent.futures.ThreadPoolExecutor(parallel) as threads:
        paths = [f"/v2/{name}/blobs/{digest}" for digest in digests]
        got = list(threads.map(lambda path: fetch(address, path, Wanted()), paths))
    assert [f"sha256:{item.sha256}" for item in got] == list(digests)
    return Pulled(time.perf_counter() - started_s, sum(item.size_bytes for item in got))


def _cat(api_url: str, digests: Sequence[str], cids: Sequence[str]) -> Pulled:
    """What `_pull` does, of a Kubo node instead of a facade: how fast IPFS itself is here."""

    def one(digest: str, cid: str) -> int:
        url = f"{api_url}/api/v0/cat?arg={cid}"
        asked = urllib.request.Request(url, method="POST")  # noqa: S310 (our own http URL)
        buffer, hasher, size_bytes = memoryview(bytearray(1 << 20)), hashlib.sha256(), 0
        with urllib.request.urlopen(asked, timeout=60) as response:  # noqa: S310 (our own http URL)
            while count := response.readinto(buffer):
                hasher.update(buffer[:count])
                size_bytes += count
        assert f"sha256:{hasher.hexdigest()}" == digest
        return size_bytes

    started_s = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as threads:
        size_bytes = sum(threads.map(one, digests, cids))
    return Pulled(time.perf_counter() - started_s, size_bytes)


@contextlib.contextmanager
def _pullers(count: int) -> Iterator[ProcessPoolExecutor]:
    """A process for each node, which is up when the block begins."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=spawning) as pool:
        list(pool.map(_nap, [0.2] * count))
        yield pool


def _nap(duration_s: float) -> None:
    time.sleep(duration_s)  # so that each task starts a process of its own


def _layers(count: int, size_bytes: int) -> list[MadeLayer]:
    return [made_layer({f"layer{number}": os.urandom(size_bytes)}) for number in range(count)]


def _digests(layers: Sequence[MadeLayer]) -> list[str]:
    return [made.layer.descriptor.digest for made in layers]


async def _push(repository: Repository, layers: Sequence[MadeLayer]) -> None:
    await push_image(repository, "v1", layers)


@dataclass(frozen=True)
class Upstream:
    link: Link
    address: str
    digests: Sequence[str]


@contextlib.contextmanager
def _upstream(directory: Path, layers: Sequence[MadeLayer], bytes_per_s: int) -> Iterator[Upstream]:
    async def fill(address: str) -> None:
        async with Transport() as transport:
            client = RegistryClient(RegistryHost(address, f"http://{address}"), transport)
            await _push(RegistryRepository(client, "x"), layers)

    with limited_link(bytes_per_s) as link, docker_registry(directory / "registry", link=link) as registry:
        asyncio.run(fill(registry.address))
        yield Upstream(link, registry.address, _digests(layers))


@contextlib.contextmanager
def _swarm(directory: Path, links: Sequence[Link | None]) -> Iterator[Sequence[KuboNode]]:
    """Nodes that know each other."""
    key = new_swarm_key()
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(kubo_node(directory / f"kubo{number}", swarm_key=key, link=link))
            for number, link in enumerate(links)
        ]
        for number, node in enumerate(nodes):
            for other in nodes[:number]:
                node.connect(other)
        yield nodes


# ----- three at once -----


@dataclass(frozen=True)
class ThreeFigures:
    bytes: float
    wall_s: float
    direct_bytes: float
    direct_wall_s: float


@functools.cache
def _three(mode: str) -> ThreeFigures:
    layers = _layers(LAYERS, LAYER_BYTES)
    with (
        tempfile.TemporaryDirectory(prefix="lapstrake-bench-") as name,
        _upstream(Path(name), layers, UPSTREAM_BYTES_S) as upstream,
        _pullers(NODES) as pool,
    ):

        def counted(addresses: Sequence[str], image: str) -> tuple[float, float]:
            before = upstream.link.received_bytes
            tasks = [pool.submit(_pull, address, image, upstream.digests) for address in addresses]
            wall_s = max(task.result().wall_s for task in tasks)
            return float(upstream.link.received_bytes - before), wall_s

        direct = counted([upstream.address], "x")
        if mode == "direct":
            return ThreeFigures(*counted([upstream.address] * NODES, "x"), *direct)
        with _three_facades(Path(name), mode, upstream) as facades:
            return ThreeFigures(*counted([facade.address for facade in facades], "x/x"), *direct)


@contextlib.contextmanager
def _three_facades(directory: Path, mode: str, upstream: Upstream) -> Iterator[Sequence[FacadeProcess]]:
    with contextlib.ExitStack() as stack:
        ports = [free_port() for _ in range(NODES)]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        ipfs: list[dict[str, str]] = [{}] * NODES
        if mode in {"ipfs", "both"}:
            redis = stack.enter_context(redis_server(directory / "redis"))
            nodes = stack.enter_context(_swarm(directory, [None] * NODES))
            ipfs = [_env(ipfs_api=node.api_url, digest_index=redis.url) for node in nodes]
        peers = [_env(peers=",".join(urls), peer_url=url) for url in urls] if mode != "ipfs" else [{}] * NODES
        yield [
            stack.enter_context(
                facade_process(
                    directory / f"facade{number}",
                    *("--listen", f"127.0.0.1:{ports[number]}"),
                    *("--upstream", f"x=http://{upstream.address}"),
                    env={**ipfs[number], **peers[number]},
                )
            )
            for number in range(NODES)
        ]


def _env(**settings: str) -> dict[str, str]:
    return {f"LAPSTRAKE_FACADE_{name.upper()}": value for name, value in settings.items()}


# ----- the second node -----


@contextlib.contextmanager
def _second(mode: str, against: str, directory: Path) -> Iterator[Sides]:
    """``mode`` "kubo" is the second node's Kubo alone, without its facade.

    The first node stands behind a link of 1 Gbit/s and has the image from a layout of its own.

    Each round has a second node that has nothing yet; rates are in MB/s.
    """
    layers = _layers(LAYERS, LAYER_BYTES)
    with (
        _upstream(directory, layers, UPSTREAM_BYTES_S) as upstream,
        limited_link(NODE_LINK_BYTES_S) as link,
        _pullers(1) as pool,
        contextlib.ExitStack() as stack,
    ):
        layout = LayoutRepository(directory / "layout", create=True)
        asyncio.run(_push(layout, layers))
        port, own, index = free_port(), free_port(), f"sqlite:{directory / 'cids'}"
        nodes = stack.enter_context(_swarm(directory, [link, None])) if mode != "peers" else ()
        envs = [_env(ipfs_api=node.api_url, digest_index=index) for node in nodes] or [
            _env(peers=f"http://127.0.0.1:{own}", peer_url=f"http://{link.address}:{port}"),
            _env(peers=f"http://{link.address}:{port}", peer_url=f"http://127.0.0.1:{own}"),
        ]
        listen, source = f"{link.address}:{port}", f"x=oci:{layout.directory}"
        first = stack.enter_context(
            facade_process(
                directory / "first", "--listen", listen, "--upstream", source, inside=link.inside, env=envs[0]
            )
        )

        def rate(address: str, image: str = "x/x") -> float:
            return pool.submit(_pull, address, image, upstream.digests).result().rate

        def ours() -> float:
            for node in nodes[1:]:
                node.ipfs("repo", "gc", "--quiet")  # what the last round left there
            place = directory / f"second-{time.monotonic_ns()}"
            origin = f"x=http://{upstream.address}"
            with facade_process(
                place, "--listen", f"127.0.0.1:{own}", "--upstream", origin, env=envs[1]
            ) as second:
                return rate(second.address)

        def kubo_alone() -> float:
            nodes[1].ipfs("repo", "gc", "--quiet")
            return pool.submit(_cat, nodes[1].api_url, upstream.digests, cids).result().rate

        cids = [cid_of(made.blob) for made in layers]
        rate(first.address)
        if nodes:
            _await_metric(first.address, "facade_ipfs_announced_total", LAYERS)
        peers: dict[str, Figure] = {
            "upstream": lambda: rate(upstream.address, "x"),
            "plain": lambda: rate(first.address),
        }
        yield Sides(kubo_alone if mode == "kubo" else ours, peers[against])


def _await_metric(address: str, name: str, least: float) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
        total = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
        if total >= least:
            return
        assert time.monotonic() < deadline_s, f"{name} is {total}"
        time.sleep(0.1)


# ----- memory -----


@functools.cache
def _memory(mode: str) -> float:
    """The most that a facade occupied with 32 layers on their way at once, from the upstream or from IPFS."""
    layers = _layers(MANY, MANY_BYTES)
    with (
        tempfile.TemporaryDirectory(prefix="lapstrake-bench-") as name,
        _upstream(Path(name), layers, 5 * UPSTREAM_BYTES_S) as upstream,
        _pullers(1) as pool,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        envs: list[dict[str, str]] = [{}]
        if mode == "ipfs":
            index = f"sqlite:{directory / 'cids'}"
            nodes = stack.enter_context(_swarm(directory, [None, None]))
            envs = [_env(ipfs_api=node.api_url, digest_index=index) for node in nodes]
        for number, env in enumerate(envs):
            with facade_process(
                directory / str(number), "--upstream", f"x=http://{upstream.address}", env=env
            ) as facade:
                pool.submit(_pull, facade.address, "x/x", upstream.digests, MANY).result()
                if mode == "ipfs" and number == 0:
                    _await_metric(facade.address, "facade_ipfs_announced_total", MANY)
                peak = Path(f"/proc/{facade.process.pid}/status").read_text().partition("VmHWM:")[2]
        return int(peak.split()[0]) * 1024.0
