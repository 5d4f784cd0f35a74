"""A disk with one head, as a block device of this kernel's: 4 ms for each request and 125 MB/s.

nbdkit answers one request at a time from memory, nbdfuse shows that as a file, a loop device makes it a disk
again; whoever reads it waits as for a real one, which pressure stall information sees. Needs root.
"""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

COMPONENTS = ("nbdkit", "nbdfuse", "losetup", "mkfs.ext4")
_ACCESS = "4ms"
_BITS_S = "1G"
_PATIENCE_S = 10.0


def is_possible() -> bool:
    """Where the programs are there as well."""
    return Path("/dev/fuse").exists() and Path("/dev/loop-control").exists()


@contextlib.contextmanager
def bounded_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Where an empty ext4 of it is mounted; its bytes are in ``directory``, which should be in memory."""
    image, mounted = directory / "image", directory / "mounted"
    with image.open("wb") as file:
        file.truncate(size_bytes)
    mounted.mkdir()
    with _served(image) as disk, _loop(disk) as device:
        _run(
            "mkfs.ext4",
            "-q",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-O",
            "^has_journal",
            device,
        )
        _run("mount", "-o", "noatime", device, str(mounted))
        try:
            yield mounted
        finally:
            _run("umount", str(mounted))


@contextlib.contextmanager
def _served(image: Path) -> Iterator[Path]:
    socket, disk = image.with_name("socket"), image.with_name("disk")
    disk.touch()
    filters = [f"--filter={name}" for name in ("noparallel", "delay", "rate")]
    settings = ["serialize=requests", f"delay-read={_ACCESS}", f"delay-write={_ACCESS}", f"rate={_BITS_S}"]
    command = ["nbdkit", "--exit-with-parent", "-f", "-U", socket, *filters, "file", image, *settings]
    with _program(command):
        _until(socket.exists, "nbdkit")
        # more connections than one, and nbdfuse's would overtake each other
        with _program(["nbdfuse", "-C", "1", disk, f"nbd+unix:///?socket={socket}"]):
            _until(lambda: disk.stat().st_size > 0, "nbdfuse")
            try:
                yield disk
            finally:
                _until(lambda: _is_unmounted(disk), "unmounting after the loop device")


@contextlib.contextmanager
def _program(command: list[str | Path]) -> Iterator[None]:
    with subprocess.Popen(command) as running:
        try:
            yield
        finally:
            running.terminate()


@contextlib.contextmanager
def _loop(file: Path) -> Iterator[str]:
    """Past the page cache below it, or that would answer in the disk's place."""
    device = _run("losetup", "--find", "--show", "--direct-io=on", str(file)).strip()
    try:
        yield device
    finally:
        _run("losetup", "--detach", device)


def _is_unmounted(path: Path) -> bool:
    """The kernel lets go of a loop device's file a moment after it was detached."""
    return subprocess.run(["umount", path], check=False, stderr=subprocess.DEVNULL).returncode == 0


def _until(ready: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + _PATIENCE_S
    while not ready():
        if time.monotonic() > ends_s:
            raise TimeoutError(f"{what} took more than {_PATIENCE_S} s")
        time.sleep(0.02)


def _run(*command: str) -> str:
    program = shutil.which(command[0]) or command[0]
    return subprocess.run([program, *command[1:]], check=True, stdout=subprocess.PIPE, text=True).stdout
