import io
import tarfile

import pytest

from builder.errors import InvalidLayer
from builder.flatten import flattened_tar


def layer(*entries: str) -> io.BytesIO:
    """``path=data`` is a file, ``path/`` a directory, ``path->x`` a symlink, ``path=>x`` a hard link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry in entries:
            info, data = tarfile.TarInfo(), b""
            if "=>" in entry:
                info.name, _, info.linkname = entry.partition("=>")
                info.type = tarfile.LNKTYPE
            elif "->" in entry:
                info.name, _, info.linkname = entry.partition("->")
                info.type = tarfile.SYMTYPE
            elif entry.endswith("/"):
                info.name, info.type = entry.rstrip("/"), tarfile.DIRTYPE
            else:
                info.name, _, text = entry.partition("=")
                data = text.encode()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


def flat(*layers: io.BytesIO) -> dict[str, str]:
    data = io.BytesIO(b"".join(flattened_tar(list(layers))))
    with tarfile.open(fileobj=data) as archive:
        found: dict[str, str] = {}
        for info in archive:
            file = archive.extractfile(info) if info.isreg() or info.islnk() else None
            found[info.name] = file.read().decode() if file is not None else info.linkname or "dir"
        return found


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([["a=1"], ["a=2"]], {"a": "2"}),
        ([["a=1", "b=1"], [".wh.a"]], {"b": "1"}),
        ([["d/", "d/a=1", "d/b=1"], ["d/", "d/.wh..wh..opq", "d/c=1"]], {"d": "dir", "d/c": "1"}),
        ([["d/", "d/a=1"], [".wh.d"], ["d/", "d/x=1"]], {"d": "dir", "d/x": "1"}),
        ([["d/", "d/a=1"], ["d=file"]], {"d": "file"}),
        ([["d=file"], ["d/", "d/a=1"]], {"d": "dir", "d/a": "1"}),
        ([["a=1", "b=>a"], ["a=2"]], {"a": "2", "b": "1"}),
        ([["a=1", "b=>a", "c=>a"], [".wh.a"]], {"b": "1", "c": "1"}),
        ([["l->x"], ["l->y"]], {"l": "y"}),
        ([], {}),
    ],
)
def test_shows_what_a_container_sees(layers: list[list[str]], expected: dict[str, str]):
    assert flat(*(layer(*entries) for entries in layers)) == expected


def test_hard_links_stay_links():
    data = io.BytesIO(b"".join(flattened_tar([layer("a=1", "b=>a"), layer("c=1")])))
    with tarfile.open(fileobj=data) as archive:
        assert [(info.name, info.islnk()) for info in archive] == [("a", False), ("b", True), ("c", False)]


def test_what_is_no_tar_is_refused():
    with pytest.raises(InvalidLayer):
        b"".join(flattened_tar([io.BytesIO(b"x" * 4096)]))
