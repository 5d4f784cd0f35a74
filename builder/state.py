"""What the builder keeps between runs, outside every project: engine storage, unpacked layers, records.

All of it can be deleted at any time; then it is made again.
"""

from pathlib import Path

from builder.errors import WorkspaceError
from builder.scratch import Scratch


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
        self.runs = Scratch(root / "runs")

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
