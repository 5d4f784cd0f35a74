"""Moving images onto a new base without building."""

import os
import tarfile
from pathlib import Path

import pytest

from builder.chunk_images import INPUT_HASH
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


def test_users_that_a_new_base_adds_are_known_beside_those_of_a_moved_chunk(
    tmp_path: Path, lapstrake: Lapstrake
):
    old = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000:me:/tmp:/bin/sh\n"
    files = {"chunks/a/Dockerfile": f"{CHUNK}RUN echo a:x:2000:2000:a:/:/bin/sh >> /etc/passwd\n"}
    project, images = write_project(tmp_path / "p", {**files, "base/passwd": old}), tmp_path / "images"
    assert lapstrake("build", project, "--to", f"oci:{images}").status == 0
    for at in (1, 2):  # moved once, and once more
        lines = [f"new{n}:x:{3000 + n}:1:n:/:/bin/sh" for n in range(at)]
        passwd = old.replace("1000:me", f"1{at}00:me") + "".join(f"{line}\n" for line in lines)
        tests = (
            f"- desc: known\n  command: [id, -u, new{at - 1}]\n  assert: ['stdout == \"{2999 + at}\\n\"']\n"
        )
        write_project(project, {**files, "base/passwd": passwd, "tests/a.yaml": tests})
        moved = lapstrake("build", project, "--to", f"oci:{images}", "--rebase", "--json")
        assert moved.actions == {"base": "build", "a": "rebase", "b": "rebase"}
        tar, elsewhere = tmp_path / "one.tar", f"oci:{tmp_path / f'elsewhere{at}'}"
        again = lapstrake(
            "combine", project, "--to", elsewhere, "--reuse-from", f"oci:{images}", "--all", "--json"
        )  # fmt: skip
        for image in (moved, again):
            assert {one["name"]: one["layers"] for one in image.document["combinations"]} == {
                "one": 3, "both": 4
            }  # fmt: skip
        for repository in (f"oci:{images}", elsewhere):
            done = lapstrake("export", f"{repository}:one", "--format", "rootfs-tar", "-o", tar)
            assert done.status == 0, done.stderr
            with tarfile.open(tar) as archive:
                source = archive.extractfile("etc/passwd")
                assert source is not None
                assert source.read().decode() == f"{passwd}a:x:2000:2000:a:/:/bin/sh\n"


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
    assert image.manifest.annotations[INPUT_HASH] == base.removeprefix("base--")
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
