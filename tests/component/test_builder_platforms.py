"""Images for several platforms: built, combined, tested, exported, rebased and counted one by one."""

import dataclasses
import os
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from builder.platforms import host_platform
from ocikit.combine import BASE_DIGEST
from ocikit.descriptor import Platform
from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from ocikit.manifest import Index, RawManifest
from ocikit.media_types import OCI_INDEX
from ocikit.repository import load_image
from ocikit.validate import image_violations
from tests.support.builder_project import BASE, CHUNK, Lapstrake, write_project

pytestmark = [
    pytest.mark.component("buildah"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and testing images here needs root"),
]

HOST = host_platform()
FOREIGN = Platform("linux", "s390x")
"""No test machine is one, and none emulates one."""
TESTS = "- desc: it is there\n  command: [cat, /a]\n  assert: ['stdout == \"a\\n\"']\n"
BOTH = ("--platform", HOST, "--platform", FOREIGN)


@pytest.fixture(scope="module")
def lapstrake(tmp_path_factory: pytest.TempPathFactory) -> Lapstrake:
    return Lapstrake(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunk a is different for each platform."""
    files = {
        "chunks/a/Dockerfile": f"{CHUNK}ARG TARGETARCH\nRUN echo a > /a && echo $TARGETARCH > /arch\n",
        "tests/a.yaml": TESTS,
    }
    return write_project(tmp_path_factory.mktemp("project") / "p", files)


@pytest.fixture(scope="module")
def images(project: Path, lapstrake: Lapstrake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout, junit = tmp_path_factory.mktemp("images") / "i", lapstrake.state / "junit.xml"
    done = lapstrake("build", project, "--to", f"oci:{layout}", *BOTH, "--junit", junit, "--json").document
    built = {(item["chunk"], item["platform"]) for item in done["chunks"] if item["action"] == "build"}
    assert built == {(name, str(one)) for name in ("base", "a", "b") for one in (HOST, FOREIGN)}
    assert done["tests"] == {"run": 1, "cached": 2, "skipped": 3}
    reasons = {skipped.get("message") for skipped in ET.parse(junit).iter("skipped")}  # noqa: S314 (our own)
    assert reasons == {f"this host cannot run {FOREIGN}"}
    return layout


async def test_a_name_is_an_index_of_one_image_for_each_platform(images: Path):
    repository = LayoutRepository(images)
    index = Index.parse((await repository.manifest("both")).data)
    assert [item.platform for item in index.manifests] == sorted((HOST, FOREIGN), key=str)
    layers = {}
    for platform in (HOST, FOREIGN):
        image = await load_image(repository, "both", platform)
        config = (images / "blobs/sha256" / image.manifest.config.digest.encoded).read_bytes()
        assert image_violations(image.manifest, config) == []
        assert image.config.platform == platform
        layers[str(platform)] = [layer.digest for layer in image.manifest.layers]
    base, b, a = zip(layers[str(HOST)], layers[str(FOREIGN)], strict=True)
    assert (base[0] == base[1], b[0] == b[1], a[0] == a[1]) == (True, True, False)


def test_building_again_builds_nothing_whatever_the_order_or_the_place_they_are_named_in(
    images: Path, project: Path, lapstrake: Lapstrake, tmp_path: Path
):
    again = lapstrake("build", project, "--to", f"oci:{images}", *reversed_pairs(BOTH), "--json").document
    assert {item["action"] for item in again["chunks"]} == {"reuse"}
    assert not any(item["is_new"] for item in again["combinations"])
    named = write_project(
        tmp_path / "p", {"chunks/a/Dockerfile": (project / "chunks/a/Dockerfile").read_text()}
    )
    options = (named / "dazzle.yaml").read_text() + f"  platforms: [{FOREIGN}, {HOST}]\n"
    (named / "dazzle.yaml").write_text(options)
    plan = lapstrake("project", "plan", named, "--to", f"oci:{images}", "--json").document
    assert {(item["platform"], item["action"]) for item in plan["actions"]} == {
        (str(HOST), "reuse"), (str(FOREIGN), "reuse")
    }  # fmt: skip
    combined = lapstrake("combine", named, "--all", "--to", f"oci:{images}", "--no-test", "--json").document
    assert not any(item["is_new"] for item in combined["combinations"])


def reversed_pairs(words: tuple[object, ...]) -> tuple[object, ...]:
    return (*words[2:], *words[:2])


@pytest.mark.parametrize(
    "words",
    [("reuse", "report", "REF"), ("export", "REF", "--format", "oci-archive", "--output", "OUT")],
    ids=["report", "export"],
)
def test_who_needs_one_platform_is_told_to_name_it(
    images: Path, lapstrake: Lapstrake, tmp_path: Path, words: tuple[str, ...]
):
    given = [word.replace("REF", f"oci:{images}:both").replace("OUT", str(tmp_path / "o")) for word in words]
    done = lapstrake(*given)
    assert done.status == 4
    assert "has several platforms" in done.stderr
    assert (
        f"oci:{images}:both for linux/riscv64 not found"
        in lapstrake(*given, "--platform", "linux/riscv64").stderr
    )
    assert "is not a platform" in lapstrake(*given, "--platform", "arm64").stderr
    assert lapstrake(*given, "--platform", FOREIGN).status == 0


async def test_each_platform_is_counted_and_exported_by_itself(
    images: Path, lapstrake: Lapstrake, tmp_path: Path
):
    for platform in (HOST, FOREIGN):
        image = await load_image(LayoutRepository(images), "both", platform)
        found = lapstrake("reuse", "report", f"oci:{images}:both", "--platform", platform, "--json").document
        assert found["images"] == 1
        assert found["physical_bytes"] == sum(layer.size for layer in image.manifest.layers)
        archive = tmp_path / f"{platform.architecture}.tar"
        done = lapstrake(
            "export", f"oci:{images}:both", "--format", "rootfs-tar", "-o", archive, "--platform", platform
        )
        assert done.status == 0, done.stderr
        with tarfile.open(archive) as tar:
            file = tar.extractfile("arch")
            assert file is not None
            assert file.read().decode().strip() == platform.architecture


async def test_an_index_is_rebased_as_an_index_and_a_gate_that_cannot_be_asked_is_said_so(
    images: Path, project: Path, lapstrake: Lapstrake, tmp_path: Path
):
    bumped = write_project(tmp_path / "p", {"base/Dockerfile": f"{BASE}RUN echo new > /new\n"})
    bases = f"oci:{tmp_path / 'bases'}"
    done = lapstrake("build", bumped, "--to", bases, *BOTH, "--chunk", "b", "--json").document
    new = {item["platform"]: item["digest"] for item in done["chunks"] if item["chunk"] == "base"}
    repository = LayoutRepository(tmp_path / "bases")
    described = [
        dataclasses.replace(await repository.resolve(Digest.parse(digest)), platform=Platform.parse(platform))
        for platform, digest in new.items()
    ]
    await repository.put_manifest(RawManifest.of(OCI_INDEX, Index(tuple(described)).dump()), "base")
    move = ("rebase", f"oci:{images}:both", "--onto", f"{bases}:base", "--to", f"{bases}:moved")
    refused = lapstrake(*move, "--project", project)
    assert refused.status == 7
    assert f"the gate for {FOREIGN} cannot be used" in refused.stderr
    assert "moved" not in await repository.tags()
    assert lapstrake(*move, "--project", project, "--platform", HOST, "--json").document["tests"] == 1
    assert (await load_image(repository, "moved")).config.platform == HOST
    assert lapstrake(*move, "--no-test").status == 0
    moved = Index.parse((await repository.manifest("moved")).data)
    assert {str(item.platform) for item in moved.manifests} == set(new)
    for platform, digest in new.items():
        image = await load_image(repository, "moved", Platform.parse(platform))
        assert image.manifest.annotations[BASE_DIGEST] == digest
