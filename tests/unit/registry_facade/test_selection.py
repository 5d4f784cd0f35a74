"""Which source of a blob is asked next."""

import pytest

from ocikit.digest import Digest
from ocikit.errors import BlobNotFound, SourceUnavailable
from ocikit.testing.faults import DownSource
from registry_facade.errors import PullFailed
from registry_facade.sources.chain import Origin, Selection

DIGEST = Digest.of(b"x")
DOWN = SourceUnavailable("a", "it is down")


def pair() -> tuple[Selection, Origin, Origin]:
    near, far = Origin(DownSource()), Origin(DownSource(), trusted=False)
    return Selection(DIGEST, [near, far]), near, far


def test_nearest_is_asked_first_and_another_after_a_failure() -> None:
    selection, near, far = pair()
    assert selection.next() is near
    selection.failed(near, DOWN)
    assert selection.next() is far


def test_source_that_is_down_is_not_asked_again_while_another_sends() -> None:
    selection, near, far = pair()
    selection.failed(near, DOWN)
    for _ in range(10):
        selection.progressed(far)
        assert selection.next() is far
        assert selection.stalled == 0


def test_without_a_byte_each_is_asked_three_times() -> None:
    selection, near, far = pair()
    asked = []
    for _ in range(6):
        asked.append(selection.next())
        selection.failed(asked[-1], DOWN)
    assert asked == [near, far] * 3
    with pytest.raises(PullFailed, match="it is down"):
        selection.next()


def test_source_that_was_given_up_may_try_again_when_the_one_that_sent_fails_too() -> None:
    selection, near, far = pair()
    for _ in range(3):
        selection.failed(near, DOWN)
    selection.progressed(far)
    for _ in range(3):
        selection.failed(far, DOWN)
    assert selection.next() is near


def test_absent_everywhere_is_absent() -> None:
    selection, near, far = pair()
    for origin in (near, far):
        selection.failed(origin, BlobNotFound(DIGEST, "there"))
    selection.progressed(near)
    with pytest.raises(BlobNotFound):
        selection.next()
