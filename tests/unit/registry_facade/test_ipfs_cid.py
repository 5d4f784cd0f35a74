"""CIDs against those a Kubo 0.41 node gave for the same bytes and parameters (`ipfs add --only-hash`)."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit.cid import CHUNK_BYTES, CidHasher, cid_of, is_cid

FROM_KUBO = {
    0: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
    1: "bafkreiekgmp53zydf4z2ohq3fysx3aawny2i4ah4wf4rj5el3nl2drrqa4",
    CHUNK_BYTES: "bafkreiglzzhdc22b5hdbycurdhnywbxixjxv7x7iws4qdzdus2335l2mh4",
    CHUNK_BYTES + 1: "bafybeidbnktb4bqoavmujby4l3mqjapyknhjaxy2bhsgfnx5smxecd2nr4",
    5 * CHUNK_BYTES + 7: "bafybeihmckucz3adfonsdad7tqkkbgcz7rcoq4ri4sydygfqv5vbzfqowq",
}


@pytest.mark.parametrize("size", FROM_KUBO)
def test_the_cid_is_the_one_a_node_gives(size):
    assert cid_of(random.Random(size).randbytes(size)) == FROM_KUBO[size]


def test_the_cid_of_a_dag_of_two_levels_is_the_one_a_node_gives():
    hasher, chunk = CidHasher(), bytes(CHUNK_BYTES)
    for _ in range(1025):
        hasher.update(chunk)
    assert hasher.cid() == "bafybeigt7wofv4vnxbg3titijasuw4ptg5kfztec4smsk7opdt7z6djoxq"


@given(st.lists(st.integers(0, CHUNK_BYTES), max_size=4))
def test_the_cid_does_not_depend_on_how_the_pieces_came(cuts):
    data = random.Random(1).randbytes(2 * CHUNK_BYTES + 5)
    hasher, at = CidHasher(), 0
    for cut in cuts:
        hasher.update(data[at : at + cut])
        at += cut
    hasher.update(data[at:])
    assert hasher.cid() == cid_of(data)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1])
@pytest.mark.parametrize("damage", ["flip", "cut", "extend"])
def test_other_bytes_have_another_cid(size, damage):
    data = random.Random(size).randbytes(size)
    damaged = {"flip": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "extend": data + b"\0"}[damage]
    assert cid_of(damaged) != cid_of(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (cid_of(b""), True),
        ("QmWfVY9y3xjsixTgbd9AorQxH7VtMpzfx2HaWtsoUYecaX", True),
        ("", False),
        ("bafy", False),
        (cid_of(b"") + "&pin=true", False),
        ("../etc/passwd", False),
        ("b" + "a" * 4000, False),
    ],
    ids=["v1", "v0", "empty", "short", "with a parameter", "a path", "overlong"],
)
def test_the_form_of_a_cid_is_told(text, expected):
    assert is_cid(text) is expected
