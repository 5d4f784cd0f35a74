"""Layers as eStargz: the same tar for everybody, and its files one by one for a lazy reader."""

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from ocikit.digest import Digest
from registry_facade.layers.estargz import CHUNK_BYTES, FOOTER_BYTES, TOC_DIGEST, TOC_NAME, write_estargz
from tests.support.images import tar_of

FILES = {
    "etc/greeting": b"hello",
    "empty": b"",
    "block": bytes(range(256)) * 2,
    "long/" + "n" * 120 + "/\u00fc": b"named by a PAX record",
    "large": os.urandom(CHUNK_BYTES + 70_000),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Any]:
    out = io.BytesIO()
    layer = write_estargz(tar_of(FILES, tmp_path_factory.mktemp("layer") / "tar"), out)
    return out.getvalue(), layer


def toc_of(blob: bytes) -> tuple[bytes, list[dict[str, Any]]]:
    """As a lazy reader finds it: by the footer."""
    footer = blob[-FOOTER_BYTES:]
    assert footer[:4] == b"\x1f\x8b\x08\x04"
    assert footer[10:16] == struct.pack("<H", 26) + b"SG" + struct.pack("<H", 22)
    assert footer[32:38] == b"STARGZ"
    start = int(footer[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob[start:-FOOTER_BYTES]))) as tar:
        (entry,) = tar
        file = tar.extractfile(entry)
        assert entry.name == TOC_NAME
        assert file is not None
        data = file.read()
    return data, json.loads(data)["entries"]


def test_any_reader_unpacks_it(made: tuple[bytes, Any]) -> None:
    blob, layer = made
    whole = gzip.decompress(blob)
    assert (Digest.of(blob), len(blob)) == (layer.descriptor.digest, layer.descriptor.size)
    assert Digest.of(whole) == layer.diff_id
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        for name, data in FILES.items():
            file = tar.extractfile(name)
            assert file is not None
            assert file.read() == data
        assert tar.getmember("link").linkname == "etc/greeting"
        assert tar.getnames()[-1] == TOC_NAME


def test_each_chunk_can_be_read_and_checked_alone(made: tuple[bytes, Any]) -> None:
    blob, layer = made
    toc, entries = toc_of(blob)
    assert layer.descriptor.annotations[TOC_DIGEST] == Digest.of(toc)
    found: dict[str, bytes] = {}
    for entry in entries:
        if "chunkDigest" not in entry:
            continue
        size = entry.get("chunkSize") or entry["size"]
        data = zlib.decompressobj(31).decompress(blob[entry["offset"] :])[:size]
        assert Digest.of(data) == entry["chunkDigest"]
        assert entry.get("chunkOffset", 0) == len(found.get(entry["name"], b""))
        found[entry["name"]] = found.get(entry["name"], b"") + data
    wanted = {name: data for name, data in FILES.items() if data}
    assert {name: found[name] for name in wanted} == wanted
    (large,) = (entry for entry in entries if entry["name"] == "large" and entry["type"] == "reg")
    assert (large["size"], large["digest"]) == (len(FILES["large"]), Digest.of(FILES["large"]))


def test_same_tar_gives_the_same_bytes(made: tuple[bytes, Any], tmp_path: Path) -> None:
    out = io.BytesIO()
    write_estargz(tar_of(FILES, tmp_path / "tar"), out)
    assert out.getvalue() == made[0]


def test_tar_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tar_of(FILES, tmp_path / "tar")
    path.write_bytes(path.read_bytes()[: CHUNK_BYTES // 2])
    with pytest.raises(tarfile.TarError):
        write_estargz(path, io.BytesIO())
