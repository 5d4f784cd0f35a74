"""Generators of load that do not get in the way: wrk, and readers that do next to nothing in Python.

Both sides of a comparison are asked by the same one.
"""

import concurrent.futures
import contextlib
import hashlib
import multiprocessing
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ocikit.media_types import OCI_MANIFEST
from tests.support.components import program

CONNECTIONS = 16
SECONDS = 2
_READ_BYTES = 1 << 20


def requests_per_s(
    address: str, path: str, *, connections: int = CONNECTIONS, cores: Sequence[int] | None = None
) -> float:
    """wrk with one thread, which takes about a tenth of what any server here takes for an answer."""
    argv = [program("wrk"), "-t1", f"-c{connections}", f"-d{SECONDS}s"]
    argv += ["-H", f"Accept: {OCI_MANIFEST}, */*", f"http://{address}{path}"]
    if cores is not None:
        argv = ["taskset", "-c", ",".join(map(str, cores)), *argv]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert "Non-2xx" not in said, said
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate is not None, said
    return float(rate[1])


def megabytes_per_s(address: str, path: str) -> float:
    """One stream into a buffer that is thrown away."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        buffer, received, started_s = bytearray(_READ_BYTES), 0, time.perf_counter()
        while count := connection.recv_into(buffer):
            received += count
        return received / (time.perf_counter() - started_s) / 1e6


@dataclass(frozen=True, slots=True)
class Wanted:
    """Bytes ``start`` up to ``stop`` of a blob; all of it when ``stop`` is 0."""

    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one reader got; times are since it was told to begin."""

    sha256: str
    size_bytes: int
    first_byte_s: float
    wall_s: float


def fetch(address: str, path: str, wanted: Wanted) -> Fetched:
    """One reader that hashes what it gets; most of its time it holds no lock of the interpreter's."""
    host, _, port = address.partition(":")
    asked = f"Range: bytes={wanted.start}-{wanted.stop - 1}\r\n" if wanted.stop else ""
    hasher, size_bytes, first_s, started_s = hashlib.sha256(), 0, 0.0, time.perf_counter()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{asked}Connection: close\r\n\r\n".encode())
        buffer, head = memoryview(bytearray(_READ_BYTES)), b""
        while count := connection.recv_into(buffer):
            data = buffer[:count]
            if not size_bytes:
                head += data
                before, separator, rest = head.partition(b"\r\n\r\n")
                if not separator or not rest:
                    continue
                assert before[9:12] in {b"200", b"206"}, before
                data, first_s = memoryview(rest), time.perf_counter() - started_s
            hasher.update(data)
            size_bytes += len(data)
    return Fetched(hasher.hexdigest(), size_bytes, first_s, time.perf_counter() - started_s)


def _fetch_all(address: str, path: str, wanted: Sequence[Wanted]) -> list[Fetched]:
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as readers:
        return list(readers.map(lambda item: fetch(address, path, item), wanted))


Fetch = Callable[[str, str, Sequence[Wanted]], list[Fetched]]


@contextlib.contextmanager
def readers() -> Iterator[Fetch]:
    """Fetches with a thread per reader in a process of its own, which is up when the block begins."""
    spawning = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawning) as pool:
        pool.submit(os.getpid).result()
        yield lambda address, path, wanted: pool.submit(_fetch_all, address, path, wanted).result()
