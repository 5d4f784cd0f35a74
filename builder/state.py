"""What the builder keeps between runs, outside every project: engine storage, unpacked layers, records.

All of it can be deleted at any time; then it is made again.
"""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from builder.errors import WorkspaceError

_LOCK = ".lock"


class StateDirectory:
    """``root`` is made when missing. Several processes may share it. Blocking."""

    def __init__(self, root: Path) -> None:
        self.root = root = root.absolute()
        self.engines = root / "engines"
        self.bases = root / "bases"
        self.layer_records = root / "layers"
        self.contents = root / "contents"
        self.unpacked = root / "unpacked"
        self.test_results = root / "tests"
        self.cids = root / "cids"

    def prepare(self) -> None:
        """Raises WorkspaceError when it cannot be used."""
        try:
            for path in (
                self.engines,
                self.layer_records,
                self.contents,
                self.unpacked,
                self.test_results,
                self.cids,
            ):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(str(self.root), error.strerror or str(error)) from error

    @contextlib.contextmanager
    def run_directory(self) -> Iterator[Path]:
        """A directory for one run; what runs that were killed have left is removed first."""
        runs = self.root / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        for stale in runs.iterdir():
            with contextlib.suppress(OSError), (stale / _LOCK).open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale)
        path = Path(tempfile.mkdtemp(dir=runs))
        try:
            with (path / _LOCK).open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
