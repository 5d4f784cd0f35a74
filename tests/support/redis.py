"""A Redis of our own, without persistence."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.components import program, require
from tests.support.processes import Process, free_port, logs


@dataclass(frozen=True, slots=True)
class RedisServer:
    url: str
    process: Process


@contextlib.contextmanager
def redis_server(root: Path) -> Iterator[RedisServer]:
    require("redis")
    root.mkdir(parents=True, exist_ok=True)
    port = free_port()
    argv = [
        program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--save", "",
        "--appendonly", "no", "--dir", str(root),
    ]  # fmt: skip
    with Process("redis", argv, log=root / "redis.log", ready=logs("Ready to accept connections")) as process:
        yield RedisServer(f"redis://127.0.0.1:{port}/0", process)
