"""What benchmarks that were killed leave behind."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import scratch

_RUN = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from tests.bench import scratch
with scratch.directory() as directory:
    (directory / "data").write_bytes(b"x")
    print(directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A benchmark in its directory."""
    command = [sys.executable, "-c", _RUN, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_run_that_goes_on_keeps_its_directory_and_takes_it_along_at_its_end(
    running, tmp_path: Path
) -> None:
    process, directory = running
    assert scratch.sweep([tmp_path]) == []
    assert (directory / "data").exists()
    process.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(running, tmp_path: Path) -> None:
    process, directory = running
    process.kill()
    process.wait()
    assert (directory / "data").exists()
    assert scratch.sweep([tmp_path]) == [directory.parent]
    assert list(tmp_path.iterdir()) == []


def test_directories_that_are_not_marked_are_left_alone(tmp_path: Path) -> None:
    other = Path(tempfile.mkdtemp(prefix="lapstrake-bench-", dir=tmp_path))
    assert scratch.sweep([tmp_path]) == []
    assert other.is_dir()
