"""What limits hold, and what they cost: of the whole service, against MinIO on loopback.

The server keeps its data in memory, as if it were another machine's disk. The neighbour is fio with 4 KiB
random reads past the page cache, in a cgroup v2 group of its own, whose ``io.pressure`` the service follows;
that needs root and a kernel with pressure stall information. Both are on a disk with one head
(`tests.bench.bounded_disk`), and once more on whatever this machine has.
"""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import aiohttp

from content.app import content_service
from content.settings import ContentSettings
from servicekit.lifecycle import Listener, listening
from servicekit.settings import load
from tests.bench import scratch
from tests.bench.bounded_disk import COMPONENTS, bounded_disk, is_possible
from tests.bench.harness import Bench, Sides
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, s3_server

_ASKED_BYTES_S = 20 << 20
_THROTTLED_BYTES = 320 << 20
_TREE_DIRECTORIES = 24
_LARGE_BYTES, _SMALL_BYTES, _SMALL_FILES = 16 << 20, 32 << 10, 128
_NEIGHBOUR_BYTES = 256 << 20
_DISK_BYTES = 2 << 30
_FIO_S = 8
_CGROUPS = Path("/sys/fs/cgroup/unified")
_numbers = itertools.count()


@contextlib.contextmanager
def _server() -> Iterator[S3Server]:
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = ACCESS_KEY, SECRET_KEY
    with scratch.directory(in_memory=True) as root, s3_server("minio", root) as server:
        yield server


class _Service:
    """A node's agent, asked over HTTP."""

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self._client = client

    async def start(self, tree: str, workspace: str) -> dict:
        asked = {"path": tree}
        async with self._client.post(f"/v1/workspaces/bench/{workspace}/backups", json=asked) as response:
            return await response.json()

    async def cancel(self, job: dict) -> None:
        async with self._client.delete(f"/v1/jobs/{job['id']}"):
            pass

    async def end_of(self, job: dict) -> dict:
        async with self._client.get(f"/v1/jobs/{job['id']}/events") as response:
            text = await response.text()
        return json.loads(text.rpartition("data: ")[2])

    async def sent_bytes(self) -> float:
        async with self._client.get("/metrics") as response:
            text = await response.text()
        name = 'content_store_bytes_total{direction="sent"}'
        return float(text.partition(name)[2].partition("\n")[0] or 0)

    async def forget(self, workspace: str) -> None:
        path = f"/v1/workspaces/bench/{workspace}/snapshots"
        async with self._client.get(path) as response:
            snapshots = (await response.json())["snapshots"]
        for snapshot in snapshots:
            async with self._client.delete(f"{path}/{snapshot['id']}"):
                pass


@contextlib.asynccontextmanager
async def _service(server: S3Server, root: Path, state: Path, **flags: str) -> AsyncIterator[_Service]:
    given = {
        "store": f"s3://{server.bucket}/bench",
        "s3_endpoint": server.endpoint,
        "workspaces_root": str(root),
        "state_dir": str(state),
        "backups": "4",
        "min_free_bytes": "64MiB",
        **flags,
    }
    settings = load(ContentSettings, "content", environ={}, flags=given)
    async with (
        content_service(settings) as (app, _),
        listening([Listener(app, "127.0.0.1", 0)], drain_s=5) as [(host, port)],
        aiohttp.ClientSession(f"http://{host}:{port}", timeout=aiohttp.ClientTimeout(total=None)) as client,
    ):
        yield _Service(client)


def _tree(directory: Path, name: str, size_bytes: int) -> Path:
    """Of files of 16 MiB, on the disk."""
    root = directory / "workspaces"
    (root / name).mkdir(parents=True)
    noise = os.urandom(16 << 20)
    for number in range(size_bytes // len(noise)):
        (root / name / f"file-{number}").write_bytes(noise)
    os.sync()
    return root


async def _rate(server: S3Server, root: Path, trees: Sequence[str]) -> float:
    """Bytes per second of all jobs together while they send: from when a tenth was sent to the last part."""
    send_rate = f"{_ASKED_BYTES_S}B/s"
    async with _service(server, root, root.parent / "state", send_rate_bytes_s=send_rate) as service:
        names = {tree: f"{tree}-{next(_numbers)}" for tree in trees}
        jobs = [await service.start(tree, name) for tree, name in names.items()]
        ends = asyncio.gather(*(service.end_of(job) for job in jobs))
        changes = [(time.perf_counter(), 0.0)]
        while not ends.done():
            now = (time.perf_counter(), await service.sent_bytes())
            if now[1] > changes[-1][1]:
                changes.append(now)
            await asyncio.sleep(0.05)
        assert [end["error"] for end in await ends] == [None] * len(jobs)
        for name in names.values():
            await service.forget(name)
    (started_s, first), *_, (ended_s, last) = [c for c in changes if c[1] >= _THROTTLED_BYTES // 10]
    return (last - first) / (ended_s - started_s)


def _throttle(jobs: int) -> Bench:
    @contextlib.contextmanager
    def sides(directory: Path) -> Iterator[Sides]:
        trees = [f"tree-{number}" for number in range(jobs)]
        for tree in trees:
            root = _tree(directory, tree, _THROTTLED_BYTES // jobs)
        with _server() as server:

            def ours() -> float:
                rate = asyncio.run(_rate(server, root, trees))
                print(f"  {rate / (1 << 20):.2f} MiB/s of {_ASKED_BYTES_S >> 20} MiB/s")
                return max(rate, _ASKED_BYTES_S**2 / rate)  # as far over as it was under

            yield Sides(ours=ours, peer=lambda: float(_ASKED_BYTES_S))

    name = f"throttle: 20 MiB/s, {jobs} job{'s' * (jobs > 1)}, farthest off"
    return Bench(name, "the rate asked", "B/s", "<= 1.05", sides, ("minio",), rounds=2)


@contextlib.contextmanager
def _group(name: str) -> Iterator[Path]:
    group = _CGROUPS / f"lapstrake-bench-{name}-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def _fio(file: Path, group: Path) -> float:
    """4 KiB random reads per second."""
    command = ["fio", "--name=neighbour", f"--filename={file}", "--rw=randread", "--bs=4k", "--direct=1"]
    command += ["--ioengine=psync", "--time_based", f"--runtime={_FIO_S}", "--output-format=json"]
    enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    done = subprocess.run(["sh", "-c", enter, "sh", *command], check=True, capture_output=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["iops"])


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _mixed_tree(directory: Path) -> Path:
    """Of directories with one large and many small files each."""
    root = directory / "workspaces"
    noise = os.urandom(_LARGE_BYTES)
    for number in range(_TREE_DIRECTORIES):
        place = root / "tree" / f"directory-{number:02}"
        place.mkdir(parents=True)
        (place / "large").write_bytes(noise)
        for small in range(_SMALL_FILES):
            start = small * _SMALL_BYTES
            (place / f"small-{small:03}").write_bytes(noise[start : start + _SMALL_BYTES])
    os.sync()
    return root


Disk = Callable[[Path], contextlib.AbstractContextManager[Path]]


@contextlib.contextmanager
def _one_head(_directory: Path) -> Iterator[Path]:
    with scratch.directory(in_memory=True) as memory, bounded_disk(memory, _DISK_BYTES) as mounted:
        yield mounted


def _neighbour(disk: Disk, *, followed: bool) -> Callable[[Path], contextlib.AbstractContextManager[Sides]]:
    @contextlib.contextmanager
    def sides(directory: Path) -> Iterator[Sides]:
        with disk(directory) as place, _server() as server, _group("neighbour") as group:
            root = _mixed_tree(place)
            file = place / "neighbour"
            file.write_bytes(os.urandom(16 << 20) * (_NEIGHBOUR_BYTES >> 24))

            async def during_a_backup() -> float:
                flags = {"pressure.files": f"{group}/io.pressure"} if followed else {}
                async with _service(server, root, directory / "state", **flags) as service:
                    job = await service.start("tree", f"neighbour-{next(_numbers)}")
                    found = await asyncio.to_thread(_fio, file, group)
                    await service.cancel(job)
                    end = await service.end_of(job)
                read_mib = end["bytes"] / (1 << 20)
                print(f"  {found:.0f} IOPS; {end['state']} after {read_mib:.0f} MiB in {_FIO_S} s")
                return found

            def ours() -> float:
                _drop_caches()
                return asyncio.run(during_a_backup())

            def peer() -> float:
                _drop_caches()
                return _fio(file, group)

            yield Sides(ours=ours, peer=peer)

    return sides


def _idle(disk: Disk) -> Callable[[Path], contextlib.AbstractContextManager[Sides]]:
    """A cold backup, with a neighbour that does nothing followed, and without."""

    @contextlib.contextmanager
    def sides(directory: Path) -> Iterator[Sides]:
        with disk(directory) as place, _server() as server, _group("idle") as group:
            root = _mixed_tree(place)

            async def backup(flags: dict[str, str]) -> float:
                async with _service(server, root, directory / "state", **flags) as service:
                    name = f"idle-{next(_numbers)}"
                    end = await service.end_of(await service.start("tree", name))
                    await service.forget(name)
                assert end["error"] is None
                return float(end["ended_s"] - end["started_s"])

            def timed(flags: dict[str, str]) -> Callable[[], float]:
                def side() -> float:
                    _drop_caches()
                    time.sleep(1)
                    return asyncio.run(backup(flags))

                return side

            files = {"pressure.files": f"{group}/io.pressure"}
            yield Sides(ours=timed(files), peer=timed({}))

    return sides


def benches() -> list[Bench]:
    found = [_throttle(1), _throttle(4)]
    if not (_CGROUPS / "io.pressure").exists() or not os.access(_CGROUPS, os.W_OK):
        return found
    disks: list[tuple[str, Disk, tuple[str, ...]]] = [("this disk", contextlib.nullcontext, ())]
    if is_possible():
        disks.insert(0, ("one head", _one_head, COMPONENTS))
    for name, disk, also in disks:
        reads, needs = f"throttle: {name}: neighbour's reads, backup, controller", ("minio", "fio", *also)
        off, on = _neighbour(disk, followed=False), _neighbour(disk, followed=True)
        found += [
            Bench(f"{reads} off", "fio alone", "IOPS", "", off, needs, rounds=3),
            Bench(f"{reads} on", "fio alone", "IOPS", ">= 0.85", on, needs, rounds=5),
            Bench(
                f"throttle: {name}: cold backup, idle",
                "no controller",
                "s",
                "<= 1.05",
                _idle(disk),
                needs,
                rounds=5,
            ),
        ]
    return found
