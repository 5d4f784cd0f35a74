"""Which combinations change what a chunk's tests depend on."""

import io
import tarfile
from collections.abc import Sequence

import pytest

from builder.contents import Contents, read_contents, stacked
from builder.test_scope import TestScope
from ocikit.descriptor import Platform
from ocikit.image_config import ImageConfig


def contents(*entries: str) -> Contents:
    """``path`` is a program, ``path->x`` a link, ``path/`` a directory, ``path=x`` a plain file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for entry in entries:
            name, _, data = entry.partition("=")
            info = tarfile.TarInfo(name.partition("->")[0].rstrip("/"))
            info.mode, info.size = 0o644 if "=" in entry else 0o755, len(data)
            if "->" in name:
                info.type, info.linkname = tarfile.SYMTYPE, name.partition("->")[2]
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(data.encode()))
    return read_contents([out.getvalue()], "test")


def config(*env: str, **execution: object) -> ImageConfig:
    said = {"Env": ["PATH=/usr/local/bin:/usr/bin", "HOME=/root", *env], **execution}
    return ImageConfig(Platform("linux", "amd64"), (), execution=said)


BASE = contents(
    "usr/",
    "usr/bin/",
    "usr/bin/sh",
    "usr/lib/libc.so.6",
    "etc/passwd=root",
    "bin->usr/bin",
    "opt/",
    "etc/rules.d/",
)
CHUNK = contents("usr/bin/tool", "opt/tool=1", "var/lib/dpkg/status=tool")


@pytest.mark.parametrize(
    ("other", "undisturbed"),
    [
        pytest.param(["usr/bin/another", "opt/another/bin/x"], True, id="files of its own"),
        pytest.param(["opt/tool=1"], True, id="the same file"),
        pytest.param(["opt/tool=2"], False, id="another content of a file of the chunk"),
        pytest.param(["usr/lib/libc.so.6=2"], False, id="another content of a file of the base"),
        pytest.param(["usr/bin/", "opt/"], True, id="directories that are there"),
        pytest.param(["opt/tool/"], False, id="a directory for a file"),
        pytest.param(["usr/bin/.wh.tool"], False, id="the chunk's file deleted"),
        pytest.param([".wh.usr"], False, id="a directory of the base deleted"),
        pytest.param(["opt/.wh..wh..opq"], False, id="a directory emptied"),
        pytest.param(["opt/.wh.unknown"], True, id="something else deleted"),
        pytest.param(["usr/local/bin/tool"], False, id="found earlier on PATH"),
        pytest.param(["usr/local/bin/tool=data"], True, id="no program"),
        pytest.param(["usr/local/bin/new"], True, id="a new command"),
        pytest.param(["etc/rules.d/50-more=x"], False, id="joins a directory that is read as a whole"),
        pytest.param(["etc/apt/sources.list.d/more=x"], True, id="a package manager's"),
        pytest.param(["usr/local/lib/libc.so.6"], False, id="a library of the same name elsewhere"),
        pytest.param(["usr/local/lib/libnew.so.1"], True, id="a new library"),
        pytest.param(["var/lib/dpkg/status=b", "etc/passwd=b", "var/log/x=b"], True, id="merged, or traces"),
    ],
)
def test_files_that_another_chunk_brings(other: Sequence[str], undisturbed: bool):  # noqa: FBT001
    scope = TestScope(BASE)
    others = [contents("srv/unrelated"), contents(*other)]
    assert scope.is_undisturbed(CHUNK, others, config(), config()) is undisturbed


@pytest.mark.parametrize(
    ("combined", "undisturbed"),
    [
        pytest.param(config("NEW=1"), True, id="a new variable"),
        pytest.param(config("LD_PRELOAD=/x.so"), False, id="one that loads code"),
        pytest.param(config("BASH_ENV=/x"), False, id="one that bash reads"),
        pytest.param(config("HOME=/elsewhere"), False, id="another value"),
        pytest.param(config(User="me"), False, id="another user"),
        pytest.param(config(User=""), True, id="no user either way"),
        pytest.param(config(WorkingDir="/x"), False, id="another directory"),
        pytest.param(config(Entrypoint=["/x"]), False, id="another entrypoint"),
        pytest.param(config(Cmd=["x"]), True, id="another command, which tests give themselves"),
        pytest.param(
            config("PATH=/opt/new:/usr/local/bin:/usr/bin"), True, id="PATH with new commands in front"
        ),
        pytest.param(
            config("PATH=/opt/old:/usr/local/bin:/usr/bin"), False, id="PATH with another of the name"
        ),
        pytest.param(config("PATH=/opt/link:/usr/bin"), False, id="the same behind a link"),
        pytest.param(config("PATH=/usr/local/bin"), False, id="PATH that has lost a directory"),
        pytest.param(config("PATH=/bin"), True, id="PATH by another name of the directory"),
        pytest.param(config("PATH=/opt/loop:/usr/bin"), True, id="a link to itself"),
    ],
)
def test_what_processes_are_given(combined: ImageConfig, undisturbed: bool):  # noqa: FBT001
    other = contents("opt/new/x", "opt/old/tool", "opt/link->old", "opt/loop->loop")
    assert TestScope(BASE).is_undisturbed(CHUNK, [other], config(), combined) is undisturbed


def test_layers_as_one_show_what_is_left():
    both = stacked(
        [contents("a/x", "a/y", "b", "c/d/e"), contents("a/.wh.x", ".wh.b", "c/.wh..wh..opq", "c/new")]
    )
    assert {path for path in both.entries if ".wh." not in path} == {"a/y", "c/new"}
    assert {path for path in both.entries if ".wh." in path} == {"a/.wh.x", ".wh.b", "c/.wh..wh..opq"}
