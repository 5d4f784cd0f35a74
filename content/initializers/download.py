"""Files by URL, each proven by its digest before it becomes part of a tree."""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urljoin

from content.archive.extract import TreeWriter
from content.archive.tar_format import DIRECTORY, REGULAR, Member
from content.errors import DownloadCorrupt, SourceFailed, SourceRefused
from content.initializers.policy import Owner
from content.initializers.specs import File, url_problem
from ocikit.distribution.transport import Transport
from ocikit.errors import AccessError, OciError
from servicekit.throttle import Bucket

_MAX_REDIRECTS = 5
_PIECE_BYTES = 1 << 20


async def download(
    file: File, transport: Transport, tree: TreeWriter, root: Path, owner: Owner, written: Bucket
) -> int:
    """The bytes of the file, which is then in ``tree``.

    Raises SourceFailed, SourceRefused, DownloadCorrupt.
    """
    with tempfile.TemporaryFile(dir=root) as copy:
        size = await _receive(file, transport, copy, written)
        await asyncio.to_thread(_add, file, copy, size, tree, root, owner)
    return size


async def _receive(file: File, transport: Transport, copy: IO[bytes], written: Bucket) -> int:
    hasher, size, url = file.digest.hasher(), 0, file.url
    try:
        for _ in range(_MAX_REDIRECTS):
            async with transport.send("GET", url) as response:
                if response.status in {301, 302, 303, 307, 308}:
                    url = _next(file.url, url, response.headers.get("Location", ""))
                    continue
                if response.status != 200:
                    raise SourceFailed(file.url, f"the server answered {response.status}")
                async for piece in response.pieces():
                    await written.acquire(len(piece))
                    hasher.update(piece)
                    await asyncio.to_thread(copy.write, piece)
                    size += len(piece)
                break
        else:
            raise SourceFailed(file.url, "it redirects too often")
    except AccessError as error:
        raise SourceRefused(file.url, str(error)) from error
    except (OciError, OSError) as error:
        raise SourceFailed(file.url, str(error)) from error
    if f"{file.digest.algorithm}:{hasher.hexdigest()}" != file.digest:
        raise DownloadCorrupt(file.url, file.digest)
    return size


def _next(first: str, url: str, location: str) -> str:
    to = urljoin(url, location)
    weaker = url.startswith("https:") and not to.startswith("https:")
    if weaker or url_problem(to, {"https", "http"}) is not None:
        raise SourceRefused(first, "it redirects to where it may not")
    return to


def _add(file: File, copy: IO[bytes], size: int, tree: TreeWriter, root: Path, owner: Owner) -> None:
    now_ns = time.time_ns()
    above = Path(file.path).parents
    for directory in reversed([str(path) for path in above if str(path) != "."]):
        if not os.path.lexists(root / directory):
            tree.add(Member(os.fsencode(directory), DIRECTORY, 0o755, owner.uid, owner.gid, 0, now_ns), ())
    copy.seek(0)
    member = Member(os.fsencode(file.path), REGULAR, file.mode, owner.uid, owner.gid, size, now_ns)
    tree.add(member, _pieces(copy))


def _pieces(copy: IO[bytes]) -> Iterator[bytes]:
    while piece := copy.read(_PIECE_BYTES):
        yield piece
