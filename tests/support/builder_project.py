"""Small projects of chunks on a busybox base, and the command line that builds them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE = """\
FROM scratch
COPY --from=busybox busybox /bin/busybox
COPY passwd /etc/passwd
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin"]
ENV PATH=/bin
"""
CHUNK = "ARG base\nFROM ${base}\n"
CONTEXT = "lapstrake:\n  contexts:\n    busybox: {directory: /bin, include: [busybox]}\n"
_DEFAULTS = {
    "base/Dockerfile": BASE,
    "base/passwd": "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000:me:/tmp:/bin/sh\n",
    "chunks/a/Dockerfile": f"{CHUNK}RUN echo a > /a\n",
    "chunks/b/Dockerfile": f"{CHUNK}COPY b /b\n",
    "chunks/b/b": "b\n",
}
COMBINER = "combiner:\n  combinations:\n    - {name: one, chunks: [a]}\n    - {name: both, chunks: [b, a]}\n"


def write_project(root: Path, files: Mapping[str, str] | None = None, *, combiner: str = COMBINER) -> Path:
    """A project of chunks a and b and images one and both; ``files`` are added over that."""
    for name, text in {**_DEFAULTS, "dazzle.yaml": combiner + CONTEXT, **(files or {})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "chunks").mkdir(exist_ok=True)
    return root


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``document`` is what it printed with --json."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        assert self.status == 0, self.stderr
        loaded: dict[str, Any] = json.loads(self.stdout)
        return loaded

    @property
    def actions(self) -> dict[str, str]:
        chunks = self.document.get("chunks") or self.document["actions"]
        return {item["chunk"]: item["action"] for item in chunks}


@dataclass(frozen=True)
class Lapstrake:
    """The command line, with a state directory of its own."""

    state: Path

    def argv(self, *words: object) -> list[str]:
        return [sys.executable, "-c", "from cli.main import main; main()", *map(str, words)]

    def env(self) -> dict[str, str]:
        return {**os.environ, "LAPSTRAKE_BUILDER_STATE_DIR": str(self.state)}

    def __call__(self, *words: object) -> Ended:
        done = subprocess.run(
            self.argv(*words), env=self.env(), capture_output=True, text=True, check=False, timeout=110
        )
        return Ended(done.returncode, done.stdout, done.stderr)
