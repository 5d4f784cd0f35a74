"""The demo is the README's promise; it runs here as a newcomer runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LAPSTRAKE = Path(sys.executable).parent / "lapstrake"


@pytest.mark.component("buildah", "skopeo", "tar")
@pytest.mark.timeout(600)
def test_the_demo_moves_images_and_content_and_proves_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [LAPSTRAKE, "demo", "--keep", tmp_path / "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome = {step["step"].partition(" (")[0]: step["outcome"] for step in json.loads(done.stdout)["steps"]}
    assert "nothing to build" in outcome["plan again"]
    assert " 0 bytes from upstream" in outcome["pull again, warm"]
    assert "from the cache" in outcome["pull a second image"]
    assert "is there" in outcome["pull a composed image"]
    assert "equal" in outcome["restore the first"]
    assert "equal" in outcome["restore the second"]
    assert "same tree" in outcome["unpack with GNU tar"]


def test_the_demo_refuses_to_work_in_a_directory_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [LAPSTRAKE, "demo", "--keep", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
