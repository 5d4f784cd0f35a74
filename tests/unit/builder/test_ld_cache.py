"""glibc's library cache against ldconfig itself."""

import dataclasses
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.ld_cache import LdCache, Library
from builder.merge_files import merge_ld_caches
from tests.support.components import program

NAMES = st.from_regex(rb"lib[a-z0-9.+-]{1,12}\.so[.0-9]{0,6}", fullmatch=True)
LIBRARIES = st.builds(
    Library, NAMES, NAMES.map(lambda name: b"/lib/" + name), st.sampled_from([0x303, 0x803]), st.just(0),
    st.sampled_from([0, 1 << 62]),
).map(lambda one: dataclasses.replace(one, subdirectory=b"x86-64-v3" if one.hwcap else b""))  # fmt: skip


def printed(cache: Path) -> list[str]:
    argv = [program("ldconfig"), "-p", "-C", str(cache)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[1:]


def cache_of(root: Path, name: str, *directories: Path) -> Path:
    """What ldconfig makes of the system's directories and ``directories``."""
    settings, cache = root / f"{name}.conf", root / name
    settings.write_text("".join(f"{directory}\n" for directory in directories))
    argv = [program("ldconfig"), "-X", "-f", str(settings), "-C", str(cache)]
    subprocess.run(argv, check=True, capture_output=True)
    return cache


@pytest.fixture
def libraries(tmp_path: Path) -> list[Path]:
    """Two directories with real libraries; one is in both."""
    found = sorted(Path("/usr/lib").glob("*-linux-gnu/lib[a-d]*.so.[0-9]"))
    made = [tmp_path / "one", tmp_path / "two"]
    for directory, chosen in zip(made, (found[:3], found[2:6]), strict=True):
        directory.mkdir()
        for path in chosen:
            shutil.copy(path, directory)
    return made


@pytest.mark.component("ldconfig")
def test_the_merged_cache_is_the_one_that_ldconfig_makes_of_all(tmp_path: Path, libraries: list[Path]):
    base = cache_of(tmp_path, "base").read_bytes()
    parts = [cache_of(tmp_path, directory.name + ".cache", directory).read_bytes() for directory in libraries]
    merged = tmp_path / "merged"
    merged.write_bytes(merge_ld_caches(base, parts))
    assert sorted(printed(merged)) == sorted(printed(cache_of(tmp_path, "all", *libraries)))
    names = [line.split()[0] for line in printed(merged)[:-1]]
    assert names == [line.split()[0] for line in printed(cache_of(tmp_path, "all", *libraries))[:-1]]


def test_what_was_removed_is_gone_and_a_cache_that_cannot_be_read_is_left_alone():
    a, b, c = (
        Library(name, b"/lib/" + name, 0x303, 0, 0) for name in (b"liba.so.1", b"libb.so.1", b"libc.so.1")
    )
    base = LdCache((a, b)).dump()
    merged = merge_ld_caches(base, [LdCache((b,)).dump(), LdCache((a, b, c)).dump()])
    assert set(LdCache.parse(merged).libraries) == {b, c}
    assert merge_ld_caches(b"", [base, b"something else"]) == b"something else"


@given(st.lists(LIBRARIES, unique=True, max_size=8), st.binary(max_size=20))
def test_a_cache_is_read_as_it_was_written(libraries: list[Library], generator: bytes):
    data = LdCache(tuple(libraries), generator).dump()
    assert LdCache.parse(data).dump() == data
    assert set(LdCache.parse(data).libraries) == set(libraries)
    old = b"ld.so-1.7.0\0" + struct.pack("<I", 1) + bytes(12) + bytes(4)
    assert LdCache.parse(old + data) == LdCache.parse(data)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_anything_is_read_or_refused(data: bytes, at: int, byte: int):
    whole = bytearray(LdCache((Library(b"liba.so", b"/liba.so", 1, 0, 1 << 62, b"x"),), b"g").dump())
    whole[at % len(whole)] = byte
    for text in (data, bytes(whole), bytes(whole[: at % len(whole)])):
        try:
            LdCache.parse(text)
        except ValueError:
            continue
