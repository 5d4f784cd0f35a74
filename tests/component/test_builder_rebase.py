"""Moving images onto a new base without building."""

import os
from pathlib import Path

import pytest

from ocikit.combine import BASE_DIGEST
from ocikit.layout import LayoutRepository
from ocikit.repository import load_image
from tests.support.builder_project import BASE, CHUNK, COMBINER, CONTEXT, Lapstrake, write_project

pytestmark = [
    pytest.mark.component("buildah"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and testing images here needs root"),
]


@pytest.fixture(scope="module")
def lapstrake(tmp_path_factory: pytest.TempPathFactory) -> Lapstrake:
    return Lapstrake(tmp_path_factory.mktemp("state"))


async def test_a_base_bump_whose_tests_pass_builds_no_chunk(tmp_path: Path, lapstrake: Lapstrake):
    tests = "- desc: works\n  command: [cat, /a]\n  assert: ['stdout == \"a\\n\"']\n"
    chunk = {
        "chunks/a/Dockerfile": f"{CHUNK}RUN echo a > /a\nENV PATH=/a:/bin MINE=1\n",
        "tests/a.yaml": tests,
        "dazzle.yaml": f"{COMBINER}  envvars: [{{name: PATH, action: merge-unique}}]\n{CONTEXT}",
    }
    project, images = write_project(tmp_path / "p", chunk), tmp_path / "images"
    assert lapstrake("build", project, "--to", f"oci:{images}").status == 0
    bumped = {**chunk, "base/Dockerfile": f"{BASE}RUN echo new > /new\nENV PATH=/new:/bin\n"}
    write_project(project, bumped)
    assert lapstrake("build", project, "--to", f"oci:{images}", "--rebase", "--json").actions == {
        "base": "build", "a": "rebase", "b": "rebase"
    }  # fmt: skip
    one = await load_image(LayoutRepository(images), "one")
    assert one.config.env["PATH"] == "/new:/a:/bin"
    assert one.config.env["MINE"] == "1"


async def test_a_base_bump_that_breaks_the_tests_builds(tmp_path: Path, lapstrake: Lapstrake):
    tests = (
        "- desc: works\n  command: [sh, -c, 'test -e /new && cat /a']\n  assert: ['stdout == \"new\\n\"']\n"
    )
    chunk = {"chunks/a/Dockerfile": f"{CHUNK}RUN cp /new /a || echo old > /a\n"}
    project, images = write_project(tmp_path / "p", chunk), tmp_path / "images"
    assert lapstrake("build", project, "--to", f"oci:{images}").status == 0
    write_project(
        project, {**chunk, "base/Dockerfile": f"{BASE}RUN echo new > /new\n", "tests/a.yaml": tests}
    )
    done = lapstrake("build", project, "--to", f"oci:{images}", "--rebase", "--json")
    assert done.actions == {"base": "build", "a": "build", "b": "rebase"}


async def test_one_image_moves_and_says_on_which_base_it_is(tmp_path: Path, lapstrake: Lapstrake):
    project, images = write_project(tmp_path / "p"), tmp_path / "images"
    assert lapstrake("build", project, "--to", f"oci:{images}").status == 0
    other = tmp_path / "other"
    write_project(project, {"base/Dockerfile": f"{BASE}RUN echo new > /new\n"})
    assert lapstrake("build", project, "--to", f"oci:{other}", "--chunk", "a").status == 0
    repository = LayoutRepository(other)
    base = next(tag for tag in await repository.tags() if tag.startswith("base--") and len(tag) == 70)
    moved = lapstrake(
        "rebase", f"oci:{images}:both", "--onto", f"oci:{other}:{base}", "--to", f"oci:{other}:moved",
        "--project", project, "--json",
    )  # fmt: skip
    assert moved.document["built"] == 0
    image = await load_image(repository, "moved")
    assert image.manifest.annotations[BASE_DIGEST] == (await repository.resolve(base)).digest
    assert len(image.manifest.layers) == 3
    third = tmp_path / "third"
    assert lapstrake(
        "rebase", f"oci:{images}:one", "--onto", f"oci:{other}:{base}", "--to", f"oci:{third}:1", "--no-test"
    ).status == 0  # fmt: skip
    again = lapstrake(
        "rebase", f"oci:{third}:1", "--onto", f"oci:{other}:{base}", "--to", f"oci:{third}:2", "--no-test"
    )
    assert again.status == 0, again.stderr
    refused = lapstrake(
        "rebase", f"oci:{other}:{base}", "--onto", f"oci:{other}:{base}", "--to", "oci:x:y", "--no-test"
    )
    assert refused.status == 4
    assert "does not say on which base" in refused.stderr
