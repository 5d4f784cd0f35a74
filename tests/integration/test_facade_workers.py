"""Several worker processes on one port and one cache."""

import asyncio
import http.client
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.facade import FacadeProcess, facade_process, metric_value
from tests.support.processes import ProcessFailed
from tests.support.scripted_registry import scripted_registry

WORKERS = 3


def got(url: str, start: int = 0) -> bytes:
    request = urllib.request.Request(url)  # noqa: S310 (our own http URL)
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 (our own http URL)
        body: bytes = answer.read()
    return body


def resumed(url: str, size: int) -> bytes:
    """As containerd does it: a break is continued where it happened."""
    data = b""
    while len(data) < size:
        try:
            data += got(url, len(data))
        except http.client.IncompleteRead as broken:
            data += broken.partial
        except (ConnectionError, urllib.error.URLError):
            continue
    return data


def owner_of_the_claim(directory: Path) -> int:
    """The process that says it downloads the one blob there."""
    (claim,) = directory.glob("*.claim")
    return int(claim.read_text().splitlines()[1])


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(fact):
            await asyncio.sleep(0.01)


async def test_workers_share_one_download_and_survive_the_death_of_its_owner(tmp_path: Path) -> None:
    """The upstream holds back the rest until the downloading worker is dead; every reader ends well."""
    data = os.urandom(12 << 20)
    async with scripted_registry() as upstream:
        digest = upstream.add_blob(data)
        upstream.gate, upstream.gate_at = asyncio.Event(), 4 << 20
        arguments = ("--upstream", f"hub.test={upstream.origin}", "--workers", str(WORKERS))
        with facade_process(tmp_path, *arguments) as facade, ThreadPoolExecutor(8) as threads:
            url, loop = f"{facade.url}/v2/x/blobs/{digest}", asyncio.get_running_loop()
            readers = [loop.run_in_executor(threads, resumed, url, len(data)) for _ in range(8)]
            await until(lambda: upstream.sent_bytes[digest] >= 4 << 20)
            assert upstream.count("GET", "/blobs/") == 1
            os.kill(owner_of_the_claim(tmp_path / "cache" / "partial"), signal.SIGKILL)
            await until(lambda: upstream.count("GET", "/blobs/") > 1)
            upstream.gate.set()
            assert all(body == data for body in await asyncio.gather(*readers))
            # the dead one's share, one download, and what ended requests had on their way
            assert upstream.sent_bytes[digest] <= 2 * len(data)


def series(facade: FacadeProcess, name: str) -> dict[str, float]:
    """A counter's sums by worker."""
    text = got(f"{facade.url}/metrics").decode()
    numbers = sorted(set(re.findall(r'worker="(\d+)"', text)))
    return {number: metric_value(text, name, worker=number) for number in numbers}


@pytest.fixture
def facade(tmp_path: Path) -> Iterator[FacadeProcess]:
    with facade_process(tmp_path, "--upstream", "x=oci:/nowhere", "--workers", str(WORKERS)) as running:
        yield running


def counts(facade: FacadeProcess) -> dict[str, float]:
    return series(facade, "facade_http_request_seconds_count")


async def test_any_worker_tells_the_metrics_of_all(facade: FacadeProcess) -> None:
    for _ in range(30):
        await asyncio.to_thread(got, f"{facade.url}/v2/")
    for _ in range(5):
        told = await asyncio.to_thread(counts, facade)
        assert set(told) == {"0", "1", "2"}
        assert sum(told.values()) == 30


async def test_worker_that_replaces_a_dead_one_takes_its_place_in_the_metrics(facade: FacadeProcess) -> None:
    def began_s(number: str) -> float:
        try:
            return series(facade, "process_start_time_seconds").get(number, 0.0)
        except OSError:  # the connection was one of the dead worker's
            return 0.0

    first_s = await asyncio.to_thread(began_s, "0")
    children = Path(f"/proc/{facade.process.pid}/task/{facade.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    await until(lambda: began_s("0") not in {0.0, first_s})
    await until(lambda: set(counts(facade)) == {"0", "1", "2"})


def test_workers_that_cannot_begin_end_the_facade_with_the_status_of_the_cause(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "catalog.sqlite").write_bytes(b"not a database" * 100)
    arguments = ("--upstream", "x=oci:/nowhere", "--workers", str(WORKERS))
    with pytest.raises(ProcessFailed, match="code 11"), facade_process(tmp_path, *arguments):
        pass
    log = (tmp_path / "facade.log").read_text()
    assert "error: " in log
    assert "catalog.sqlite" in log
    assert "Traceback" not in log


async def test_workers_end_when_the_process_that_began_them_is_killed(facade: FacadeProcess) -> None:
    children = Path(f"/proc/{facade.process.pid}/task/{facade.process.pid}/children").read_text().split()
    assert len(children) == WORKERS
    os.kill(facade.process.pid, signal.SIGKILL)
    await until(lambda: not any(is_alive(child) for child in children))


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
