"""digest, reference, ranges."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit.digest import Digest, chain_id
from ocikit.errors import InvalidDigest, InvalidRange, InvalidReference
from ocikit.ranges import MAX_RANGES, ByteRange, ContentRange, parse_range_header
from ocikit.reference import Reference, RepositoryName, is_tag, parse_tag_or_digest

_HEX = "0123456789abcdef" * 4


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_of_bytes_parses_to_itself(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert Digest.parse(digest) == digest
    assert digest.encoded == hashlib.new(algorithm, data).hexdigest()
    assert digest.short == digest.encoded[:12]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        f"sha256:{_HEX[1:]}",
        f"sha256:{_HEX}0",
        f"sha256:{_HEX.upper()}",
        f"md5:{_HEX[:32]}",
        f"sha512:{_HEX}",
        f"sha256:{_HEX[1:]}\n",
        f"sha256-{_HEX}",
        f" sha256:{_HEX}",
        f"sha256:{'٣' * 64}",
    ],
    ids=[
        "empty",
        "no hex",
        "short",
        "long",
        "upper case",
        "md5",
        "sha512 too short",
        "newline",
        "dash",
        "blank",
        "digits of another script",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest, match="expected sha256:<64 hex>"):
        Digest.parse(text)


@given(st.text())
def test_parsing_any_text_as_a_digest_answers_or_refuses(text: str) -> None:
    try:
        assert Digest.parse(text) == text
    except InvalidDigest:
        return


def test_the_chain_id_is_the_specifications() -> None:
    a, b, c = (Digest.of(name) for name in (b"a", b"b", b"c"))
    ab = Digest.of(f"{a} {b}".encode())
    assert chain_id([a]) == a
    assert chain_id([a, b, c]) == Digest.of(f"{ab} {c}".encode())
    with pytest.raises(ValueError, match="at least one"):
        chain_id([])


@pytest.mark.parametrize(
    ("text", "registry", "repository", "reference"),
    [
        ("docker.io/library/alpine:3.19", "docker.io", "library/alpine", "3.19"),
        ("localhost/x", "localhost", "x", "latest"),
        ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000", "a/b", "t"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
        (f"r.example/a@sha256:{_HEX}", "r.example", "a", f"sha256:{_HEX}"),
        (f"r.example/a:tag@sha256:{_HEX}", "r.example", "a", f"sha256:{_HEX}"),
    ],
)
def test_references(text: str, registry: str, repository: str, reference: str) -> None:
    found = Reference.parse(text)
    assert (found.name.registry, found.name.repository, found.reference) == (registry, repository, reference)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alpine",
        "library/alpine",
        "r.example/",
        "r.example/UPPER",
        "r.example/a:",
        "r.example/a:-x",
        "r.example/a b",
        "r.example/a@sha256:12",
        "r.example/a\n",
        "r.example/a:t\n",
        "r.example//a",
        "oci:",
        "oci:dir",
        "oci::tag",
        "r.example/" + "a" * 256,
        "r.example/a:" + "t" * 129,
    ],
)
def test_what_is_no_reference_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidReference, match="invalid image reference"):
        Reference.parse(text)


@given(st.text(max_size=60))
def test_parsing_any_text_as_a_reference_answers_or_refuses(text: str) -> None:
    try:
        found = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize("text", ["oci:/a/b:tag", f"oci:/a/b@sha256:{_HEX}", "oci:rel:with.dots"])
def test_layouts_are_named_by_directory(text: str) -> None:
    found = Reference.parse(text)
    assert found.name.layout is not None
    assert str(found) == text
    assert RepositoryName.parse(str(found.name)) == found.name


def test_a_tag_is_no_digest_and_a_digest_is_no_tag() -> None:
    assert is_tag("v1")
    assert not is_tag("v1\n")
    assert isinstance(parse_tag_or_digest(f"sha256:{_HEX}"), Digest)
    with pytest.raises(InvalidReference):
        parse_tag_or_digest("sha256:short")


@pytest.mark.parametrize(
    ("header", "ranges"),
    [
        (None, ()),
        ("", ()),
        ("bytes=0-0", (ByteRange(0, 1),)),
        ("bytes=5-", (ByteRange(5),)),
        ("bytes=-3", (ByteRange(-3),)),
        ("bytes=0-1, 4-5", (ByteRange(0, 2), ByteRange(4, 6))),
        ("bytes=-0", ()),
        ("bytes=-", ()),
        ("bytes=5-4", ()),
        ("bytes=a-b", ()),
        ("items=0-1", ()),
        ("bytes=0-1,", ()),
        ("bytes=" + "9" * 19 + "-", ()),
        ("bytes=٣-", ()),
        ("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), ()),
    ],
)
def test_range_headers(header: str | None, ranges: tuple[ByteRange, ...]) -> None:
    assert tuple(parse_range_header(header)) == ranges


@given(st.integers(0, 300), st.integers(-300, 300), st.none() | st.integers(0, 300))
def test_a_resolved_range_is_what_slicing_gives(size_bytes: int, start: int, stop: int | None) -> None:
    data = bytes(at % 251 for at in range(size_bytes))
    asked = ByteRange(start) if start < 0 else ByteRange(start, stop)
    expected = data[start:] if start < 0 else data[start:stop]
    try:
        found = asked.resolve(size_bytes)
    except InvalidRange:
        assert expected == b""
        return
    assert data[found.start : found.stop] == expected
    assert found.length == len(expected)
    assert size_bytes == 0 or ContentRange.parse_header(found.header()) == found
    if asked.stop is None or asked.stop > asked.start:
        assert tuple(parse_range_header(asked.header())) == (asked,)


@pytest.mark.parametrize(
    "text", ["", "bytes 0-1/*", "bytes */5", "bytes 3-2/5", "bytes 0-5/5", "bytes 0-1/5\n", "0-1/5"]
)
def test_a_content_range_that_does_not_fit_is_none(text: str) -> None:
    assert ContentRange.parse_header(text) is None
