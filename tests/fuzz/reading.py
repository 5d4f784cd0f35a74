"""``python -m tests.fuzz.reading WHAT [libFuzzer's options] [CORPUS]``, WHAT being tar, rebuild or index.

Whatever the bytes are: the reader ends, in bounded memory, and what it raises is one of our own errors.
"""

import contextlib
import io
import sys

import atheris

with atheris.instrument_imports(include=["content"]):
    from content.archive.extract import safe_path
    from content.archive.index import IndexReader
    from content.archive.reader import TarReader
    from content.archive.rebuild import rebuild
    from content.errors import ContentError


def read_tar(data: bytes) -> None:
    reader = TarReader(io.BytesIO(data), "fuzz")
    with contextlib.suppress(ContentError):
        for member in reader:
            size = sum(len(chunk) for chunk in reader.chunks())
            assert size <= len(data), "more came out than went in"
            if member.sparse is not None:
                assert sum(length for _, length in member.sparse) == size
                assert all(
                    offset + length <= (member.real_size_bytes or 0) for offset, length in member.sparse
                )
            with contextlib.suppress(ContentError):
                path = safe_path(member.path)
                assert b".." not in path.split(b"/")
                assert not path.startswith(b"/")


def rebuild_index(data: bytes) -> None:
    with contextlib.suppress(ContentError):
        rebuild(io.BytesIO(data), "fuzz", "fuzz", tar_bytes=len(data), tar_crc32=0).close()


def read_index(data: bytes) -> None:
    with contextlib.suppress(ContentError):
        for entry in IndexReader(io.BytesIO(data)).entries():
            assert entry.size >= 0


TARGETS = {"tar": read_tar, "rebuild": rebuild_index, "index": read_index}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
