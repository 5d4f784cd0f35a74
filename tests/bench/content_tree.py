"""The tree that backups are measured on, and the servers that hold them.

40,000 files or more of a real site-packages (this interpreter's, as often as it takes), and two of 512 MiB.
The server's data is kept in memory where there is room, as if it were another machine's disk.
"""

import atexit
import contextlib
import functools
import os
import random
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.bench import scratch
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, S3Server, s3_server

SMALL_FILES = 40_000
LARGE_FILES = 2
LARGE_BYTES = 512 << 20
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@functools.cache
def _shared() -> Path:
    until_the_end = contextlib.ExitStack()
    atexit.register(until_the_end.close)
    return until_the_end.enter_context(scratch.directory())


@functools.cache
def tree(times: int = 1) -> Path:
    """Made once for all benchmarks, which may change its files but not their number; ``times`` as many small
    files.
    """
    root = _shared() / f"times-{times}"
    root.mkdir()
    packages, count, copies = sysconfig.get_paths()["purelib"], 0, 0
    while count < SMALL_FILES * times:
        copies += 1
        shutil.copytree(packages, root / f"copy-{copies:03}", symlinks=True)
        count += sum(len(files) for _, _, files in os.walk(root / f"copy-{copies:03}"))
    noise = random.Random(5).randbytes(1 << 20)
    for number in range(LARGE_FILES):
        with (root / f"large-{number}.bin").open("wb") as file:
            for _ in range(LARGE_BYTES >> 20):
                file.write(noise)
    os.sync()
    return root


@functools.cache
def million() -> Path:
    """1,000,000 files of up to 1,600 bytes in 10,000 directories."""
    root = _shared() / "million"
    noise = random.Random(6).randbytes(1 << 16)
    for number in range(10_000):
        directory = root / f"group-{number // 100:02}" / f"package-{number % 100:02}"
        directory.mkdir(parents=True)
        for member in range(100):
            start = (number * 7919 + member * 31) % 60_000
            (directory / f"module-{member:02}.js").write_bytes(noise[start : start + 100 + start % 1500])
    os.sync()
    return root


def forget(root: Path) -> None:
    """Makes room; for a tree that nobody else measures."""
    shutil.rmtree(root)


@contextlib.contextmanager
def server() -> Iterator[S3Server]:
    """MinIO, empty."""
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = ACCESS_KEY, SECRET_KEY
    os.environ["AWS_REGION"] = "us-east-1"
    room = scratch.MEMORY.is_dir() and shutil.disk_usage(scratch.MEMORY).free > 8 << 30
    with (
        scratch.directory(in_memory=room) as root,
        s3_server("minio", root) as running,
    ):
        yield running


def can_drop_caches() -> bool:
    return os.access(_DROP_CACHES, os.W_OK)


def drop_caches() -> None:
    """What is on disk must be read from there again. Needs root."""
    os.sync()
    _DROP_CACHES.write_text("3", encoding="ascii")
