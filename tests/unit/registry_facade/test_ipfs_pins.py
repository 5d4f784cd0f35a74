"""Which pins go, and what a pin's name says."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit.digest import Digest
from registry_facade.ipfs.exposure import knows_the_public_network
from registry_facade.ipfs.node import multiaddr
from registry_facade.ipfs.pins import HIGH, LOW, Pin, Usage, plan_collection
from registry_facade.sharing import Audience, Seen, SharingRules, is_marked

BUDGET = 1000


def pin(number: int, size: int, used_s: float) -> Pin:
    return Pin(f"cid{number}", Digest.of(str(number).encode()), size, used_s)


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 40))
def test_a_pin_is_what_its_name_says(size: int, used_s: int) -> None:
    made = pin(1, size, used_s)
    assert Pin.parse(made.cid, made.name) == made


@given(st.text(max_size=120))
def test_other_names_are_somebody_else_s(name: str) -> None:
    assert Pin.parse("cid", name) is None


@pytest.mark.parametrize(
    "name",
    ["", "lapstrake:", "lapstrake:sha256:abc:1:2", f"x{Digest.of(b'')}:1:2", f"lapstrake:{Digest.of(b'')}",
     f"lapstrake:{Digest.of(b'')}:1:-2", f"lapstrake:{Digest.of(b'')}:one:2"],
)  # fmt: skip
def test_a_broken_name_is_no_pin_of_ours(name):
    assert Pin.parse("cid", name) is None


def test_below_the_mark_nothing_goes():
    plan = plan_collection([pin(1, 800, 5)], Usage(int(HIGH * BUDGET), BUDGET))
    assert (plan.is_needed, list(plan.victims), plan.freed_bytes) == (False, [], 0)


def test_the_least_recently_pulled_go_first_until_the_low_mark():
    pins = [pin(number, 100, 1000 - number) for number in range(10)]
    random.Random(1).shuffle(pins)
    plan = plan_collection(pins, Usage(1000, BUDGET))
    assert [item.cid for item in plan.victims] == ["cid9", "cid8", "cid7"]
    assert plan.usage.occupied_bytes - plan.freed_bytes <= LOW * BUDGET


def test_what_nobody_pinned_goes_before_any_pin():
    plan = plan_collection([pin(1, 700, 1)], Usage(950, BUDGET))
    assert (plan.is_needed, list(plan.victims), plan.freed_bytes) == (True, [], 250)


def test_kept_layers_stay_whatever_comes():
    kept = pin(1, 500, 1)
    plan = plan_collection([kept, pin(2, 500, 2)], Usage(1000, BUDGET), kept={kept.digest})
    assert [item.cid for item in plan.victims] == ["cid2"]


def test_room_is_made_for_what_is_to_come():
    plan = plan_collection([pin(1, 300, 1), pin(2, 300, 2)], Usage(600, BUDGET), needed_bytes=400)
    assert [item.cid for item in plan.victims] == ["cid1"]


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 100)), max_size=12),
    st.integers(0, 500),
    st.integers(0, 500),
)
def test_a_needed_plan_reaches_the_low_mark_or_unpins_everything(
    pins: list[tuple[int, int]], others: int, needed: int
) -> None:
    own = [pin(number, size, used_s) for number, (size, used_s) in enumerate(pins)]
    occupied = sum(item.size for item in own) + others
    plan = plan_collection(own, Usage(occupied, BUDGET), needed_bytes=needed)
    left = sum(item.size for item in own) - sum(item.size for item in plan.victims)
    if plan.is_needed:
        assert left + needed <= LOW * BUDGET or not left
    kept = [item for item in own if item not in plan.victims]
    assert all(gone.used_s <= stays.used_s for gone in plan.victims for stays in kept)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, True),
        ({"AutoConf": {"Enabled": False}, "Bootstrap": []}, False),
        ({"AutoConf": {"Enabled": False}, "Bootstrap": None}, False),
        ({"AutoConf": {}, "Bootstrap": []}, True),
        ({"AutoConf": {"Enabled": False}, "Bootstrap": ["auto"]}, True),
        ({"AutoConf": {"Enabled": False}, "Bootstrap": ["/dnsaddr/bootstrap.libp2p.io/p2p/Qm"]}, True),
        ({"AutoConf": {"Enabled": False}, "Bootstrap": ["/ip4/10.0.0.7/tcp/4001/p2p/12D3"]}, False),
    ],
)
def test_a_node_is_public_until_it_knows_nobody_of_the_public_network(config, expected):
    assert knows_the_public_network(config) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://[::1]:5001", "/ip6/::1/tcp/5001/http"),
        ("https://kubo", "/dns/kubo/tcp/443/https"),
        ("http://kubo.ipfs.svc", "/dns/kubo.ipfs.svc/tcp/80/http"),
    ],
)
def test_addresses_as_the_client_wants_them(url, expected):
    assert multiaddr(url) == expected


RULES = SharingRules(unshared=["ghcr.io/acme/*"], public=["docker.io/*", "ghcr.io/acme/open"])


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], Audience.CLUSTER),
        ([Seen("quay.io", "x")], Audience.CLUSTER),
        ([Seen("docker.io", "library/x")], Audience.WORLD),
        ([Seen("docker.io", "library/x", is_marked=True)], Audience.NOBODY),
        ([Seen("ghcr.io", "acme/secret")], Audience.NOBODY),
        ([Seen("ghcr.io", "acme/open")], Audience.NOBODY),
        ([Seen("ghcr.io", "acme/secret"), Seen("docker.io", "library/x")], Audience.WORLD),
        ([Seen("ghcr.io", "acme/secret"), Seen("quay.io", "x")], Audience.CLUSTER),
    ],
)
def test_a_layer_is_shared_as_far_as_the_most_open_image_it_is_in(seen, expected):
    assert RULES.audience(seen) is expected


@pytest.mark.parametrize(
    ("value", "expected"), [("no", True), ("Never", True), ("yes", False), (None, False)]
)
def test_an_image_is_marked_by_its_annotation(value, expected):
    assert is_marked({"dev.lapstrake.share": value} if value else {}) is expected
