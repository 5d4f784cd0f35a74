"""The demo's proof must not be softer than the service it proves."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.tree_compare import tree_differences


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    original, copy = tmp_path / "original", tmp_path / "copy"
    (original / "sub").mkdir(parents=True)
    (original / "sub" / "file").write_bytes(b"content")
    (original / "link").symlink_to("sub/file")
    os.utime(original / "sub" / "file", ns=(1, 1_700_000_000_123_456_789))
    shutil.copytree(original, copy, symlinks=True)
    return original, copy


def test_an_exact_copy_has_no_differences(pair: tuple[Path, Path]) -> None:
    assert tree_differences(*pair) == []


def _one_nanosecond_later(copy: Path) -> None:
    os.utime(copy / "sub" / "file", ns=(1, 1_700_000_000_123_456_790))


def _other_target(copy: Path) -> None:
    (copy / "link").unlink()
    (copy / "link").symlink_to("sub/other")


def _one_bit(copy: Path) -> None:
    status = (copy / "sub" / "file").stat()
    (copy / "sub" / "file").write_bytes(b"contenu")
    os.utime(copy / "sub" / "file", ns=(1, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(_one_nanosecond_later, "sub/file: mtime_ns", id="mtime"),
        pytest.param(_other_target, "link: target", id="link-target"),
        pytest.param(_one_bit, "sub/file: content", id="content"),
        pytest.param(lambda copy: (copy / "sub" / "file").chmod(0o600), "sub/file: mode", id="mode"),
        pytest.param(lambda copy: (copy / "sub" / "file").unlink(), "sub/file: missing", id="missing"),
        pytest.param(lambda copy: (copy / "more").touch(), "more: not in the original", id="surplus"),
    ],
)
def test_any_change_is_named(pair: tuple[Path, Path], change: Callable[[Path], object], said: str) -> None:
    original, copy = pair
    change(copy)
    assert any(line.startswith(said) for line in tree_differences(original, copy))
