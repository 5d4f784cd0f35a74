from pathlib import Path

import pytest

from servicekit.atomic import atomic_file, atomic_write, durable_rename, sweep_temp_files


def test_replaces_content_and_sets_the_mode(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    atomic_write(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_shows_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic_file(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
    assert target.read_bytes() == b"half"


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "absent" / "file", b"x")


def test_renames_between_directories(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x")
    durable_rename(tmp_path / "a" / "file", tmp_path / "b" / "file")
    assert (tmp_path / "b" / "file").read_bytes() == b"x"
    assert not (tmp_path / "a" / "file").exists()


def test_sweeping_takes_only_what_interrupted_writes_left(tmp_path: Path) -> None:
    (tmp_path / ".lapstrake-tmp-abc").write_bytes(b"half")
    (tmp_path / "mine").write_bytes(b"whole")
    assert sweep_temp_files(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
