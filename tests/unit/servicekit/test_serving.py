"""web and lifecycle: probes, access events, and a drain that a real SIGTERM starts."""

import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from servicekit.lifecycle import Listener, ListenFailed, listening
from servicekit.metrics import Metrics
from servicekit.web import Readiness, access_middleware, add_access_fields, operations_routes
from tests.support.processes import Process, free_port, logs


def _app(metrics: Metrics, readiness: Readiness) -> web.Application:
    async def hello(request: web.Request) -> web.Response:
        add_access_fields(request, source="disk")
        return web.Response(text="hello")

    async def refuse(_request: web.Request) -> web.Response:
        raise web.HTTPNotFound

    app = web.Application(middlewares=[access_middleware(metrics, service="test")])
    app.add_routes(
        [
            web.get("/hello/{name}", hello),
            web.get("/refuse", refuse),
            *operations_routes(metrics, readiness),
        ]
    )
    return app


async def test_one_access_event_per_request_with_what_the_handler_added() -> None:
    with structlog.testing.capture_logs() as entries:
        async with TestClient(TestServer(_app(Metrics(), Readiness()))) as client:
            await client.get("/hello/you?x=1")
            await client.get("/refuse")
            for probe in ("/livez", "/readyz", "/metrics"):
                await client.get(probe)
    events = [(entry["route"], entry["status"], entry.get("source")) for entry in entries]
    assert events == [("/hello/{name}", 200, "disk"), ("/refuse", 404, None)]


async def test_metrics_have_route_patterns_not_paths() -> None:
    async with TestClient(TestServer(_app(Metrics(), Readiness()))) as client:
        await client.get("/hello/a-name")
        text = await (await client.get("/metrics")).text()
    assert 'test_http_request_seconds_count{method="GET",route="/hello/{name}",status="200"} 1.0' in text
    assert "a-name" not in text


async def test_ready_while_there_is_no_reason_against_it() -> None:
    readiness = Readiness()
    async with TestClient(TestServer(_app(Metrics(), readiness))) as client:
        assert (await client.get("/readyz")).status == 200
        readiness.refuse("store", "read-only")
        answer = await client.get("/readyz")
        assert (answer.status, await answer.json()) == (
            503,
            {"ready": False, "reasons": {"store": "read-only"}},
        )
        assert (await client.get("/livez")).status == 200
        readiness.accept("store")
        assert (await client.get("/readyz")).status == 200


async def test_an_address_in_use_is_named() -> None:
    app = _app(Metrics(), Readiness())
    async with listening([Listener(app, "127.0.0.1", 0)], drain_s=0) as [(host, port)]:
        again = Listener(_app(Metrics(), Readiness()), host, port)
        with pytest.raises(ListenFailed, match=re.escape(f"cannot listen on 127.0.0.1:{port}: ")):
            async with listening([again], drain_s=0):
                pass


_SERVER = """
import asyncio, sys
from aiohttp import web
from servicekit.lifecycle import Listener, serve_until_signal
from servicekit.web import Readiness

release = asyncio.Event()

async def slow(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begun ")
    print("request begun", flush=True)
    asyncio.get_running_loop().call_later(0.2 if request.path == "/slow" else 3600, release.set)
    await release.wait()
    await response.write(b"and done")
    return response

app = web.Application()
app.add_routes([web.get("/slow", slow), web.get("/forever", slow)])
listener = Listener(app, "127.0.0.1", int(sys.argv[1]))
drain_s = float(sys.argv[2])
started = lambda _: print("up", flush=True)
asyncio.run(serve_until_signal([listener], Readiness(), drain_s=drain_s, on_started=started))
print("ended", flush=True)
"""


def _server(tmp_path: Path, port: int, drain_s: float) -> Process:
    argv = [sys.executable, "-c", _SERVER, str(port), str(drain_s)]
    return Process("server", argv, log=tmp_path / "log", ready=logs("up"))


def test_sigterm_lets_a_running_request_finish(tmp_path: Path) -> None:
    port = free_port()
    with _server(tmp_path, port, 20) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/slow", timeout=20) as answer:
            assert answer.read(6) == b"begun "
            server.signal(signal.SIGTERM)
            assert answer.read() == b"and done"
        assert server.wait() == 0
        assert "ended" in server.log_text()


def test_the_drain_ends_at_its_deadline(tmp_path: Path) -> None:
    port = free_port()
    with (
        _server(tmp_path, port, 0.1) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/forever", timeout=20) as answer,
    ):
        answer.read(6)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_second_signal_ends_the_wait(tmp_path: Path) -> None:
    port = free_port()
    with (
        _server(tmp_path, port, 3600) as server,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/forever", timeout=20) as answer,
    ):
        answer.read(6)
        server.signal(signal.SIGTERM)
        server.await_log("draining")
        while server.is_running:  # the handler is gone a moment after that line
            server.signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
