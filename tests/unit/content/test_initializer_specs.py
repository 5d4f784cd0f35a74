import pytest
from hypothesis import given
from hypothesis import strategies as st

from content.fields import InvalidRequest
from content.initializers.specs import (
    FromGit,
    FromSnapshot,
    Prebuild,
    parse_initializer,
    snapshots_of,
    url_problem,
)
from content.keys import Workspace
from ocikit.digest import Digest

_W = Workspace("me", "w")
_LEAVES = st.none() | st.booleans() | st.integers() | st.text()
_JSON = st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
_ID = "20260101T000000.000Z-00000000"


@pytest.mark.parametrize(
    "initializer",
    [
        None,
        {},
        {"kind": "other"},
        {"kind": "git"},
        {"kind": "git", "url": "--upload-pack=touch /tmp/x"},
        {"kind": "git", "url": "ext::sh -c id"},
        {"kind": "git", "url": "https://host/repo"},  # not allowed here
        {"kind": "git", "url": "http://user:word@host/repo"},
        {"kind": "git", "url": "http://-oProxyCommand=x/repo"},
        {"kind": "git", "url": "http://host/repo", "branch": "--upload-pack=x"},
        {"kind": "git", "url": "http://host/repo", "branch": "a..b"},
        {"kind": "git", "url": "http://host/repo", "commit": "HEAD"},
        {"kind": "git", "url": "http://host/repo", "depth": 0},
        {"kind": "git", "url": "http://host/repo", "target": "../x"},
        {"kind": "git", "url": "http://host/repo", "target": "a/.git/hooks"},
        {"kind": "git", "url": "http://host/repo", "surprise": 1},
        {"kind": "download", "files": []},
        {"kind": "download", "files": [{"url": "http://host/x", "path": "x"}]},
        {"kind": "download", "files": [{"url": "file:///x", "path": "x", "digest": Digest.of(b"")}]},
        {"kind": "download", "files": [{"url": "http://h/x", "path": "/x", "digest": Digest.of(b"")}]},
        {"kind": "snapshot", "snapshot_id": "x"},
        {"kind": "snapshot", "snapshot_id": "20260101T000000.000Z-00000000", "workspace": ".."},
        {"kind": "composite", "initializers": [{"kind": "backup"}]},
        {"kind": "composite", "initializers": "x"},
        {"kind": "prebuild", "snapshot": {}, "git": {}},
    ],
)
def test_initializers_that_cannot_be_are_refused(initializer) -> None:
    with pytest.raises(InvalidRequest):
        parse_initializer(initializer, _W, protocols={"http", "file"})


def test_what_is_nested_too_deeply_is_refused() -> None:
    nested = {"kind": "empty"}
    for _ in range(5):
        nested = {"kind": "composite", "initializers": [nested]}
    with pytest.raises(InvalidRequest):
        parse_initializer(nested, _W, protocols=())


def test_a_prebuild_names_its_snapshot_and_its_commit() -> None:
    commit = "0" * 40
    body = {
        "kind": "prebuild",
        "snapshot": {"snapshot_id": _ID, "workspace": "you/p"},
        "git": {"url": "https://host/r.git", "commit": commit, "submodules": True},
    }
    found = parse_initializer(body, _W, protocols={"https"})
    other = Workspace("you", "p")
    git = FromGit("https://host/r.git", commit=commit, submodules=True)
    assert found == Prebuild(FromSnapshot(other, _ID), git)
    assert snapshots_of(found) == {other}


@given(st.text() | st.from_regex(r"https?://[^/]*/.*"))
def test_no_url_that_is_let_through_can_be_taken_for_an_option_or_a_command(text: str) -> None:
    if url_problem(text, {"https", "http"}) is None:
        assert text.startswith(("http://", "https://"))
        assert text.isprintable()
        assert not set(text) & set(" \\\"'`<>\n")


@given(_JSON)
def test_any_json_is_parsed_or_refused(body) -> None:
    try:
        parse_initializer(body, _W, protocols={"https"})
    except InvalidRequest:
        return
