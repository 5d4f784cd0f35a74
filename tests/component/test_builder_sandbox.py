"""What a test of a chunk finds around it, and what is left when it has ended, through the command line."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.builder_project import CHUNK, Lapstrake, write_project

pytestmark = [
    pytest.mark.component("buildah"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and testing images here needs root"),
]
TERMINAL = "\n  entrypoint: [sh, -c]"


@pytest.fixture(scope="module")
def lapstrake(tmp_path_factory: pytest.TempPathFactory) -> Lapstrake:
    return Lapstrake(tmp_path_factory.mktemp("state"))


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        pytest.param(
            "command: [sh, -c, 'yes 0123456789 | head -c 9000000; yes e | head -c 5000000 >&2']",
            "stdout.length == 9000000 && stderr.length == 5000000",
            id="megabytes, cut off by their reader",
        ),
        pytest.param(
            f"command: ['yes | head -c 1000000 > /dev/tty; echo end']{TERMINAL}",
            "stdout.trim() == 'end'",
            id="megabytes on a terminal",
        ),
        pytest.param(
            f"command: ['tty && echo seen > $(tty)']{TERMINAL}\n  user: me",
            "stdout.trim() == '/dev/pts/0' && stderr == ''",
            id="a terminal with a name, its own",
        ),
        pytest.param(
            "command: [sh, -c, 'kill -TERM $$; sleep 60']", "status == 143", id="a signal to itself counts"
        ),
        pytest.param(
            "command: [sh, -c, 'sleep 60 & echo left']", "stdout.trim() == 'left'", id="a child left behind"
        ),
        pytest.param(
            "command: [ls, /proc/1/root/]",
            "status != 0 && stdout == ''",
            id="no way out by the first process",
        ),
    ],
)
def test_a_test_runs_as_in_a_container(tmp_path: Path, lapstrake: Lapstrake, test: str, expected: str):
    tests = f'- desc: it\n  {test}\n  assert: ["{expected}"]\n'
    project = write_project(tmp_path / "p", {"tests/a.yaml": tests})
    done = lapstrake("build", project, "--to", f"oci:{tmp_path / 'images'}", "--chunk", "a")
    assert done.status == 0, done.stderr


@pytest.mark.parametrize("user", ["root", "me"])
@pytest.mark.parametrize("terminal", ["", TERMINAL], ids=["no terminal", "terminal"])
@pytest.mark.parametrize("death", [None, signal.SIGINT, signal.SIGKILL], ids=["timeout", "INT", "KILL"])
def test_nothing_is_left_of_a_test_that_never_ends(
    tmp_path: Path, lapstrake: Lapstrake, user: str, terminal: str, death: signal.Signals | None
):
    mark = f"60.{tmp_path.stat().st_ino}"
    endless = f"trap '' TERM INT HUP; while sleep {mark}; do :; done"
    command = f'["{endless}"]' if terminal else f'[sh, -c, "{endless}"]'
    tests = f'- desc: it\n  command: {command}{terminal}\n  user: {user}\n  assert: ["status == 0"]\n'
    project = write_project(tmp_path / "p", {"tests/a.yaml": tests})
    argv = lapstrake.argv("build", project, "--to", f"oci:{tmp_path / 'images'}", "--chunk", "a")
    env = lapstrake.env() | {"LAPSTRAKE_BUILDER_TEST_TIMEOUT": "60s" if death else "2s"}
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as process:
        while not _sleeping(mark) and process.poll() is None:
            time.sleep(0.02)
        if death:
            process.send_signal(death)
        assert process.wait(30) == {None: 10, signal.SIGINT: 130}.get(death, -signal.SIGKILL)
    while _sleeping(mark):  # pytest's time limit is the limit
        time.sleep(0.02)


@pytest.mark.parametrize("is_killed", [False, True], ids=["ends", "is killed"])
def test_nothing_that_a_dockerfile_starts_outlives_the_build(
    tmp_path: Path, lapstrake: Lapstrake, *, is_killed: bool
):
    mark = f"60.{tmp_path.stat().st_ino}"
    run = f"RUN (setsid sleep {mark} </dev/null &) ; echo started{f' && sleep {mark}' if is_killed else ''}\n"
    project = write_project(tmp_path / "p", {"chunks/a/Dockerfile": CHUNK + run})
    argv = lapstrake.argv("build", project, "--to", f"oci:{tmp_path / 'images'}", "--chunk", "a")
    with subprocess.Popen(argv, env=lapstrake.env(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if is_killed and line.startswith("a | started"):
                process.kill()
        assert process.wait(30) == (-signal.SIGKILL if is_killed else 0)
    while _sleeping(mark):  # pytest's time limit is the limit
        time.sleep(0.02)


def _sleeping(mark: str) -> bool:
    return any(_command_line(path) == f"sleep\0{mark}\0" for path in Path("/proc").glob("[0-9]*/cmdline"))


def _command_line(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
