"""SOCI: what goes wrong while a layer is indexed costs the index, and no pull."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.component.test_facade_soci import (
    BIG,
    NOISE,
    OTHER,
    Shop,
    fetched,
    indexed,
    latest,
    pulled_whole,
    until,
    until_counted,
    ztocs_of,
)
from tests.support.facade import FacadeProcess, RunningFacade
from tests.support.images import made_layer, push_image
from tests.support.mounts import tmpfs


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def builders(parent: int) -> Iterator[int]:
    """The processes that index a layer for ``parent``."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            ppid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if ppid == parent and b"registry_facade.soci.build" in (entry / "cmdline").read_bytes():
                yield int(entry.name)


@contextlib.asynccontextmanager
async def stopped_builder(parent: int) -> AsyncIterator[int]:
    """The next process that indexes a layer, stopped in the middle; it goes on, or is gone, afterwards.

    The facade stops and continues it too, so it has to be stopped again and again.
    """
    found: list[int] = []

    async def caught() -> bool:
        for pid in builders(parent):
            os.kill(pid, signal.SIGSTOP)
            found.append(pid)
        return bool(found)

    await until(caught)

    async def hold() -> None:
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(found[0], signal.SIGSTOP)
                await asyncio.sleep(0.001)

    holding = asyncio.create_task(hold())
    try:
        yield found[0]
    finally:
        holding.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[0], signal.SIGCONT)


async def test_no_pull_waits_while_a_layer_is_indexed(shop: Shop) -> None:
    await shop.hold(BIG, OTHER)
    async with shop.facade() as facade:
        plain = await latest(facade)
        await fetched(facade, BIG.layer.descriptor.digest)
        async with stopped_builder(os.getpid()):
            assert (await pulled_whole(facade)).digest == plain.digest
            shop.write("other")
            assert not (await latest(facade, "other")).index
        await indexed(facade)


async def test_builder_is_stopped_while_somebody_reads(shop: Shop) -> None:
    await shop.hold(BIG, OTHER)
    async with shop.facade() as facade:
        await pulled_whole(facade)
        await indexed(facade)
        late = made_layer({"late": NOISE, "later": b"!"})
        await push_image(shop.layout, "v2", [late, OTHER])
        shop.write("late", base="images/app:v2")
        await latest(facade, "late")
        blob = f"/v2/workspaces/ws/blobs/{OTHER.layer.descriptor.digest}"
        async with facade.session.get(blob) as response:
            assert len(await response.content.read(100)) == 100
            await fetched(facade, late.layer.descriptor.digest)

            async def stopped() -> bool:
                states = [Path(f"/proc/{pid}/stat").read_text() for pid in builders(os.getpid())]
                return any(") T " in state for state in states)

            await until(stopped)
            response.close()
        await until_counted(facade, "indexed", 3)


async def test_builder_that_is_killed_costs_the_index_until_the_next_start_and_no_pull(shop: Shop) -> None:
    await shop.hold(BIG)
    async with shop.facade() as facade:
        plain = await pulled_whole(facade)
        async with stopped_builder(os.getpid()) as pid:
            os.kill(pid, signal.SIGKILL)
        await until_counted(facade, "failed")
        assert (await pulled_whole(facade)).digest == plain.digest
        shop.write("other")
        assert not (await latest(facade, "other")).index
    assert not list((shop.root / "cache" / "ingest").glob("ztoc-*"))
    async with shop.facade() as facade:
        assert (await indexed(facade)).digest != plain.digest


async def test_builder_ends_with_a_facade_that_is_killed_and_the_next_one_begins_anew(shop: Shop) -> None:
    await shop.hold(BIG)
    with shop.process() as facade:
        async with client_of(facade) as client:
            await pulled_whole(client)
        async with stopped_builder(facade.process.pid) as pid:
            facade.process.kill()

    async def gone() -> bool:
        try:
            return ") Z " in Path(f"/proc/{pid}/stat").read_text()  # nobody may be there to reap it
        except FileNotFoundError:
            return True

    await until(gone)
    assert not list((shop.root / "cache" / "ingest").glob("ztoc-*")), "it ended before its work did"
    with shop.process() as facade:
        async with client_of(facade) as client:
            await indexed(client)


@contextlib.asynccontextmanager
async def client_of(facade: FacadeProcess) -> AsyncIterator[RunningFacade]:
    async with aiohttp.ClientSession(facade.url, auto_decompress=False) as session:
        yield RunningFacade(facade.url, session)


async def test_full_disk_costs_the_index_and_no_pull(shop: Shop) -> None:
    await shop.hold(BIG)
    with tmpfs(shop.root / "disk", size="24m") as disk:
        async with shop.facade("disk") as facade:
            plain = await pulled_whole(facade)
            async with stopped_builder(os.getpid()):
                with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                    while True:
                        filler.write(bytes(4096))
            await until_counted(facade, "failed")
            assert (await pulled_whole(facade)).digest == plain.digest
            assert not list((disk / "ingest").glob("ztoc-*"))
            (disk / "filler").unlink()
        async with shop.facade("disk") as facade:
            await indexed(facade)


async def test_workers_index_a_layer_once(shop: Shop) -> None:
    await shop.hold(BIG, OTHER)
    with shop.process("--workers", "3") as facade:
        async with client_of(facade) as client:
            await pulled_whole(client)
            assert len(await ztocs_of(client, await indexed(client))) == 2
            assert await client.metric("facade_soci_layers_total") == 2
