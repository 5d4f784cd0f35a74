"""The vectors of dazzle's own unit tests."""

from pathlib import Path

import pytest

from builder.assertions import Assertion
from builder.dazzle_hash import dazzle_hash, manifest_text
from builder.highwayhash import highwayhash256
from builder.project import Chunk, ChunkTest

_KEY = bytes.fromhex("0340f3c8947cad7875140f4c4af7c62b43131dc2a8c7fc4628f0685e369a3b0b")
_LS = ChunkTest("it should run ls", ("ls",), (Assertion.parse("status == 0"),))


@pytest.mark.parametrize(
    ("dockerfile", "args", "tests", "expected"),
    [
        ("FROM alpine", {}, None, ("02e46ef9", "2ed295")),
        ("FROM alpine", {}, [_LS], ("11f7021f", "ec375a")),
        ("FROM ubuntu", {}, None, ("6991b773", "e5affa")),
        ("FROM ubuntu", {}, [], ("7eac1330", "49d489")),
        ("FROM ubuntu", {"GO_VERSION": "1.16.3"}, [], ("1d6cf828", "3eae6")),
    ],
    ids=["base", "base with a test", "chunk", "chunk with no tests", "chunk with an argument"],
)
def test_vectors(
    dockerfile: str, args: dict[str, str], tests: list[ChunkTest] | None, expected: tuple[str, str]
):
    text = manifest_text(dockerfile, [], args, tests)
    digest = highwayhash256(_KEY, text.encode()).hex()
    assert (digest[:8], digest[-len(expected[1]) :]) == expected


def test_sources_are_listed_depth_first_with_sub_directories_before_files(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "Dockerfile").write_text("FROM x")
    (tmp_path / "a" / "b").write_text("1")
    content = {name: highwayhash256(_KEY, data).hex() for name, data in (("b", b"1"), ("D", b"FROM x"))}
    lines = [f"/a/b:{content['b']}", f"/Dockerfile:{content['D']}", "/a"]
    expected = "Baseref: r/i:base--1@sha256:2\n" + manifest_text("FROM x", lines, {})
    chunk = Chunk("c", tmp_path)
    assert dazzle_hash(chunk, "r/i:base--1@sha256:2") == highwayhash256(_KEY, expected.encode()).hex()


def test_tests_are_written_as_go_writes_them():
    test = ChunkTest(
        "it's: odd",
        ("a b", "true", "1"),
        (Assertion.parse("stdout.indexOf('x') != -1"),),
        ("sh", "-c"),
        {"A": "b"},
        "1",
    )
    assert manifest_text("", [], {}, [test]).partition("Tests:\n")[2] == (
        '- desc: \'it\'\'s: odd\'\n  user: "1"\n  command: [a b, "true", "1"]\n  entrypoint: [sh, -c]\n'
        "  env:\n    - A=b\n  assert:\n    - stdout.indexOf('x') != -1\n\n"
    )


@pytest.mark.parametrize("size", range(70))
def test_every_length_of_remainder_is_taken(size: int):
    data = bytes(range(size))
    digests = {highwayhash256(_KEY, data[:length]) for length in range(size + 1)}
    assert len(digests) == size + 1
