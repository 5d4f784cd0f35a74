"""Environment edits, image references, the SSRF wall, multi-range plans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit.distribution.wall import is_private, parse_place
from ocikit.errors import InvalidRange, OciError
from ocikit.ranges import ByteRange, ContentRange
from ocikit.reference import is_repository
from registry_facade.addressing import choose_target, parse_endpoint
from registry_facade.env_edits import EnvEdit, apply_env, edits_asked_by
from registry_facade.image_spec import parse_image_ref
from registry_facade.streaming import plan

EDITS = {
    "set": ({"A": "1"}, {"A": "2"}, {"A": "2"}),
    "remove": ({"A": "1"}, {"A": None}, {}),
    "append": ({"P": "/a"}, {"P": {"append": "/b"}}, {"P": "/a:/b"}),
    "prepend": ({"P": "/a"}, {"P": {"prepend": "/b"}}, {"P": "/b:/a"}),
    "prepend to nothing": ({}, {"P": {"prepend": "/b"}}, {"P": "/b"}),
    "own separator": ({"P": "a"}, {"P": {"append": "b", "separator": " "}}, {"P": "a b"}),
}


@pytest.mark.parametrize(("before", "raw", "after"), EDITS.values(), ids=EDITS)
def test_env_edits(before: dict[str, str], raw: dict[str, object], after: dict[str, str]) -> None:
    edits = [EnvEdit.parse(name, value) for name, value in raw.items()]
    assert None not in edits
    assert apply_env(before, [edit for edit in edits if edit is not None]) == after


@pytest.mark.parametrize("raw", [1, [], {"set": 1}, {"append": "a", "x": 1}, {}], ids=str)
def test_bad_env_edit_is_not_understood(raw: object) -> None:
    assert EnvEdit.parse("A", raw) is None


def test_names_of_gitpod_mean_the_opposite() -> None:
    asked = {"GITPOD_ENV_APPEND_PATH": "/ide:", "GITPOD_ENV_PREPEND_PATH": ":/late", "GITPOD_ENV_SET_E": ""}
    edits = edits_asked_by(asked, gitpod_compatible=True)
    assert apply_env({"PATH": "/bin"}, edits) == {"PATH": "/ide:/bin:/late", "E": ""}
    assert edits_asked_by(asked, gitpod_compatible=False) == []


@pytest.mark.parametrize(
    "text", ["", "x", "evil.test/x", "hub.test/", "hub.test/UPPER:1", "hub.test/x@sha256:1"]
)
def test_bad_image_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_image_ref(text, {"hub.test"})


def test_image_reference_of_an_upstream_with_a_port() -> None:
    ref = parse_image_ref("127.0.0.1:5000/team/app:v1", {"127.0.0.1:5000"})
    assert (ref.target.upstream, ref.target.repository, ref.reference) == ("127.0.0.1:5000", "team/app", "v1")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "::1",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "0.0.0.0",  # noqa: S104 (an address to refuse)
        "224.0.0.1",
        "fd00::1",
    ],
)
def test_private_addresses(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "registry.example"])
def test_public_addresses_and_names(address: str) -> None:
    assert not is_private(address)


PLACES = {
    "auth.test": ("auth.test", 443),
    "auth.test:8443": ("auth.test", 8443),
    "[fd00::1]:80": ("fd00::1", 80),
    "auth.test/path": None,
    "auth.test:x": None,
    "": None,
}


@pytest.mark.parametrize(("text", "place"), PLACES.items())
def test_places_that_are_free(text: str, place: tuple[str, int] | None) -> None:
    assert parse_place(text) == place


ranges = st.builds(ByteRange, st.integers(-50, 150), st.none() | st.integers(0, 200))


@given(st.lists(ranges, min_size=1, max_size=6), st.integers(1, 100))
def test_plan_serves_every_satisfiable_range_of_a_set(asked: list[ByteRange], size: int) -> None:
    satisfiable: list[ContentRange] = []
    for item in asked:
        try:
            satisfiable.append(item.resolve(size))
        except InvalidRange:
            continue
    if not satisfiable:
        with pytest.raises(InvalidRange):
            plan(asked, size)
        return
    chosen = plan(asked, size)
    if chosen.status == 200:
        assert chosen.ranges == (ContentRange(0, size, size),)
    else:
        assert list(chosen.ranges) == satisfiable


SEGMENTS = st.sampled_from(
    [
        "v2",
        "blobs",
        "manifests",
        "tags",
        "list",
        "referrers",
        "..",
        ".",
        "",
        "%2e%2e",
        "a",
        "hub.test",
        "\r\nX: 1",
    ]
)
PATHS = st.lists(SEGMENTS | st.text(max_size=20), max_size=8).map(lambda parts: "/" + "/".join(parts))


@given(PATHS, st.text(max_size=20) | st.just("hub.test"))
def test_any_path_is_an_endpoint_of_a_proper_repository_or_refused(path: str, namespace: str) -> None:
    try:
        endpoint = parse_endpoint(f"/v2{path}")
        if endpoint is None:
            return
        target = choose_target(endpoint.name, namespace, frozenset({"hub.test"}), "hub.test")
    except OciError:
        return
    assert target.upstream in {"hub.test", "workspaces"}
    assert is_repository(target.repository)
    assert not any(ord(char) < 32 for char in f"{target.namespace}{endpoint.reference}")
