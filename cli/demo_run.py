"""What the steps of the demo share: running commands as a person would, timing them, and saying so."""

import contextlib
import json
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.output import Output

_START_S = 30.0


class DemoFailed(Exception):
    """A step of the demo did not do what it should; the message says which and how it ended."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the closing table."""

    step: str
    size_bytes: int
    seconds: float
    outcome: str

    def as_json(self) -> Mapping[str, Any]:
        return {
            "step": self.step,
            "bytes": self.size_bytes,
            "duration_s": round(self.seconds, 2),
            "outcome": self.outcome,
        }


@dataclass
class DemoRun:
    """The working directory, what was said, and the rows so far."""

    work: Path
    output: Output
    rows: list[Row] = field(default_factory=list)

    def add(self, step: str, size_bytes: int, seconds: float, outcome: str) -> None:
        self.rows.append(Row(step, size_bytes, seconds, outcome))

    def check(self, *, holds: bool, otherwise: str) -> None:
        if not holds:
            raise DemoFailed(otherwise)

    def command(self, *argv: str | Path) -> tuple[str, float]:
        """Runs and shows one command; its stdout and the seconds it took. Raises DemoFailed."""
        shown = shlex.join(_shorten(str(word), self.work) for word in argv)
        self.output.say(f"$ {shown}")
        started_s = time.monotonic()
        try:
            done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise DemoFailed(
                f"{argv[0]} is not installed; `make demo` installs what the demo needs"
            ) from error
        if done.returncode != 0:
            tail = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
            raise DemoFailed(f"`{shown}` ended with status {done.returncode}:\n{tail}")
        return done.stdout, time.monotonic() - started_s

    def lapstrake(self, *argv: str | Path) -> tuple[dict[str, Any], float]:
        """Runs a lapstrake command with --json; its object and the seconds it took."""
        out, seconds = self.command(lapstrake_path(), *argv, "--json")
        result: dict[str, Any] = json.loads(out)
        return result, seconds

    @contextlib.contextmanager
    def serving(self, *argv: str | Path) -> Iterator[str]:
        """A lapstrake server for as long as the block lasts; yields its origin. Ends it with SIGTERM."""
        words = [str(word) for word in (lapstrake_path(), *argv)]
        self.output.say("$ " + shlex.join(_shorten(word, self.work) for word in words) + " &")
        log_path = self.work / f"{argv[0]}.log"
        with (
            log_path.open("wb") as log,
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True) as server,
        ):
            try:
                yield _origin(server, log_path, f"{argv[0]} {argv[1]}")
            finally:
                server.terminate()
                server.wait(timeout=_START_S)


def lapstrake_path() -> Path:
    """The command of the environment this runs in."""
    return Path(sys.executable).parent / "lapstrake"


def agent_job(origin: str, path: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Starts a job of the content service, follows its events to the end; its result and the seconds.

    Raises DemoFailed with the service's own words when the job fails.
    """
    started_s = time.monotonic()
    request = urllib.request.Request(  # noqa: S310 (our own server)
        origin + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_START_S) as response:  # noqa: S310 (our own server)
        job = json.load(response)
    with urllib.request.urlopen(f"{origin}/v1/jobs/{job['id']}/events", timeout=300) as events:  # noqa: S310
        data = [line for line in events if line.startswith(b"data: ")]
    ended = json.loads(data[-1].removeprefix(b"data: "))
    if ended["result"] is None:
        raise DemoFailed(f"POST {path} ended {ended['state']}: {ended['error']}")
    result: dict[str, Any] = ended["result"]
    return result, time.monotonic() - started_s


def metric_total(origin: str, name: str, labels: Mapping[str, str]) -> float:
    """The sum of a metric's samples that carry ``labels``, read from a server's /metrics."""
    with urllib.request.urlopen(f"{origin}/metrics", timeout=10) as response:  # noqa: S310 (our own server)
        text = response.read().decode()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    samples = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rpartition(" ")[2]) for line in samples if all(label in line for label in wanted))


def tree_bytes(paths: Sequence[Path]) -> int:
    """Bytes in all regular files below ``paths``."""
    return sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())


def _origin(server: "subprocess.Popen[str]", log_path: Path, name: str) -> str:
    if server.stdout is None:
        raise AssertionError
    for line in server.stdout:
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
    raise DemoFailed(f"`lapstrake {name}` did not start:\n{tail}")


def _shorten(word: str, work: Path) -> str:
    if word == str(lapstrake_path()):
        return "lapstrake"
    return word.replace(str(work), ".")
