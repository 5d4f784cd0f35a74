"""Facades that know each other, over real sockets: one download for all, and no trust."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ocikit.digest import Digest
from registry_facade.peers.client import PATH
from registry_facade.peers.ring import ranked
from servicekit.secrets import Secret
from tests.support.facade import RunningFacade, running_facade
from tests.support.images import image_documents, made_layer
from tests.support.processes import free_port
from tests.support.scripted_registry import Fault, ScriptedRegistry, scripted_registry

DATA = random.Random(11).randbytes((1 << 20) + 4711)
DIGEST = Digest.of(DATA)
TOKEN = Secret("sesame")


@contextlib.asynccontextmanager
async def facades(
    directory: Path, upstream: ScriptedRegistry, count: int, **settings: Any
) -> AsyncIterator[Sequence[RunningFacade]]:
    """As many facades as peers of each other; the keeper of `DIGEST` first."""
    ports = [free_port() for _ in range(count)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    shared = {
        "upstreams": {"hub.test": upstream.origin},
        "peers": tuple(urls),
        "peer_token": TOKEN,
        **settings,
    }
    async with contextlib.AsyncExitStack() as stack:
        started = {
            url: await stack.enter_async_context(
                running_facade(directory / str(port), listen=("127.0.0.1", port), peer_url=url, **shared)
            )
            for url, port in zip(urls, ports, strict=True)
        }
        yield [started[url] for url in ranked(DIGEST, urls)]


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as registry:
        registry.add_blob(DATA)
        yield registry


async def pull(facade: RunningFacade, **headers: str) -> tuple[int, bytes]:
    async with asyncio.timeout(30):
        status, _, body = await facade.get(f"/v2/team/app/blobs/{DIGEST}", **headers)
    return status, body


@contextlib.asynccontextmanager
async def impostor(answer: Any) -> AsyncIterator[str]:
    """A peer that answers as it likes."""
    app = web.Application()
    app.add_routes([web.get(f"{PATH}{{digest}}", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


async def test_three_pulling_at_once_cost_the_upstream_one_download(tmp_path, upstream):
    async with facades(tmp_path, upstream, 3) as three:
        assert await asyncio.gather(*map(pull, three)) == [(200, DATA)] * 3
        assert [await item.metric("facade_received_bytes_total", source="peer") for item in three] == [
            0,
            len(DATA),
            len(DATA),
        ]
    assert upstream.sent_bytes[DIGEST] == len(DATA)


async def test_what_only_the_last_one_has_is_found_by_the_keeper(tmp_path, upstream):
    async with facades(tmp_path, upstream, 3) as (keeper, _, last):
        await pull(last)
        assert upstream.sent_bytes[DIGEST] == len(DATA)
        upstream.blobs.clear()
        assert await pull(keeper) == (200, DATA)


async def test_ranges_come_from_peers(tmp_path, upstream):
    async with facades(tmp_path, upstream, 2) as (keeper, other):
        await pull(keeper)
        upstream.blobs.clear()
        assert await pull(other, Range="bytes=7-99") == (206, DATA[7:100])


async def test_what_nobody_has_is_not_found_without_going_round(tmp_path, upstream):
    upstream.blobs.clear()
    async with facades(tmp_path, upstream, 3) as three:
        for facade in three:
            assert (await pull(facade))[0] == 404


async def test_a_dead_keeper_is_replaced_by_the_next(tmp_path, upstream):
    gone = f"http://127.0.0.1:{free_port()}"
    async with running_facade(
        tmp_path, upstreams={"hub.test": upstream.origin}, peers=(gone,), peer_url="http://127.0.0.1:1"
    ) as facade:
        assert await pull(facade) == (200, DATA)


@pytest.mark.parametrize("lie", ["flip", "cut", "extend", "short body", "no length", "other range"])
async def test_a_lying_peer_costs_a_detour(tmp_path, upstream, lie):
    async def answer(request: web.Request) -> web.StreamResponse:
        bodies = {"flip": bytes([DATA[0] ^ 1]) + DATA[1:], "cut": DATA[:-1], "extend": DATA + b"\0"}
        if lie == "no length":
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            if request.method == "GET":
                await response.write(DATA)
            return response
        if lie == "other range":
            return web.Response(status=206, headers={"Content-Range": "bytes 5-9/10"}, body=DATA[5:10])
        if lie == "short body":
            response = web.StreamResponse(headers={"Content-Length": str(len(DATA))})
            await response.prepare(request)
            if request.method == "GET":
                await response.write(DATA[:100_000])
                assert request.transport is not None
                request.transport.close()
            return response
        return web.Response(body=bodies[lie])

    async with (
        impostor(answer) as liar,
        running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, peers=(liar,), peer_url=own_address(liar)
        ) as facade,
    ):
        assert await pull(facade) == (200, DATA)
        failures = await facade.metric("facade_source_failures_total", source="peer")
        assert failures + await facade.metric("facade_peer_failures_total") >= 1


async def test_a_peer_that_never_stops_sending_is_left_where_it_should_have_ended(tmp_path, upstream):
    async def answer(request: web.Request) -> web.StreamResponse:
        start, stop, _ = request.http_range.indices(len(DATA))
        told = {"Content-Range": f"bytes {start}-{stop - 1}/{len(DATA)}"}
        response = web.StreamResponse(status=206, headers=told)
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(DATA[start:stop])
        while True:
            await response.write(bytes(1 << 16))

    async with (
        impostor(answer) as liar,
        running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, peers=(liar,), peer_url=own_address(liar)
        ) as facade,
        asyncio.timeout(30),
    ):
        status, _, body = await facade.get(f"/v2/team/app/blobs/{DIGEST}", Range="bytes=1000-")
        assert (status, body) == (206, DATA[1000:])
        assert await facade.metric("facade_source_failures_total", source="peer") >= 1


def own_address(keeper: str) -> str:
    """An address that ranks behind ``keeper``."""
    candidates = (f"http://127.0.0.1:{port}" for port in range(1, 1000))
    return next(own for own in candidates if ranked(DIGEST, [keeper, own])[0] == keeper)


async def test_a_peer_that_lied_is_left_alone(tmp_path, upstream):
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.match_info["digest"])
        return web.Response(body=bytes(len(DATA)))

    other = upstream.add_blob(DATA + b"other")
    async with (
        impostor(answer) as liar,
        running_facade(
            tmp_path, upstreams={"hub.test": upstream.origin}, peers=(liar,), peer_url=own_address(liar)
        ) as facade,
    ):
        assert await pull(facade) == (200, DATA)
        assert await facade.metric("facade_peer_failures_total", reason="lied") == 1
        asked.clear()
        assert (await facade.get(f"/v2/team/app/blobs/{other}"))[2] == DATA + b"other"
        assert asked == []


@pytest.mark.parametrize("given", ["x", "Bearer", "Bearer wrong", "Basic sesame"])
async def test_a_stranger_gets_nothing(tmp_path, upstream, given):
    async with facades(tmp_path, upstream, 2) as (keeper, _):
        await pull(keeper)
        status, _, _ = await keeper.get(f"{PATH}{DIGEST}", Authorization=given)
        assert status == 401


async def test_a_peer_without_a_place_gets_only_what_is_there(tmp_path, upstream):
    async with facades(tmp_path, upstream, 2) as (keeper, _):
        bearer = {"Authorization": f"Bearer {TOKEN.reveal()}"}
        assert (await keeper.get(f"{PATH}{DIGEST}", **bearer))[0] == 404
        assert upstream.requests == []
        assert (await keeper.get(f"{PATH}{DIGEST}?upstream=hub.test&repository=../x", **bearer))[0] == 404
        assert (await keeper.get(f"{PATH}not-a-digest", **bearer))[0] == 400
        await pull(keeper)
        assert (await keeper.get(f"{PATH}{DIGEST}", **bearer))[2] == DATA


async def test_warm_images_pull_on_all_nodes_while_the_upstream_is_cut_off(tmp_path, upstream):
    layers = [made_layer({f"file{number}": bytes(300_000)}) for number in range(2)]
    manifest, config = image_documents(layers)
    for data in (config, *(made.blob for made in layers)):
        upstream.add_blob(data)
    digest = upstream.add_manifest(manifest, "v1")
    stale = {"tag_fresh_s": 0.0, "tag_revalidate_s": 0.0, "stale_budget_s": 0.5}
    async with facades(tmp_path, upstream, 3, **stale) as three:
        for facade in three:
            assert (await facade.get("/v2/team/app/manifests/v1"))[2] == manifest
            for made in layers:
                await facade.get(f"/v2/team/app/blobs/{made.layer.descriptor.digest}")
        upstream.manifest_status = 503
        upstream.always = Fault("status", 503)
        for facade in three:
            status, headers, body = await facade.get("/v2/team/app/manifests/v1")
            assert (status, body, headers["Docker-Content-Digest"]) == (200, manifest, digest)
            assert headers["Warning"].startswith("110")
            for made in layers:
                path = f"/v2/team/app/blobs/{made.layer.descriptor.digest}"
                assert (await facade.get(path))[2] == made.blob
            assert await facade.metric("facade_stale_answers_total") > 0
