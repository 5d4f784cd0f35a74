"""Taking a blob in: hashed, synced, renamed; against doing that by hand with coreutils."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ocikit.digest import Digest
from ocikit.disk_store import DiskBlobStore
from tests.bench.harness import Bench, Sides

_SIZE_BYTES = 128 << 20
_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def _ingest(directory: Path) -> Iterator[Sides]:
    source, copy = directory / "source", directory / "copy"
    source.write_bytes(os.urandom(_SIZE_BYTES))
    digest = Digest.of(source.read_bytes())
    store = DiskBlobStore(directory / "store")

    async def take_in() -> None:
        async with store.ingest(digest, _SIZE_BYTES) as writer:
            with source.open("rb") as file:
                while data := file.read(_PIECE_BYTES):
                    await writer.write(data)
            await writer.commit()
        await store.delete(digest)

    def ours() -> None:
        asyncio.run(take_in())

    def peer() -> None:
        script = 'sha256sum "$1" && cp "$1" "$2" && sync "$2" && rm "$2"'
        subprocess.run(["sh", "-c", script, "sh", source, copy], check=True, stdout=subprocess.DEVNULL)

    yield Sides(ours, peer)


def benches() -> list[Bench]:
    return [Bench("store: ingest 128 MiB, verified and durable", "sha256sum, cp, sync", "s", "", _ingest)]
