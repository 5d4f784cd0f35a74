"""Layers as zstd:chunked: the same tar for everybody, and each chunk by the TOC for who has the others."""

import base64
import io
import os
import random
import struct
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit import media_types
from ocikit.compose import Layer
from ocikit.digest import Digest
from registry_facade.image_spec import FileLayer
from registry_facade.layers.chunking import MAX_BYTES
from registry_facade.layers.content import WriteLazy, build_layer, build_lazy
from registry_facade.layers.estargz import write_estargz
from registry_facade.layers.tar_split import crc64
from registry_facade.layers.zstd_chunked import write_zstd_chunked
from tests.support.images import tar_of
from tests.support.zstd_chunked import (
    Unreadable,
    files_of,
    positions,
    tar_split_of,
    toc_of,
    unpacked,
)

FILES = {
    "etc/greeting": b"hello",
    "empty": b"",
    "block": bytes(range(256)) * 2,
    "home/me/" + "n" * 120 + "/\u00fc": b"named by a PAX record",
    "tmp/zeros": bytes(MAX_BYTES + 1),
    "large": os.urandom(5 * MAX_BYTES + 70_000),
}
EARLIER = "sha256:fdd75c4a45d29f5a70b373a5c8f3c9679e5112610f3e448817ef04d5c5f7721c"
ADDED = {"./": 0o755, "home/": 0o755, "home/me/": 0o755, "tmp/": 0o1777}


def written(source: Path) -> tuple[bytes, Layer]:
    out = io.BytesIO()
    layer = write_zstd_chunked(source, out)
    return out.getvalue(), layer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Layer]:
    return written(tar_of(FILES, tmp_path_factory.mktemp("layer") / "tar"))


def test_any_reader_unpacks_it(made: tuple[bytes, Layer]) -> None:
    blob, layer = made
    whole = unpacked(blob)
    assert layer.descriptor.media_type == media_types.OCI_LAYER_ZSTD
    assert (Digest.of(blob), len(blob)) == (layer.descriptor.digest, layer.descriptor.size)
    assert Digest.of(whole) == layer.diff_id
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        for name, data in FILES.items():
            file = tar.extractfile(name)
            assert file is not None
            assert file.read() == data
        assert tar.getmember("link").linkname == "etc/greeting"


def test_each_file_is_found_by_the_toc(made: tuple[bytes, Layer]) -> None:
    blob, layer = made
    assert files_of(blob, layer.descriptor.annotations) == FILES
    chunks = [entry for entry in toc_of(blob, layer.descriptor.annotations)["entries"] if "offset" in entry]
    assert sum(entry["name"] == "large" for entry in chunks) > 5
    assert all(entry.get("chunkSize", entry.get("size")) <= MAX_BYTES for entry in chunks)


def test_toc_describes_each_entry_of_the_tar(made: tuple[bytes, Layer]) -> None:
    """By the names that stand in it: readers that find another list than in the tar-split refuse both."""
    blob, layer = made
    entries = [e for e in toc_of(blob, layer.descriptor.annotations)["entries"] if e["type"] != "chunk"]
    with tarfile.open(fileobj=io.BytesIO(unpacked(blob))) as tar:
        for entry, member in zip(entries, tar, strict=True):
            assert entry["name"] == member.name + ("/" if member.isdir() else "")
            stated = [entry.get(key, 0) for key in ("mode", "uid", "gid", "size")]
            assert stated == [member.mode, member.uid, member.gid, member.size]
            assert entry.get("linkName", "") == member.linkname
            assert entry["modtime"] == "1970-01-01T00:00:00Z"


def test_directories_on_the_way_to_a_file_are_entries(made: tuple[bytes, Layer]) -> None:
    blob, layer = made
    entries = toc_of(blob, layer.descriptor.annotations)["entries"]
    names = [entry["name"] for entry in entries]
    modes = {entry["name"]: entry["mode"] for entry in entries if entry["type"] == "dir"}
    assert ADDED.items() <= modes.items()
    assert names[0] == "./"
    assert names.count("etc/") == 1


def test_tar_split_and_files_make_the_tar_again(made: tuple[bytes, Layer]) -> None:
    """As readers do to learn the diff_id: each header begins a segment, behind the padding before it."""
    blob, layer = made
    again = b""
    for position, line in enumerate(tar_split_of(blob, layer.descriptor.annotations)):
        assert line["position"] == position
        if line["type"] == 2:
            again += base64.b64decode(line["payload"])
        elif line.get("size"):
            data = FILES[line["name"]]
            assert (len(data), crc64(data)) == (
                line["size"],
                int.from_bytes(base64.b64decode(line["payload"])),
            )
            again += data
    assert Digest.of(again) == layer.diff_id


def test_old_and_new_readers_are_led_to_the_same_toc(made: tuple[bytes, Layer]) -> None:
    blob, layer = made
    stated = layer.descriptor.annotations
    for what in ("manifest-checksum", "manifest-position"):
        assert (
            stated[f"io.containers.zstd-chunked.{what}"]
            == stated[f"io.github.containers.zstd-chunked.{what}"]
        )
    toc, split = positions(stated, "manifest"), positions(stated, "tarsplit")
    old, new = blob[-40:], blob[-48 - 64 : -48]
    assert struct.unpack("<4Q8s", old) == (*toc, b"GnUlInUx")
    assert struct.unpack("<7Q8s", new) == (*toc, *split, b"GNUlInUx")
    assert struct.unpack("<II", blob[-48:-40]) == (0x184D2A50, 40)
    assert struct.unpack("<II", blob[-48 - 72 : -48 - 64]) == (0x184D2A50, 64)


def test_same_tar_gives_the_same_bytes(made: tuple[bytes, Layer], tmp_path: Path) -> None:
    assert written(tar_of(FILES, tmp_path / "tar")) == made


def test_bytes_are_those_of_earlier_releases(tmp_path: Path) -> None:
    """Who changes them changes the digests of images that are out there."""
    files = {"etc/greeting": b"hello\n", "large": random.Random(1).randbytes(1 << 20)}
    _, layer = written(tar_of(files, tmp_path / "tar"))
    assert layer.descriptor.digest == EARLIER


NAMES = st.builds(
    lambda folder, name: f"{folder}f{name}",
    st.sampled_from(["", "a/", "a/b/", "\u00fc/"]),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=120),
)
CONTENTS = st.one_of(
    st.binary(max_size=1500),
    st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(), st.integers(0, 400_000)),
)


@given(files=st.dictionaries(NAMES, CONTENTS, max_size=5))
def test_round_trip_of_any_files(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    blob, layer = written(tar_of(files, tmp_path_factory.getbasetemp() / "any.tar"))
    assert files_of(blob, layer.descriptor.annotations) == files
    with tarfile.open(fileobj=io.BytesIO(unpacked(blob))) as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar if member.isreg()} == files


def read(blob: bytes, annotations: Mapping[str, str]) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    return files_of(blob, annotations), tar_split_of(blob, annotations)


SMALL = {"a": b"one", "b": bytes(1000), "c": bytes(range(256)) * 300}


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen_or_without_effect(
    place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The headers between the chunks are not read; who reads those has the blob's digest."""
    blob, layer = written(tar_of(SMALL, tmp_path_factory.getbasetemp() / "flip.tar"))
    at = int(place * len(blob))
    flipped = blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :]
    try:
        found, _ = read(flipped, layer.descriptor.annotations)
    except Unreadable:
        return
    assert found == SMALL


def cut_behind(what: str) -> Callable[[bytes, Layer], bytes]:
    def cut(blob: bytes, layer: Layer) -> bytes:
        return blob[: sum(positions(layer.descriptor.annotations, what)[:2]) - 1]

    return cut


def in_chunk(blob: bytes, layer: Layer) -> bytes:
    at = next(e["offset"] for e in toc_of(blob, layer.descriptor.annotations)["entries"] if "offset" in e)
    return blob[: at + 9] + bytes([blob[at + 9] ^ 1]) + blob[at + 10 :]


DAMAGES = {
    "cut in the TOC": cut_behind("manifest"),
    "cut in the tar-split": cut_behind("tarsplit"),
    "a flipped chunk": in_chunk,
    "a byte in front": lambda blob, _: b"\0" + blob,
    "another layer's": lambda *_: written_small({"other": b"x"})[0],
}


def written_small(files: dict[str, bytes]) -> tuple[bytes, Layer]:
    with tempfile.TemporaryDirectory() as directory:
        return written(tar_of(files, Path(directory) / "tar"))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_seen(damage: Callable[[bytes, Layer], bytes]) -> None:
    blob, layer = written_small(SMALL)
    damaged, annotations = damage(blob, layer), layer.descriptor.annotations
    with pytest.raises(Unreadable):
        read(damaged, annotations)


@pytest.mark.parametrize("kept_bytes", [MAX_BYTES // 2, 1700])
def test_tar_that_is_cut_is_refused(kept_bytes: int, tmp_path: Path) -> None:
    path = tar_of({"large": FILES["large"]}, tmp_path / "tar")
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(tarfile.TarError):
        write_zstd_chunked(path, io.BytesIO())


@pytest.mark.parametrize("write", [write_estargz, write_zstd_chunked])
def test_layer_with_a_name_that_json_cannot_say_stays_a_plain_tar(write: WriteLazy, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "tree") + b"/\xff")).write_bytes(b"x")
    spec = FileLayer(tmp_path / "tree", "opt")
    lazy, plain = build_lazy(write, spec, tmp_path / "out"), build_layer(spec, tmp_path / "out")
    assert lazy.layer == plain.layer
    assert len(list((tmp_path / "out").iterdir())) == 2
