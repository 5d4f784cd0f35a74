"""Files to clients on this machine, by one copy instead of none.

Over loopback, sendfile(2) lends a file's pages to the socket one by one and the other side copies from them
one by one, which costs both more than it saves (docs/decisions/0030). Here the file is mapped, and the kernel
copies large blocks from the page cache into the socket.
"""

import asyncio
import contextlib
import errno
import mmap

MAPPED_BYTES = 4 << 20
"""Mapped at a time: such pages count as this process's memory, although they are the page cache's."""
_BLOCK_BYTES = 2 << 20
"""Between two of these, others get their turn."""


def is_local(transport: asyncio.BaseTransport) -> bool:
    """Whether the client is on this machine, and what is sent past the transport arrives as it is."""
    if transport.get_extra_info("sslcontext") is not None:
        return False
    ours, theirs = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    return isinstance(ours, tuple) and isinstance(theirs, tuple) and ours[0] == theirs[0]


async def send_mapped(transport: asyncio.WriteTransport, descriptor: int, at: int, count: int) -> bool:
    """Sends ``count`` bytes of a file from ``at`` on, at most `MAPPED_BYTES`; False, and nothing was sent,
    when they cannot be mapped. The transport's own buffer is to be empty, and nobody else writes meanwhile.

    Raises the OSErrors of the connection, and EOFError when the file was cut. But of a page that it was cut
    within, the rest goes out as zeros: the caller has to look whether what comes behind is there.
    """
    skipped = at % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(descriptor, skipped + count, access=mmap.ACCESS_READ, offset=at - skipped)
    except (OSError, ValueError):  # a file system without mappings; longer than the file
        return False
    try:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        with memoryview(mapped) as view, view[skipped:] as wanted:
            await _send(transport, wanted)
    except OSError as error:
        if error.errno == errno.EFAULT:  # cut since it was mapped; here the kernel alone touches it
            raise EOFError(f"the file ended before byte {at + count}") from error
        raise
    finally:
        with contextlib.suppress(BufferError):  # an error's traceback may refer to it, and takes it along
            mapped.close()
    return True


async def _send(transport: asyncio.WriteTransport, data: memoryview) -> None:
    loop = asyncio.get_running_loop()
    with transport.get_extra_info("socket").dup() as connection:  # the loop refuses the transport's own
        connection.setblocking(False)
        for start in range(0, len(data), _BLOCK_BYTES):
            with data[start : start + _BLOCK_BYTES] as block:
                await loop.sock_sendall(connection, block)
            await asyncio.sleep(0)
            if transport.is_closing():
                raise ConnectionResetError("the client has gone")
