"""Where files are cut: at the same places of the same content, wherever it lies."""

import io
import itertools
import random
import tarfile

import pytest

from registry_facade.layers.chunking import MAX_BYTES, MIN_BYTES, content_chunks, fixed_chunks

RANDOM = random.Random(1).randbytes(6 << 20)
CONTENTS = {
    "random bytes": RANDOM,
    "lines of text": b"".join(b"%d: the quick brown fox, %x\n" % (n, n * n) for n in range(80_000)),
    "zeros": bytes(3 << 20),
    "one byte in turn": bytes(range(256)) * 8192,
}


def cut(data: bytes) -> list[bytes]:
    return list(content_chunks(io.BytesIO(data), len(data)))


@pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS)
def test_chunks_are_the_file_and_of_bounded_size(data: bytes) -> None:
    chunks = cut(data)
    assert b"".join(chunks) == data
    assert all(MIN_BYTES <= len(chunk) <= MAX_BYTES for chunk in chunks[:-1])
    assert 0 < len(chunks[-1]) <= MAX_BYTES


def test_chunks_are_as_small_as_is_said() -> None:
    assert 50 << 10 < len(RANDOM) / len(cut(RANDOM)) < 110 << 10


EDITS = {
    "a byte put in": lambda data: data[:3_000_000] + b"!" + data[3_000_000:],
    "a MiB taken out": lambda data: data[:2_000_000] + data[2_000_000 + (1 << 20) :],
    "bytes in front": lambda data: b"a new head" + data,
    "bytes at the end": lambda data: data + b"a new end",
    "the first MiB at the end": lambda data: data[1 << 20 :] + data[: 1 << 20],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_few_chunks_of_an_edited_file_are_new(edit) -> None:
    assert len(set(cut(edit(RANDOM))) - set(cut(RANDOM))) <= 4


@pytest.mark.parametrize("start", [1, 31, 1 << 20, (1 << 20) + 5, (3 << 20) - 7])
def test_any_part_of_a_file_is_cut_at_the_same_places(start: int) -> None:
    """Soon after its begin, and wherever the MiBs end in which it is read."""
    later = cut(RANDOM[start:])[8:]
    assert later == cut(RANDOM)[-len(later) :]


def test_a_cut_may_be_where_a_mib_that_was_read_ends() -> None:
    ends = itertools.accumulate(map(len, cut(RANDOM)))
    start = next(end for end in ends if end > 2 << 20) - (1 << 20)
    assert 1 << 20 in itertools.accumulate(map(len, cut(RANDOM[start:])))


@pytest.mark.parametrize("size", [0, 1, 10, 11, 20])
def test_fixed_chunks_are_the_file(size: int) -> None:
    data = RANDOM[:size]
    chunks = list(fixed_chunks(io.BytesIO(data), size, chunk_bytes=10))
    assert b"".join(chunks) == data
    assert all(len(chunk) == 10 for chunk in chunks[:-1])


@pytest.mark.parametrize("missing_bytes", [1, 1 << 20])
def test_content_that_ends_early_is_refused(missing_bytes: int) -> None:
    with pytest.raises(tarfile.ReadError):
        list(content_chunks(io.BytesIO(RANDOM[:-missing_bytes]), len(RANDOM)))
