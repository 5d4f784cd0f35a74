"""The BuildKit engine, against a real buildkitd."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builder_project import CHUNK, Lapstrake, write_project
from tests.support.processes import Process

pytestmark = [
    pytest.mark.component("buildkit"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and testing images here needs root"),
]


@pytest.fixture(scope="module")
def buildkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("buildkit")
    address = f"unix://{directory}/sock"
    argv = [
        "buildkitd",
        "--addr",
        address,
        "--root",
        str(directory / "root"),
        "--oci-worker-snapshotter=native",
    ]

    asked = ["buildctl", "--addr", address, "debug", "workers"]

    def answers(_process: Process) -> bool:
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    with Process("buildkitd", argv, log=directory / "log", ready=answers):
        yield address


@pytest.fixture
def lapstrake(buildkit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lapstrake:
    monkeypatch.setenv("BUILDKIT_HOST", buildkit)
    return Lapstrake(tmp_path / "state")


def test_builds_combines_and_gives_the_same_digests_twice(tmp_path: Path, lapstrake: Lapstrake):
    tests = "- desc: there\n  command: [cat, /a]\n  assert: ['stdout == \"a\\n\"']\n"
    digests = []
    for name in ("one", "two"):
        project = write_project(tmp_path / name / "p", {"tests/a.yaml": tests})
        run = Lapstrake(tmp_path / name / "state")
        done = run(
            "build", project, "--to", f"oci:{tmp_path / name / 'i'}", "--engine", "buildkit", "--json",
            "--test-every-image",
        ).document  # fmt: skip
        digests.append([item["digest"] for item in done["combinations"]])
        assert done["tests"]["run"] == 2
    assert digests[0] == digests[1]


def test_a_chunk_that_only_copies_is_built_for_another_platform(tmp_path: Path, lapstrake: Lapstrake):
    base = {"base/Dockerfile": "FROM scratch\nCOPY passwd /etc/passwd\n"}
    project = write_project(tmp_path / "p", base)
    done = lapstrake(
        "build", project, "--to", f"oci:{tmp_path / 'i'}", "--engine", "buildkit", "--chunk", "b",
        "--platform", "linux/s390x", "--platform", "linux/arm64", "--json",
    ).document  # fmt: skip
    assert {(item["chunk"], item["platform"]) for item in done["chunks"]} == {
        (name, platform) for name in ("base", "b") for platform in ("linux/s390x", "linux/arm64")
    }


def test_a_failing_dockerfile_shows_the_end_of_its_log(tmp_path: Path, lapstrake: Lapstrake):
    broken = {"chunks/a/Dockerfile": f"{CHUNK}RUN echo the last words >&2; exit 3\n"}
    project = write_project(tmp_path / "p", broken)
    done = lapstrake("build", project, "--to", f"oci:{tmp_path / 'i'}", "--engine", "buildkit")
    assert done.status == 9
    assert any("the last words" in line for line in done.stderr.splitlines() if line.startswith("error: "))


def test_a_daemon_that_does_not_answer_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BUILDKIT_HOST", f"unix://{tmp_path}/none")
    project = write_project(tmp_path / "p")
    done = Lapstrake(tmp_path / "s")(
        "build", project, "--to", f"oci:{tmp_path / 'i'}", "--engine", "buildkit"
    )
    assert done.status == 7
    assert "error: buildkit cannot be used" in done.stderr
