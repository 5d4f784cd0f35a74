"""The IPFS name (CID) of a blob, computed without an IPFS node.

A CID names a blob only together with how it was cut up, so all of it is fixed here: CIDv1 in base32, raw
leaves of `CHUNK_BYTES`, sha2-256, a balanced DAG with `MAX_LINKS` children per node (UnixFS, dag-pb). An
import with the same parameters gives the same CID on every node, and a CID can be written into a manifest
by somebody who runs no node at all.

Formats: https://ipld.io/specs/codecs/dag-pb/spec/ and https://specs.ipfs.tech/unixfs/.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_BYTES = 1 << 20
"""The largest block every implementation is bound to exchange is 2 MiB; see docs/ipfs.md for the choice."""
MAX_LINKS = 1024

ANNOTATION = "dev.lapstrake.ipfs.cid"
"""On a layer's descriptor: the CID of the layer under the parameters above. A hint; bytes are verified."""

_RAW, _DAG_PB = 0x55, 0x70
_SHA256 = b"\x12\x20"
_FILE = b"\x08\x02"
_TEXT = re.compile(r"^(b[a-z2-7]{20,120}|Qm[1-9A-HJ-NP-Za-km-z]{44})$")


def is_cid(text: str) -> bool:
    """Whether ``text`` has the form of a CID in base32 (v1) or of version 0."""
    return _TEXT.match(text) is not None


@dataclass(frozen=True, slots=True)
class _Node:
    cid: bytes
    file_bytes: int
    dag_bytes: int


class CidHasher:
    """Takes a blob in pieces of any size; `cid` names what it has taken. Not for concurrent use.

    Keeps about 100 bytes per MiB, and at most one chunk.
    """

    def __init__(self) -> None:
        self._leaves: list[_Node] = []
        self._chunk = hashlib.sha256()
        self._chunk_bytes = 0

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            part = view[: CHUNK_BYTES - self._chunk_bytes]
            self._chunk.update(part)
            self._chunk_bytes += len(part)
            view = view[len(part) :]
            if self._chunk_bytes == CHUNK_BYTES:
                self._end_chunk()

    def _end_chunk(self) -> None:
        self._leaves.append(self._leaf())
        self._chunk = hashlib.sha256()
        self._chunk_bytes = 0

    def _leaf(self) -> _Node:
        return _Node(_cid(_RAW, self._chunk.digest()), self._chunk_bytes, self._chunk_bytes)

    def cid(self) -> str:
        """Of the bytes so far."""
        level = list(self._leaves)
        if self._chunk_bytes or not level:
            level.append(self._leaf())
        while len(level) > 1:
            level = [_parent(level[at : at + MAX_LINKS]) for at in range(0, len(level), MAX_LINKS)]
        return _text(level[0].cid)


def cid_of(data: bytes) -> str:
    hasher = CidHasher()
    hasher.update(data)
    return hasher.cid()


def _parent(children: Sequence[_Node]) -> _Node:
    file_bytes = sum(child.file_bytes for child in children)
    links = b"".join(_field(2, _link(child)) for child in children)
    sizes = b"".join(b"\x20" + _varint(child.file_bytes) for child in children)
    block = links + _field(1, _FILE + b"\x18" + _varint(file_bytes) + sizes)
    cid = _cid(_DAG_PB, hashlib.sha256(block).digest())
    return _Node(cid, file_bytes, len(block) + sum(child.dag_bytes for child in children))


def _link(child: _Node) -> bytes:
    return _field(1, child.cid) + _field(2, b"") + b"\x18" + _varint(child.dag_bytes)


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _cid(codec: int, digest: bytes) -> bytes:
    return bytes([1, codec]) + _SHA256 + digest


def _text(cid: bytes) -> str:
    return "b" + base64.b32encode(cid).decode().rstrip("=").lower()
