from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.fingerprint import Inputs
from builder.plan import Action, Published, chain_id_counts, layer_order, pinned_order, plan_chunk

INPUTS = Inputs("linux/amd64", "b", "d", {"A": "1"}, {"/f": "file 0644 x"})


def test_what_is_there_on_this_base_is_reused():
    planned = plan_chunk("c", INPUTS, base_digest="sha256:1", published=Published("sha256:1"))
    assert (planned.action, planned.reason) == (Action.REUSE, "unchanged")


def test_what_is_there_on_another_image_of_the_base_is_built():
    planned = plan_chunk("c", INPUTS, base_digest="sha256:2", published=Published("sha256:1"))
    assert (planned.action, planned.reason) == (Action.BUILD, "base changed: same sources, another image")


def test_what_is_elsewhere_is_pulled():
    planned = plan_chunk("c", INPUTS, base_digest="sha256:1", published=Published("sha256:1", elsewhere=True))
    assert planned.action is Action.PULL


def test_the_reason_is_the_difference_from_the_nearest_earlier_build():
    far = replace(INPUTS, base="x", dockerfile="y")
    near = replace(INPUTS, args={"A": "0"})
    planned = plan_chunk("c", INPUTS, base_digest="", published=None, earlier=[far, near])
    assert planned.reason == "argument A changed"


def test_without_earlier_builds_it_is_new_and_what_is_forced_says_so():
    assert plan_chunk("c", INPUTS, base_digest="", published=None).reason == "new"
    forced = plan_chunk("c", INPUTS, base_digest="", published=Published(""), forced=True)
    assert (forced.action, forced.reason) == (Action.BUILD, "forced")


def test_popular_chunks_lie_lower_with_ties_by_name():
    combinations = {"x": ["c", "a"], "y": ["b", "c"], "z": ["c"]}
    assert layer_order("popularity", combinations, chosen="y") == ("c", "b")
    assert layer_order("as-written", combinations, chosen="x") == ("c", "a")
    assert layer_order("alphabetical", combinations, chosen="x") == ("a", "c")


def test_counts_the_stacks_of_each_order():
    combinations = {"x": ["a", "z"], "y": ["b", "z"], "w": ["z"]}
    assert chain_id_counts(combinations) == {
        "alphabetical": 5, "as-written": 5, "popularity": 3, "lower_bound": 3
    }  # fmt: skip


@given(
    st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.lists(st.sampled_from("abcdef"), unique=True))
)
def test_no_order_goes_below_the_bound(combinations: dict[str, list[str]]):
    counts = chain_id_counts(combinations)
    assert all(count >= counts["lower_bound"] for count in counts.values())


@pytest.mark.parametrize(
    ("now", "published", "expected"),
    [
        (["a", "b", "c"], ["b", "a", "c"], ["b", "a", "c"]),
        (["new", "a", "b"], ["base", "b", "b", "a", "merged-files"], ["b", "a", "new"]),
        (["a"], ["b", "a"], ["a"]),
        (["a", "b"], [], ["a", "b"]),
    ],
    ids=["kept", "what is new on top", "what is gone", "never published"],
)
def test_an_image_that_is_out_keeps_its_order(now: list[str], published: list[str], expected: list[str]):
    assert list(pinned_order(now, published)) == expected
