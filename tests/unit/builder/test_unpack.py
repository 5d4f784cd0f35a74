"""Layers as directories: what cannot be unpacked is named."""

import io
import tarfile
from pathlib import Path

import pytest

from builder.errors import InvalidLayer
from builder.unpack import unpack_tar


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("target", ["gone", "dir"])
def test_a_hard_link_to_no_file_of_the_layer_is_named(tmp_path: Path, target: str, *, overlay: bool):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        directory = tarfile.TarInfo("dir")
        directory.type = tarfile.DIRTYPE
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.LNKTYPE, target
        for member in (directory, link):
            archive.addfile(member)
    with pytest.raises(InvalidLayer, match=f"link is a link to {target}, no file of this layer"):
        unpack_tar([buffer.getvalue()], tmp_path, "abc", overlay=overlay)
