"""Who keeps which digest, and who the members are."""

import collections
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit.digest import Digest
from registry_facade.peers.membership import Membership, is_peer_address
from registry_facade.peers.ring import ranked
from servicekit.testing.fake_clock import FakeClock

MEMBERS = [f"http://10.0.0.{number}:5000" for number in range(1, 6)]
DIGESTS = [Digest.of(bytes([number, high])) for number in range(256) for high in range(4)]


@given(st.permutations(MEMBERS))
def test_every_facade_sees_the_same_order(members):
    assert ranked(DIGESTS[0], members) == ranked(DIGESTS[0], MEMBERS)


def test_digests_spread_over_the_members():
    kept = collections.Counter(ranked(digest, MEMBERS)[0] for digest in DIGESTS)
    assert min(kept.values()) > len(DIGESTS) / len(MEMBERS) * 0.7


def test_a_member_that_goes_moves_only_what_it_kept():
    left = MEMBERS[1:]
    for digest in DIGESTS:
        before = ranked(digest, MEMBERS)
        expected = before[0] if before[0] in left else before[1]
        assert ranked(digest, left)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://10.0.0.1:5000", True),
        ("https://facade.example", True),
        ("dns+http://facade-peers:5000", True),
        ("10.0.0.1:5000", False),
        ("http://", False),
        ("http://h:1/path", False),
        ("ftp://h", False),
        ("", False),
    ],
)
def test_addresses_are_told_from_other_text(text, expected):
    assert is_peer_address(text) is expected


async def test_the_own_address_is_a_member_though_not_listed():
    membership = Membership([MEMBERS[0]], "http://me:1/")
    assert set(await membership.members()) == {MEMBERS[0], "http://me:1"}


async def test_a_name_stands_for_all_its_addresses():
    membership = Membership(["dns+http://localhost:5000"], "http://me:1")
    found = set(await membership.members()) - {"http://me:1"}
    known = {entry[4][0] for entry in socket.getaddrinfo("localhost", 5000, type=socket.SOCK_STREAM)}
    assert found == {f"http://[{item}]:5000" if ":" in item else f"http://{item}:5000" for item in known}


async def test_a_name_that_cannot_be_looked_up_is_no_error():
    clock = FakeClock()
    membership = Membership(["dns+http://no-such-name.invalid:1"], "http://me:1", clock=clock)
    assert set(await membership.members()) == {"http://me:1"}
