import pytest

from ocikit.env_merge import EnvAction, merge_env

BASE = {"PATH": "first:second:third:common", "HOME": "/root"}


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (EnvAction.USE_FIRST, "first:second:third:common"),
        (EnvAction.USE_LAST, "fourth:fifth:common"),
        (EnvAction.MERGE, "first:second:third:common:fourth:fifth:common"),
        (EnvAction.MERGE_UNIQUE, "first:second:third:fourth:fifth:common"),
    ],
)
def test_actions(action: EnvAction, expected: str):
    chunk = {**BASE, "PATH": "fourth:fifth:common"}
    assert merge_env(BASE, [chunk], {"PATH": action})["PATH"] == expected


def test_an_inherited_value_is_not_taken_for_a_change():
    changed, unrelated = {**BASE, "HOME": "/home/me"}, dict(BASE)
    assert merge_env(BASE, [changed, unrelated], {"HOME": EnvAction.USE_LAST})["HOME"] == "/home/me"


def test_values_may_hold_equals_signs_and_order_is_base_first_then_chunks():
    merged = merge_env(BASE, [{**BASE, "OPTS": "-Da=b"}, {**BASE, "X": "1", "OPTS": "no"}], {})
    assert list(merged.items()) == [*BASE.items(), ("OPTS", "-Da=b"), ("X", "1")]


def test_prepending_to_path_in_every_chunk_keeps_all_of_them():
    chunks = [{"PATH": "/a:/bin"}, {"PATH": "/b:/bin"}]
    assert merge_env({"PATH": "/bin"}, chunks, {"PATH": EnvAction.MERGE_UNIQUE})["PATH"] == "/a:/b:/bin"
