"""Backup and restore against GNU tar and s5cmd, on MinIO on loopback.

The tree is 40,000 small files and two of 512 MiB; ``LAPSTRAKE_BENCH_SCALE`` (a fraction) makes it smaller.
Peers: ``tar --format=pax --xattrs -cf - | s5cmd pipe`` and ``s5cmd cat | tar -xp``. Neither side syncs what
it restores; ours does by default.
"""

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from content.backup import BackupRequest, BackupResult, back_up
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.objects.opening import StoreOptions, open_store
from content.restore import RestoreRequest, RestoreResult, restore
from servicekit.throttle import Throttle
from tests.bench.harness import Bench, Sides
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, s3_server

_SCALE = float(os.environ.get("LAPSTRAKE_BENCH_SCALE", "1"))
_SMALL_FILES = int(40_000 * _SCALE)
_LARGE_BYTES = int((512 << 20) * _SCALE)
_W = Workspace("bench", "tree")
_NEEDS = ("minio", "s5cmd", "tar")


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[S3Server]:
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = ACCESS_KEY, SECRET_KEY
    os.environ["AWS_REGION"] = "us-east-1"
    with s3_server("minio", directory / "s3") as server:
        yield server


def _tree(root: Path) -> Path:
    rng = random.Random(5)
    noise = rng.randbytes(1 << 20)
    root.mkdir()
    for number in range(_SMALL_FILES):
        if number % 20 == 0:
            directory = root / f"{number // 400:03}" / f"package-{number // 20:05}"
            directory.mkdir(parents=True)
        start, size = rng.randrange(1 << 19), int(rng.lognormvariate(7.5, 1.3)) % 200_000
        (directory / f"module_{number:06}.js").write_bytes(noise[start : start + size])
    for name in ("one.bin", "two.bin"):
        with (root / name).open("wb") as file:
            for _ in range(max(1, _LARGE_BYTES >> 20)):
                file.write(noise)
    os.sync()
    return root


async def _with_store(server: S3Server, work, *, limit: Throttle | None = None):
    options = StoreOptions(s3_endpoint=server.endpoint, sent=limit or Throttle())
    async with open_store(f"s3://{server.bucket}/ours", options) as store:
        return await work(store)


def _backup(server: S3Server, tree: Path, workspace: Workspace) -> BackupResult:
    async def work(store: MultipartStore) -> BackupResult:
        return await back_up(BackupRequest(tree, workspace), store)

    return asyncio.run(_with_store(server, work))


def _restore(server: S3Server, target: Path, workspace: Workspace) -> RestoreResult:
    async def work(store: MultipartStore) -> RestoreResult:
        return await restore(RestoreRequest(target, workspace, sync=False), store)

    return asyncio.run(_with_store(server, work))


def _shell(command: str) -> None:
    subprocess.run(["bash", "-o", "pipefail", "-ec", command], check=True, stdout=subprocess.DEVNULL)


def _pipe(server: S3Server, tree: Path) -> None:
    s5cmd = f"s5cmd --endpoint-url {server.endpoint} pipe s3://{server.bucket}/peer.tar"
    _shell(f"tar --format=pax --xattrs -cf - -C {tree} . | {s5cmd}")


@contextlib.contextmanager
def _first_backup(directory: Path) -> Iterator[Sides]:
    """A workspace of its own each time, so that nothing can be copied."""
    numbers = itertools.count()
    with _server(directory) as server:
        tree = _tree(directory / "tree")
        yield Sides(
            ours=lambda: _discard(_backup(server, tree, Workspace("bench", f"first-{next(numbers)}"))),
            peer=lambda: _pipe(server, tree),
        )


def _discard(_result: object) -> None:
    return None


@contextlib.contextmanager
def _second_backup(directory: Path) -> Iterator[Sides]:
    """After 1 % of the files changed, against our own first backup in the same run."""
    rounds = itertools.count()
    with _server(directory) as server:
        tree = _tree(directory / "tree")
        _backup(server, tree, _W)
        files = sorted(tree.rglob("*.js"))

        def ours() -> float:
            for path in random.Random(next(rounds)).sample(files, max(1, len(files) // 100)):
                path.write_bytes(path.read_bytes() + b"// changed\n")
            os.sync()
            time.sleep(0.05)  # past the racy window, as any real second backup is
            started_s = time.perf_counter()
            result = _backup(server, tree, _W)
            took_s = time.perf_counter() - started_s
            share = result.sent_bytes / result.snapshot.tar_bytes
            print(f"  second backup: {share:.2%} of the bytes sent, {result.files_read} files read")
            return took_s

        def first() -> None:
            _backup(server, tree, Workspace("bench", f"again-{next(rounds)}"))

        yield Sides(ours=ours, peer=first)


@contextlib.contextmanager
def _restores(directory: Path) -> Iterator[Sides]:
    """Each into a fresh directory; nothing is deleted meanwhile, which would slow inode allocation."""
    numbers = itertools.count()
    with _server(directory) as server:
        tree = _tree(directory / "tree")
        _backup(server, tree, _W)
        _pipe(server, tree)

        def peer() -> None:
            target = directory / f"peer-{next(numbers)}"
            target.mkdir()
            s5cmd = f"s5cmd --endpoint-url {server.endpoint} cat s3://{server.bucket}/peer.tar"
            _shell(f"{s5cmd} | tar -xp --xattrs -f - -C {target}")

        yield Sides(
            ours=lambda: _discard(_restore(server, directory / f"ours-{next(numbers)}", _W)),
            peer=peer,
        )


@contextlib.contextmanager
def _throttle(directory: Path) -> Iterator[Sides]:
    """Bytes per second reached, against the 20 MiB/s that were asked for."""
    numbers = itertools.count()
    asked = 20 << 20
    with _server(directory) as server:
        tree = directory / "tree"
        tree.mkdir()
        (tree / "file").write_bytes(os.urandom(100 << 20))
        os.sync()

        def ours() -> float:
            async def work(store: MultipartStore) -> float:
                started_s = time.perf_counter()
                wanted = BackupRequest(tree, Workspace("bench", f"throttled-{next(numbers)}"))
                result = await back_up(wanted, store)
                return result.sent_bytes / (time.perf_counter() - started_s)

            return asyncio.run(_with_store(server, work, limit=Throttle(asked)))

        yield Sides(ours=ours, peer=lambda: float(asked))


def benches() -> list[Bench]:
    pipe, cat = "tar | s5cmd pipe", "s5cmd cat | tar -x"
    return [
        Bench("content: first backup, warm", pipe, "s", "<= 1.0", _first_backup, _NEEDS, rounds=3),
        Bench("content: second backup, 1 % changed", "our first", "s", "<= 0.25", _second_backup, _NEEDS, 3),
        Bench("content: restore", cat, "s", "<= 0.8", _restores, _NEEDS, rounds=3),
        Bench("content: throttle", "20 MiB/s asked", "B/s", ">= 0.95", _throttle, ("minio",), rounds=3),
    ]
