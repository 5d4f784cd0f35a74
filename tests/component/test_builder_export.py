"""Exports, read by the tools they are for."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from ocikit.layout import LayoutRepository
from tests.support.builder_project import CHUNK, Lapstrake, write_project
from tests.support.containerd import Containerd
from tests.support.images import made_layer, push_image

pytestmark = [
    pytest.mark.component("buildah"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and testing images here needs root"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lapstrake, str]:
    directory = tmp_path_factory.mktemp("export")
    files = {
        "chunks/a/Dockerfile": f"{CHUNK}RUN rm /etc/passwd && echo a > /a && ln /a /a2 && chown 7:8 /a\n"
    }
    project, lapstrake = write_project(directory / "p", files), Lapstrake(directory / "state")
    reference = f"oci:{directory / 'images'}"
    assert lapstrake("build", project, "--to", reference, "--no-test").status == 0
    return lapstrake, f"{reference}:both"


@pytest.mark.component("e2fsprogs")
async def test_no_name_of_a_file_is_a_command_to_the_tools(tmp_path: Path):
    images, out = LayoutRepository(tmp_path / "images", create=True), tmp_path / "out.ext4"
    victim = tmp_path / "victim"
    hostile = f'x"\ndump /secret {victim}\nx'
    layer = made_layer({"secret": b"1", hostile.replace("//", "/"): b"2", f"d/\ndump /secret {victim}": b"3"})
    await push_image(images, "hostile", [layer])
    to = (f"oci:{tmp_path / 'images'}:hostile", "--format", "ext4", "-o", out)
    done = Lapstrake(tmp_path / "state")("export", *to)
    assert done.status == 0, done.stderr
    assert not victim.exists()
    subprocess.run(["e2fsck", "-fn", out], check=True, capture_output=True)


def exported(built: tuple[Lapstrake, str], kind: str, directory: Path) -> Path:
    """Exported twice: the same bytes."""
    lapstrake, reference = built
    files = [directory / f"{kind}.{number}" for number in (1, 2)]
    for file in files:
        done = lapstrake("export", reference, "--format", kind, "--output", file, "--json")
        assert done.status == 0, done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()
    return files[0]


def test_a_root_file_system_as_a_tar(built: tuple[Lapstrake, str], tmp_path: Path):
    with tarfile.open(exported(built, "rootfs-tar", tmp_path)) as archive:
        names = archive.getnames()
        assert "etc/passwd" not in names
        assert not [name for name in names if ".wh." in name]
        assert (archive.getmember("a").uid, archive.getmember("a").gid) == (7, 8)
        assert archive.getmember("a2").linkname == "a"


@pytest.mark.component("e2fsprogs")
def test_an_ext4_image_is_clean_and_holds_the_files(built: tuple[Lapstrake, str], tmp_path: Path):
    image = exported(built, "ext4", tmp_path)
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)
    shown = subprocess.run(
        ["debugfs", "-R", "stat /a", image], check=True, capture_output=True, text=True
    ).stdout
    assert "User:     7   Group:     8" in shown
    assert "Links: 2" in shown
    content = subprocess.run(["debugfs", "-R", "cat /a2", image], check=True, capture_output=True, text=True)
    assert content.stdout == "a\n"


@pytest.mark.component("squashfs-tools", "erofs-utils")
@pytest.mark.parametrize(
    ("kind", "magic"), [("squashfs", (0, b"hsqs")), ("erofs", (1024, b"\xe2\xe1\xf5\xe0"))]
)
def test_read_only_file_systems(
    built: tuple[Lapstrake, str], tmp_path: Path, kind: str, magic: tuple[int, bytes]
):
    data = exported(built, kind, tmp_path).read_bytes()
    assert data[magic[0] :].startswith(magic[1])


@pytest.mark.component("skopeo")
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_skopeo_reads_archives(built: tuple[Lapstrake, str], tmp_path: Path, kind: str):
    archive = exported(built, kind, tmp_path)
    target = tmp_path / f"copied-{kind}"
    subprocess.run(["skopeo", "copy", "--quiet", f"{kind}:{archive}", f"dir:{target}"], check=True)
    assert (target / "manifest.json").exists()


@pytest.mark.component("containerd")
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_containerd_imports_archives(
    built: tuple[Lapstrake, str], tmp_path: Path, containerd: Containerd, kind: str
):
    containerd.ctr("image", "import", str(exported(built, kind, tmp_path)))
    assert "localhost/image:both" in str(containerd.ctr("image", "ls", "-q"))
