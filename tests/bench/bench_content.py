"""Backup and restore against GNU tar and s5cmd, on MinIO on loopback (`tests.bench.content_tree`).

Peers: ``tar --format=pax --xattrs -cf - | s5cmd pipe`` and ``s5cmd cat | tar -xp``. Neither side syncs what
it restores; ours does by default. With ``LAPSTRAKE_BENCH_FULL=1`` also ten times the files, and a million.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from content.backup import BackupRequest, BackupResult, back_up
from content.keys import Workspace, workspace_prefix
from content.objects.base import MultipartStore
from content.objects.opening import StoreOptions, open_store
from content.objects.s3 import s3_client
from content.restore import RestoreRequest, restore
from tests.bench import content_tree
from tests.bench.harness import Bench, Sides, Timed, timed
from tests.support.s3 import S3Server

T = TypeVar("T")
_W = Workspace("bench", "tree")
_NEEDS = ("minio", "s5cmd", "tar")
_PREFIX = "ours"
_MEMORY_MIB = 200.0
_COPY_BYTES = 64 << 20
_CHANGED_SHARE = 0.01
_WEIGHED = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs a program from a small one: a child's peak begins with what its parent held when it was started."""


def _with_store(server: S3Server, work: Callable[[MultipartStore], Awaitable[T]]) -> T:
    async def run() -> T:
        options = StoreOptions(s3_endpoint=server.endpoint)
        async with open_store(f"s3://{server.bucket}/{_PREFIX}", options) as store:
            return await work(store)

    return asyncio.run(run())


def _backup(server: S3Server, tree: Path, workspace: Workspace) -> BackupResult:
    return _with_store(server, lambda store: back_up(BackupRequest(tree, workspace), store))


def _forget(server: S3Server, workspace: Workspace) -> None:
    async def work(store: MultipartStore) -> None:
        async for info in store.list(workspace_prefix(workspace)):
            await store.delete(info.key)

    _with_store(server, work)


def _shell(command: str) -> None:
    subprocess.run(["bash", "-o", "pipefail", "-ec", command], check=True, stdout=subprocess.DEVNULL)


def _pipe(server: S3Server, tree: Path) -> None:
    s5cmd = f"s5cmd --endpoint-url {server.endpoint} pipe s3://{server.bucket}/peer.tar"
    _shell(f"tar --format=pax --xattrs -cf - -C {tree} . | {s5cmd}")


def _first_of(server: S3Server, tree: Path) -> Callable[[], Timed]:
    """A workspace of its own each time, so that nothing can be copied; forgotten when it was measured."""
    numbers = itertools.count()

    def side() -> Timed:
        workspace = Workspace("bench", f"first-{next(numbers)}")
        took = timed(lambda: _backup(server, tree, workspace))
        _forget(server, workspace)
        return took

    return side


@contextlib.contextmanager
def _first_warm(_directory: Path) -> Iterator[Sides]:
    tree = content_tree.tree()
    with content_tree.server() as server:
        yield Sides(ours=_first_of(server, tree), peer=lambda: timed(lambda: _pipe(server, tree)))


@contextlib.contextmanager
def _first_cold(_directory: Path) -> Iterator[Sides]:
    tree = content_tree.tree()
    with content_tree.server() as server:
        first = _first_of(server, tree)

        def ours() -> Timed:
            content_tree.drop_caches()
            return first()

        def peer() -> Timed:
            content_tree.drop_caches()
            return timed(lambda: _pipe(server, tree))

        yield Sides(ours=ours, peer=peer)


class _Changing:
    """A workspace whose tree changes a little before each backup."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self.tree = content_tree.tree()
        self._files = sorted(self.tree.rglob("*.py"))
        self._rounds = itertools.count()
        self.changed = round(sum(len(files) for _, _, files in os.walk(self.tree)) * _CHANGED_SHARE)
        self.result = _backup(server, self.tree, _W)

    def back_up(self) -> Timed:
        for path in random.Random(next(self._rounds)).sample(self._files, self.changed):
            path.write_bytes(path.read_bytes() + b"# changed\n")
        os.sync()
        time.sleep(0.05)  # past the racy window, as any real second backup is

        def work() -> None:
            self.result = _backup(self._server, self.tree, _W)

        return timed(work)


@contextlib.contextmanager
def _second_time(_directory: Path) -> Iterator[Sides]:
    with content_tree.server() as server:
        changing = _Changing(server)
        yield Sides(ours=changing.back_up, peer=_first_of(server, changing.tree))


@contextlib.contextmanager
def _copies_alone(_directory: Path) -> Iterator[Sides]:
    """What a second backup cannot go below on this machine: the store's own copying of the same bytes, asked
    for with nothing else running.
    """
    with content_tree.server() as server:
        changing = _Changing(server)

        def ours() -> Timed:
            snapshot = changing.result.snapshot
            return timed(lambda: _copy(server, f"{_PREFIX}/{snapshot.tar_key}", snapshot.tar_bytes))

        yield Sides(ours=ours, peer=_first_of(server, changing.tree))


def _copy(server: S3Server, key: str, size_bytes: int) -> None:
    target = {"Bucket": server.bucket, "Key": "copies"}
    with contextlib.closing(s3_client(server.endpoint, connections=4)) as client:
        upload_id = client.create_multipart_upload(**target)["UploadId"]

        def copy(start: int) -> None:
            stop = min(size_bytes, start + _COPY_BYTES)
            client.upload_part_copy(
                **target,
                UploadId=upload_id,
                PartNumber=start // _COPY_BYTES + 1,
                CopySource={"Bucket": server.bucket, "Key": key},
                CopySourceRange=f"bytes={start}-{stop - 1}",
            )

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(copy, range(0, size_bytes, _COPY_BYTES)))
        client.abort_multipart_upload(**target, UploadId=upload_id)


@functools.cache
def _second_result() -> tuple[BackupResult, int]:
    """(what a second backup did, how many files had changed)."""
    with content_tree.server() as server:
        changing = _Changing(server)
        changing.back_up()
        return changing.result, changing.changed


@contextlib.contextmanager
def _second_bytes(_directory: Path) -> Iterator[Sides]:
    result, _ = _second_result()
    yield Sides(ours=lambda: float(result.sent_bytes), peer=lambda: float(result.snapshot.tar_bytes))


@contextlib.contextmanager
def _second_opened(_directory: Path) -> Iterator[Sides]:
    result, changed = _second_result()
    yield Sides(ours=lambda: float(result.files_read), peer=lambda: float(changed))


@contextlib.contextmanager
def _restores(directory: Path) -> Iterator[Sides]:
    """Each into a fresh directory, with nothing of the other's left to be written back; nothing is deleted
    meanwhile, which would slow inode allocation.
    """
    numbers = itertools.count()
    tree = content_tree.tree()
    with content_tree.server() as server:
        _backup(server, tree, _W)
        _pipe(server, tree)

        def ours() -> Timed:
            asked = RestoreRequest(directory / f"ours-{next(numbers)}", _W, sync=False)
            os.sync()
            return timed(lambda: _with_store(server, lambda store: restore(asked, store)))

        def peer() -> Timed:
            target = directory / f"peer-{next(numbers)}"
            target.mkdir()
            s5cmd = f"s5cmd --endpoint-url {server.endpoint} cat s3://{server.bucket}/peer.tar"
            os.sync()
            return timed(lambda: _shell(f"{s5cmd} | tar -xp --xattrs -f - -C {target}"))

        yield Sides(ours=ours, peer=peer)


@dataclass(frozen=True)
class _Program:
    """What one run of the `lapstrake` program said and took."""

    document: dict
    seconds: float
    memory_mib: float


def _lapstrake(server: S3Server, *arguments: str | Path) -> _Program:
    store = ["--store", f"s3://{server.bucket}/{_PREFIX}", "--s3-endpoint", server.endpoint]
    command = [
        Path(sys.executable).with_name("lapstrake"),
        *arguments,
        "--workspace",
        str(_W),
        *store,
        "--json",
    ]
    started_s = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", _WEIGHED, *command], stdout=subprocess.PIPE, check=True)
    document, _, peak_kib = ran.stdout.decode().strip().rpartition("\n")
    return _Program(json.loads(document), time.perf_counter() - started_s, int(peak_kib) / 1024)


def _memory(
    make: Callable[[], Path], *, restores: bool
) -> Callable[[Path], contextlib.AbstractContextManager]:
    """The most memory that one process of a backup, or of the restore of it, holds."""

    @contextlib.contextmanager
    def sides(directory: Path) -> Iterator[Sides]:
        with content_tree.server() as server:

            @functools.cache
            def ours() -> float:
                ran = _lapstrake(server, "backup", make())
                if restores:
                    ran = _lapstrake(server, "restore", directory / "restored")
                print(f"  {ran.document['entries']:,} entries in {ran.seconds:.1f} s", file=sys.stderr)
                return ran.memory_mib

            yield Sides(ours=ours, peer=lambda: _MEMORY_MIB)

    return sides


@contextlib.contextmanager
def _one_file(directory: Path) -> Iterator[Sides]:
    """Requests for the objects of a snapshot, to restore one file of a backup of more than 1 GiB."""
    numbers = itertools.count()
    tree = content_tree.tree()
    wanted = str(min(tree.rglob("*.py")).relative_to(tree))
    with content_tree.server() as server:
        _backup(server, tree, _W)

        def ours() -> float:
            asked: list[str] = []

            async def work(store: MultipartStore) -> None:
                counting = _Counting(store, asked)
                await restore(RestoreRequest(directory / str(next(numbers)), _W, only=[wanted]), counting)

            _with_store(server, work)
            return float(sum("/data/" in key or "/index/" in key for key in asked))

        yield Sides(ours=ours, peer=lambda: 3.0)


class _Counting:
    """A store that notes which keys are opened."""

    def __init__(self, inner: MultipartStore, asked: list[str]) -> None:
        self._inner = inner
        self._asked = asked

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def open(self, key: str, *arguments: object, **named: object) -> object:
        self._asked.append(key)
        return self._inner.open(key, *arguments, **named)


def benches() -> list[Bench]:
    pipe, cat, most = "tar | s5cmd pipe", "s5cmd cat | tar -x", "200 MiB"
    first, second = "our first", "content: second backup, 1 % changed"
    found = [Bench("content: first backup, warm", pipe, "s", "<= 1.0", _first_warm, _NEEDS, rounds=3)]
    if content_tree.can_drop_caches():
        found.append(Bench("content: first backup, cold", pipe, "s", "<= 0.8", _first_cold, _NEEDS, rounds=3))
    found += [
        Bench(second, first, "s", "<= 0.25", _second_time, ("minio",), rounds=3),
        Bench(f"{second}: the store's copying alone", first, "s", "", _copies_alone, ("minio",), rounds=3),
        Bench(f"{second}: sent", "all", "B", "<= 0.03", _second_bytes, ("minio",), rounds=1),
        Bench(f"{second}: files opened", "files changed", "", "<= 1.0", _second_opened, ("minio",), rounds=1),
        Bench("content: restore", cat, "s", "<= 0.8", _restores, _NEEDS, rounds=7),
        Bench("content: one file of 1 GiB", "requests", "", "<= 0.67", _one_file, ("minio",), rounds=1),
    ]
    trees: list[tuple[str, Callable[[], Path]]] = [("", content_tree.tree)]
    if os.environ.get("LAPSTRAKE_BENCH_FULL"):
        ten = lambda: content_tree.tree(10)  # noqa: E731
        trees += [(", ten times the files", ten), (", 1,000,000 files", content_tree.million)]
    for what, make in trees:
        for name, restores in (("backup", False), ("restore", True)):
            sides = _memory(make, restores=restores)
            found.append(
                Bench(f"content: memory of a {name}{what}", most, "MiB", "<= 1.0", sides, ("minio",), 1)
            )
    return found
