"""A facade to test: in this process over real sockets, or as the command itself."""

import contextlib
import re
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from registry_facade.app import facade
from registry_facade.settings import FacadeSettings
from servicekit.lifecycle import Listener, listening
from tests.support.processes import Process, logs


@dataclass(frozen=True)
class RunningFacade:
    """``session`` asks it with relative URLs and undoes no encoding."""

    url: str
    session: aiohttp.ClientSession

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    async def get(self, path: str, **headers: str) -> tuple[int, Any, bytes]:
        """(status, headers, body) of one GET; ``headers`` are spelled with underscores."""
        async with self.session.get(path, headers=spelled(headers)) as response:
            return response.status, response.headers, await response.read()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        async with self.session.get("/metrics") as response:
            return metric_value(await response.text(), name, **labels)


def trusting(certificate: Path | None) -> ssl.SSLContext | bool:
    return True if certificate is None else ssl.create_default_context(cafile=certificate)


def spelled(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def metric_value(exposition: str, name: str, **labels: str) -> float:
    total = 0.0
    for line in exposition.splitlines():
        match = re.match(rf"{name}(?:\{{(.*)\}})? (\S+)$", line)
        if match is not None and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total += float(match[2])
    return total


@contextlib.asynccontextmanager
async def running_facade(cache_dir: Path, **settings: Any) -> AsyncIterator[RunningFacade]:
    """In this process; ``settings`` are fields of FacadeSettings."""
    chosen = FacadeSettings(**{"cache_dir": cache_dir, "drain_s": 0.2, "linger_s": 0.0, **settings})
    assert not chosen.problems()
    port = chosen.listen[1] if "listen" in settings else 0
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(facade(chosen))
        tls = made.tls.context if made.tls is not None else None
        addresses = await stack.enter_async_context(
            listening([Listener(made.pulls, "127.0.0.1", port, tls=tls)], drain_s=0.2)
        )
        url = "{}://{}:{}".format("http" if tls is None else "https", *addresses[0])
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                url,
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=0, ssl=trusting(chosen.tls_certificate)),
                read_bufsize=1 << 18,
            )
        )
        yield RunningFacade(url, session)


@dataclass(frozen=True)
class FacadeProcess:
    """The command ``lapstrake facade serve``; restarting it keeps the cache but not the port."""

    process: Process

    @property
    def url(self) -> str:
        found = re.search(r"listening on (http://\S+)", self.process.log_text())
        assert found is not None
        return found[1]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")


@contextlib.contextmanager
def facade_process(
    directory: Path,
    *arguments: str | Path,
    inside: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[FacadeProcess]:
    """Started with a cache below ``directory``, on a port of the kernel's choice.

    ``inside`` is a command that runs the one behind it, such as taskset.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fixed: list[str | Path] = ["--listen", "127.0.0.1:0", "--cache-dir", directory / "cache"]
    argv: list[str | Path] = [
        *inside,
        sys.executable,
        "-c",
        "from cli.main import main; main()",
        "facade",
        "serve",
        *fixed,
        *arguments,
    ]
    root = Path(__file__).parents[2]
    with Process(
        "facade", argv, log=directory / "facade.log", ready=logs("listening on"), cwd=root, env=env
    ) as process:
        yield FacadeProcess(process)
