"""A reader of zstd:chunked layers, written from the format, that believes nothing it has not hashed."""

import io
import json
from collections.abc import Mapping
from typing import Any

import zstandard

from ocikit.digest import Digest

_PREFIX = "io.github.containers.zstd-chunked"


class Unreadable(Exception):
    """The blob is not what its annotations say."""


def positions(annotations: Mapping[str, str], what: str) -> list[int]:
    """(offset, length, length unpacked, ...) of ``manifest`` or ``tarsplit``."""
    return [int(number) for number in annotations[f"{_PREFIX}.{what}-position"].split(":")]


def unpacked(data: bytes) -> bytes:
    """Of frames one behind the other; skippable ones are nothing."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            return reader.read()
    except zstandard.ZstdError as error:
        raise Unreadable(str(error)) from error


def toc_of(blob: bytes, annotations: Mapping[str, str]) -> dict[str, Any]:
    """Raises Unreadable."""
    offset, length, plain_length, kind = positions(annotations, "manifest")
    packed = blob[offset : offset + length]
    toc = _checked(packed, annotations[f"{_PREFIX}.manifest-checksum"])
    if kind != 1 or len(toc) != plain_length:
        raise Unreadable("the annotation and the TOC differ")
    parsed: dict[str, Any] = json.loads(toc)
    return parsed


def tar_split_of(blob: bytes, annotations: Mapping[str, str]) -> list[dict[str, Any]]:
    """Raises Unreadable."""
    offset, length, plain_length = positions(annotations, "tarsplit")
    split = _checked(blob[offset : offset + length], toc_of(blob, annotations)["tarSplitDigest"])
    if len(split) != plain_length:
        raise Unreadable("the annotation and the tar-split differ")
    return [json.loads(line) for line in split.splitlines()]


def files_of(blob: bytes, annotations: Mapping[str, str]) -> dict[str, bytes]:
    """The content of each regular file, put together from its chunks. Raises Unreadable."""
    found: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    for entry, following in chunks_of(toc_of(blob, annotations)):
        if entry["type"] == "reg":
            found[entry["name"]] = b""
            digests[entry["name"]] = entry.get("digest", Digest.of(b""))
        if "offset" not in entry:
            continue
        if entry.get("chunkOffset", 0) != len(found[entry["name"]]):
            raise Unreadable(f"{entry['name']}: chunks out of order")
        digest, size = (entry.get(f"chunk{key.title()}", entry.get(key)) for key in ("digest", "size"))
        data = _checked(blob[entry["offset"] : following], digest, of_content=True)
        if len(data) != size:
            raise Unreadable(f"{entry['name']}: a chunk of another size")
        found[entry["name"]] += data
    for name, data in found.items():
        if Digest.of(data) != digests[name]:
            raise Unreadable(f"{name}: its chunks make another file")
    return found


def chunks_of(toc: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """The TOC's entries, each with where its frame ends; 0 for one that has none."""
    entries = toc["entries"]
    ends = [entry.get("offset", 0) if entry["type"] == "chunk" else 0 for entry in entries[1:]]
    return [
        (entry, behind or entry.get("endOffset", 0))
        for entry, behind in zip(entries, [*ends, 0], strict=True)
    ]


def _checked(packed: bytes, digest: str, *, of_content: bool = False) -> bytes:
    if not of_content and Digest.of(packed) != digest:
        raise Unreadable(f"not {digest}")
    data = unpacked(packed)
    if of_content and Digest.of(data) != digest:
        raise Unreadable(f"not {digest}")
    return data
