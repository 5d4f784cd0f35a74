"""Blobs through the facade: what clients get, what the upstream is asked, and what stays."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from ocikit.digest import Digest
from tests.support.facade import RunningFacade, running_facade
from tests.support.scripted_registry import Fault, ScriptedRegistry, scripted_registry

SMALL = bytes(range(256)) * 39
LARGE = os.urandom(3 << 20)


@dataclass(frozen=True)
class Pair:
    upstream: ScriptedRegistry
    facade: RunningFacade
    cache: Path

    def cached(self, digest: Digest) -> Path:
        return self.cache / "blobs" / digest.algorithm / digest.encoded

    async def blob(
        self, digest: Digest, **headers: str
    ) -> tuple[int, "aiohttp.typedefs.LooseHeaders", bytes]:
        return await self.facade.get(f"/v2/team/app/blobs/{digest}", **headers)


async def stored(path: Path) -> Path:
    """Returns when a blob, already sent to its client, has got its final name too."""
    async with asyncio.timeout(10):
        while not path.exists():
            await asyncio.sleep(0.01)
    return path


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with (
        scripted_registry() as upstream,
        running_facade(tmp_path / "cache", upstreams={"hub.test": upstream.origin}) as facade,
    ):
        yield Pair(upstream, facade, tmp_path / "cache")


@pytest.mark.parametrize("data", [SMALL, LARGE, b"", b"x"], ids=["small", "large", "empty", "one byte"])
async def test_whole_blob_cold_and_warm(pair: Pair, data: bytes) -> None:
    digest = pair.upstream.add_blob(data)
    for _ in range(3):
        status, headers, body = await pair.blob(digest)
        assert (status, body) == (200, data)
        assert headers["Docker-Content-Digest"] == digest
        assert headers["ETag"] == f'"{digest}"'
        assert headers["Accept-Ranges"] == "bytes"
        assert headers["Content-Length"] == str(len(data))
        assert "Content-Encoding" not in headers
    assert pair.upstream.count("GET", "/blobs/") == 1
    assert pair.upstream.count("HEAD", "/blobs/") == 0


async def test_head_tells_length_and_digest_without_downloading(pair: Pair) -> None:
    digest = pair.upstream.add_blob(LARGE)
    async with pair.facade.session.head(f"/v2/team/app/blobs/{digest}") as response:
        assert response.status == 200
        assert response.headers["Content-Length"] == str(len(LARGE))
        assert response.headers["Docker-Content-Digest"] == digest
    assert pair.upstream.count("GET", "/blobs/") == 0


RANGES = {
    "single": ("bytes=500-1499", slice(500, 1500)),
    "open": ("bytes=500-", slice(500, None)),
    "suffix": ("bytes=-500", slice(-500, None)),
    "clipped": ("bytes=2000-99999999", slice(2000, None)),
    "first byte": ("bytes=0-0", slice(0, 1)),
    "last byte": ("bytes=-1", slice(-1, None)),
    "whole by range": ("bytes=0-", slice(0, None)),
}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("header", "expected"), RANGES.values(), ids=RANGES)
async def test_range_cold_and_warm(pair: Pair, data: bytes, header: str, expected: slice) -> None:
    digest = pair.upstream.add_blob(data)
    start, stop, _ = expected.indices(len(data))
    for _ in range(2):
        status, headers, body = await pair.blob(digest, Range=header)
        assert (status, body) == (206, data[expected])
        assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(data)}"


@pytest.mark.parametrize("header", ["bytes=9999999-", "bytes=9999999-9999999,8888888-"], ids=["one", "all"])
async def test_only_an_unsatisfiable_range_is_416(pair: Pair, header: str) -> None:
    digest = pair.upstream.add_blob(SMALL)
    status, headers, body = await pair.blob(digest, Range=header)
    assert status == 416
    assert headers["Content-Range"] == f"bytes */{len(SMALL)}"
    assert b"SIZE_INVALID" in body


@pytest.mark.parametrize("header", ["bytes=5-3", "items=0-1", "bytes=a-b", "bytes="], ids=str)
async def test_malformed_range_is_ignored(pair: Pair, header: str) -> None:
    digest = pair.upstream.add_blob(SMALL)
    assert (await pair.blob(digest, Range=header))[::2] == (200, SMALL)


def parts_of(headers: "aiohttp.typedefs.LooseHeaders", body: bytes) -> list[tuple[str, bytes]]:
    boundary = re.search(r"boundary=(\S+)", dict(headers)["Content-Type"])  # type: ignore[arg-type] # a multidict
    assert boundary is not None
    pieces = body.split(f"\r\n--{boundary[1]}".encode())
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        head, _, data = piece.partition(b"\r\n\r\n")
        content_range = re.search(rb"Content-Range: (.*)", head)
        assert content_range is not None
        found.append((content_range[1].decode().strip(), data))
    return found


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_several_ranges_as_zstd_chunked_asks(pair: Pair, data: bytes) -> None:
    digest = pair.upstream.add_blob(data)
    for _ in range(2):
        status, headers, body = await pair.blob(digest, Range="bytes=0-9, 100-199,-5")
        assert status == 206
        assert headers["Content-Length"] == str(len(body))
        size = len(data)
        assert parts_of(headers, body) == [
            (f"bytes 0-9/{size}", data[:10]),
            (f"bytes 100-199/{size}", data[100:200]),
            (f"bytes {size - 5}-{size - 1}/{size}", data[-5:]),
        ]


async def test_unsatisfiable_members_of_a_set_are_left_out(pair: Pair) -> None:
    digest = pair.upstream.add_blob(SMALL)
    status, headers, body = await pair.blob(digest, Range="bytes=0-9,99999999-")
    assert (status, body) == (206, SMALL[:10])
    assert headers["Content-Range"].startswith("bytes 0-9/")  # type: ignore[call-overload,index,union-attr] # a multidict


async def test_a_thousand_ranges_are_served(pair: Pair) -> None:
    digest = pair.upstream.add_blob(LARGE)
    asked = ",".join(f"{at}-{at + 9}" for at in range(0, 1024 * 100, 200))
    status, headers, body = await pair.blob(digest, Range=f"bytes={asked}")
    assert status == 206
    assert [data for _, data in parts_of(headers, body)] == [
        LARGE[at : at + 10] for at in range(0, 102400, 200)
    ]


async def test_conditions(pair: Pair) -> None:
    digest = pair.upstream.add_blob(SMALL)
    assert (await pair.blob(digest, If_None_Match=f'"{digest}"'))[0] == 304
    assert (await pair.blob(digest, If_Range=f'"{digest}"', Range="bytes=0-0"))[::2] == (206, SMALL[:1])
    assert (await pair.blob(digest, If_Range='"another"', Range="bytes=0-0"))[::2] == (200, SMALL)


async def test_content_coding_is_never_offered(pair: Pair) -> None:
    digest = pair.upstream.add_blob(LARGE)
    _, headers, body = await pair.blob(digest, Accept_Encoding="zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")
    assert "Content-Encoding" not in headers  # type: ignore[operator] # a multidict
    assert body == LARGE


# ----- one download, however many ask -----


async def test_fifty_mixed_clients_cost_one_download(pair: Pair) -> None:
    data = os.urandom(32 << 20)
    digest = pair.upstream.add_blob(data)
    pair.upstream.bytes_per_s = 32 << 20
    starts = [0 if number % 2 else (number * 1_314_159) % len(data) for number in range(50)]

    async def one(start: int) -> None:
        status, _, body = await pair.blob(
            digest, **({"Range": f"bytes={start}-{start + 99_999}"} if start else {})
        )
        assert body == (data[start : start + 100_000] if start else data)
        assert status == (206 if start else 200)

    await asyncio.gather(*(one(start) for start in starts))
    assert pair.upstream.sent_bytes[digest] <= 1.02 * len(data)


async def test_parallel_ranges_as_containerd_2_asks(pair: Pair) -> None:
    """First `bytes=0-`, then open-ended ranges that are closed after one chunk each."""
    data, chunk = os.urandom(8 << 20), 2 << 20
    digest = pair.upstream.add_blob(data)

    async def worker(number: int) -> bytes:
        headers = {"Range": f"bytes={number * chunk}-"}
        async with pair.facade.session.get(f"/v2/team/app/blobs/{digest}", headers=headers) as response:
            assert response.status == 206
            got = await response.content.readexactly(chunk)
            response.close()
            return got

    assert b"".join(await asyncio.gather(*map(worker, range(4)))) == data


async def test_a_client_that_leaves_does_not_disturb_the_others(pair: Pair) -> None:
    digest = pair.upstream.add_blob(LARGE)
    pair.upstream.gate = asyncio.Event()
    path = f"/v2/team/app/blobs/{digest}"
    async with pair.facade.session.get(path) as leaving, pair.facade.session.get(path) as staying:
        await leaving.content.readexactly(1000)
        leaving.close()
        pair.upstream.gate.set()
        assert await staying.read() == LARGE
    assert pair.upstream.count("GET", "/blobs/") == 1


async def test_the_last_client_to_leave_ends_the_download_and_the_next_resumes_it(pair: Pair) -> None:
    data = os.urandom(6 << 20)
    digest = pair.upstream.add_blob(data)
    pair.upstream.bytes_per_s = 8 << 20
    async with pair.facade.session.get(f"/v2/team/app/blobs/{digest}") as response:
        await response.content.readexactly(2 << 20)
        response.close()
    async with asyncio.timeout(10):
        while pair.upstream.open_blobs:
            await asyncio.sleep(0.01)
    already = pair.upstream.sent_bytes[digest]
    assert already < len(data)
    status, _, body = await pair.blob(digest)
    assert (status, body) == (200, data)
    resumed_at = re.fullmatch(r"bytes=(\d+)-", pair.upstream.requests[-1][2])
    assert resumed_at is not None
    assert int(resumed_at[1]) >= 1 << 20


async def test_first_bytes_come_before_the_download_is_complete(pair: Pair) -> None:
    digest = pair.upstream.add_blob(LARGE)
    pair.upstream.gate = asyncio.Event()
    path = f"/v2/team/app/blobs/{digest}"
    async with pair.facade.session.get(path) as response:
        assert await response.content.readexactly(1) == LARGE[:1]
        async with pair.facade.session.get(path) as waiter:
            assert await waiter.content.readexactly(1) == LARGE[:1]
            pair.upstream.gate.set()
            assert await waiter.read() == LARGE[1:]
        assert await response.read() == LARGE[1:]


# ----- faults upstream -----

PASSING_FAULTS = {
    "truncated": [Fault("truncate", 1_000_000)],
    "truncated three times": [Fault("truncate", 500_000)] * 3,
    "reset in mid-body": [Fault("reset", 1_500_000)],
    "500 first": [Fault("status", 500)],
    "502 first": [Fault("status", 502)],
    "429 first": [Fault("status", 429, "0")],
    "ignores Range after a break": [Fault("truncate", 1_000_000), Fault("ignore_range")],
}


@pytest.mark.parametrize("faults", PASSING_FAULTS.values(), ids=PASSING_FAULTS)
async def test_passing_fault_is_not_noticed(pair: Pair, faults: list[Fault]) -> None:
    digest = pair.upstream.add_blob(LARGE)
    pair.upstream.faults = list(faults)
    status, _, body = await pair.blob(digest)
    assert (status, body) == (200, LARGE)
    assert Digest.of((await stored(pair.cached(digest))).read_bytes()) == digest


@pytest.mark.parametrize(
    "fault",
    [Fault("corrupt", 10), Fault("corrupt", 1 << 30), Fault("short"), Fault("long")],
    ids=["first bytes flipped", "last byte flipped", "a byte short", "a byte long"],
)
async def test_wrong_bytes_never_end_as_a_complete_answer(pair: Pair, fault: Fault) -> None:
    digest = pair.upstream.add_blob(LARGE)
    pair.upstream.always = fault
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
        await pair.blob(digest)
    assert not pair.cached(digest).exists()
    async with asyncio.timeout(10):
        while list((pair.cache / "partial").iterdir()):
            await asyncio.sleep(0.01)
    pair.upstream.always = None
    assert (await pair.blob(digest))[::2] == (200, LARGE)


@pytest.mark.parametrize(
    "fault", [Fault("corrupt", 10), Fault("short"), Fault("long")], ids=lambda fault: fault.kind
)
async def test_wrong_small_blob_is_a_clear_error(pair: Pair, fault: Fault) -> None:
    digest = pair.upstream.add_blob(SMALL)
    pair.upstream.always = fault
    status, _, body = await pair.blob(digest)
    assert status == 502
    assert digest in body.decode()
    assert "upstream" in body.decode()
    assert not pair.cached(digest).exists()


@pytest.mark.parametrize(
    ("upstream_status", "status", "code"),
    [
        (401, 403, b"DENIED"),
        (403, 403, b"DENIED"),
        (404, 404, b"BLOB_UNKNOWN"),
        (429, 503, b"UNAVAILABLE"),
        (500, 503, b"UNAVAILABLE"),
    ],
    ids=["401", "403", "404", "429", "500"],
)
async def test_refusals_become_statuses_that_send_clients_on(
    pair: Pair, upstream_status: int, status: int, code: bytes
) -> None:
    digest = pair.upstream.add_blob(LARGE)
    pair.upstream.always = Fault("status", upstream_status, "0")
    found, _, body = await pair.blob(digest)
    assert found == status
    assert code in body


async def test_unknown_blob_is_404_with_an_oci_error(pair: Pair) -> None:
    status, _headers, body = await pair.blob(Digest.of(b"nowhere"))
    assert status == 404
    assert b'"BLOB_UNKNOWN"' in body


async def test_unreachable_upstream_is_503(tmp_path: Path) -> None:
    async with running_facade(tmp_path, upstreams={"hub.test": "http://127.0.0.1:9"}) as facade:
        status, _, body = await facade.get(f"/v2/x/blobs/{Digest.of(b'x')}")
        assert status == 503
        assert b"cannot reach" in body


# ----- the cache itself -----

DAMAGE = {
    "a byte flipped": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "a byte cut": lambda data: data[:-1],
    "a byte more": lambda data: data + b"!",
    "emptied": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_damaged_cache_file_is_fetched_again_and_never_seen(
    tmp_path: Path, damage, data: bytes
) -> None:
    async with scripted_registry() as upstream:
        digest = upstream.add_blob(data)
        upstreams = {"hub.test": upstream.origin}
        async with running_facade(tmp_path, upstreams=upstreams) as facade:
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[2] == data
            path = await stored(tmp_path / "blobs" / "sha256" / digest.encoded)
            await asyncio.to_thread(lambda: path.write_bytes(damage(path.read_bytes())))
        async with running_facade(tmp_path, upstreams=upstreams) as facade:
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[2] == data
            assert await facade.metric("facade_cache_entries_corrupt_total") == 1
        assert (await stored(path)).read_bytes() == data


async def test_budget_evicts_what_was_used_longest_ago(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        blobs = [os.urandom(1 << 20) for _ in range(4)]
        digests = [upstream.add_blob(data) for data in blobs]
        async with running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, cache_max_bytes=3 << 20
        ) as facade:
            for digest in [*digests[:3], digests[0], digests[3]]:
                assert (await facade.get(f"/v2/x/blobs/{digest}"))[0] == 200
                await stored(tmp_path / "blobs" / "sha256" / digest.encoded)
        kept = [(tmp_path / "blobs" / "sha256" / digest.encoded).exists() for digest in digests]
        assert kept == [True, False, True, True]


async def test_blob_larger_than_the_budget_passes_through_unstored(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        digest = upstream.add_blob(LARGE)
        async with running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, cache_max_bytes=1 << 20
        ) as facade:
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[::2] == (200, LARGE)
            assert (await facade.get(f"/v2/x/blobs/{digest}", Range="bytes=5-9"))[::2] == (206, LARGE[5:10])
            upstream.always = Fault("corrupt", 5)
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
                await facade.get(f"/v2/x/blobs/{digest}")
        assert not (tmp_path / "blobs").exists()


async def test_read_only_cache_passes_through(tmp_path: Path) -> None:
    async with scripted_registry() as upstream:
        digest = upstream.add_blob(LARGE)
        async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}) as facade:
            (tmp_path / "partial").write_text("a file where the directory belongs")
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[::2] == (200, LARGE)


async def test_served_and_received_bytes_are_counted(pair: Pair) -> None:
    digest = pair.upstream.add_blob(LARGE)
    for _ in range(2):
        await pair.blob(digest)
        with contextlib.suppress(FileNotFoundError):
            pair.cached(digest).stat()
    assert await pair.facade.metric("facade_received_bytes_total", source="upstream") == len(LARGE)
    assert await pair.facade.metric("facade_served_bytes_total") == 2 * len(LARGE)


PRIVATE = [
    "http://127.0.0.1:{port}/x",
    "http://[::1]:{port}/x",
    "http://localhost:{port}/x",
    "http://169.254.169.254/x",
    "http://10.0.0.1/x",
]


@pytest.mark.parametrize("target", [*PRIVATE, "http://localtest.invalid/x"], ids=str)
async def test_redirects_and_realms_reach_no_private_address(tmp_path: Path, target: str) -> None:
    """The upstream is reached by its name; what it sends us on to is an address nobody configured."""
    async with scripted_registry() as victim, scripted_registry() as upstream:
        digest = upstream.add_blob(SMALL)
        port = upstream.origin.rpartition(":")[2]
        aimed = target.format(port=victim.origin.rpartition(":")[2])
        async with running_facade(tmp_path, upstreams={"hub.test": f"http://localhost:{port}"}) as facade:
            upstream.redirect_to = aimed
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[0] in {403, 503}
            upstream.redirect_to, upstream.realm = "", aimed.replace("http://", "https://")
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[0] in {403, 503}
        assert victim.requests == []


async def test_scrubber_finds_what_the_disk_forgot_silently(tmp_path: Path) -> None:
    """A byte flipped under unchanged times, as failing media do: only reading it again tells."""
    async with scripted_registry() as upstream:
        digest = upstream.add_blob(LARGE)
        async with running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, scrub_age_s=0.0
        ) as facade:
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[2] == LARGE
            path = await stored(tmp_path / "blobs" / "sha256" / digest.encoded)
            seen = path.stat()
            await asyncio.to_thread(path.write_bytes, DAMAGE["a byte flipped"](LARGE))
            os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
            async with asyncio.timeout(20):
                while path.exists():
                    await asyncio.sleep(0.05)
            assert await facade.metric("facade_cache_entries_corrupt_total") == 1
            assert (await facade.get(f"/v2/x/blobs/{digest}"))[2] == LARGE
