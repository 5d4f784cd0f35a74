"""Chunks that touch the same files, through real builds."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.builder_project import CHUNK, COMBINER, CONTEXT, Lapstrake, write_project

pytestmark = [
    pytest.mark.component("buildah"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and testing images here needs root"),
]


@pytest.fixture(scope="module")
def lapstrake(tmp_path_factory: pytest.TempPathFactory) -> Lapstrake:
    return Lapstrake(tmp_path_factory.mktemp("state"))


def test_overwriting_another_chunks_file_is_an_error_unless_allowed(tmp_path: Path, lapstrake: Lapstrake):
    both = {name: f"{CHUNK}RUN mkdir -p /opt && echo {name} > /opt/tool\n" for name in ("a", "b")}
    files = {f"chunks/{name}/Dockerfile": text for name, text in both.items()}
    project, to = write_project(tmp_path / "p", files), f"oci:{tmp_path / 'images'}"
    done = lapstrake("build", project, "--to", to)
    assert done.status == 4
    assert "both: a overwrites /opt/tool of b" in done.stderr
    shown = lapstrake("project", "conflicts", project, "--to", to, "--combination", "both").stdout
    assert re.search(r"both +/opt/tool +a +overwrites +b +conflict", shown)
    allowed = CONTEXT.replace("lapstrake:\n", "lapstrake:\n  allow-conflicts: [/opt/tool]\n")
    write_project(project, {**files, "dazzle.yaml": COMBINER + allowed})
    matrix = lapstrake("project", "conflicts", project, "--to", to, "--json").document["images"]
    cell = {"path": "/opt/tool", "chunk": "a", "other": "b", "kind": "overwrites"}
    assert matrix == {"both": [{**cell, "verdict": "allowed"}], "one": []}
    assert set(lapstrake("build", project, "--to", to, "--json").actions.values()) == {"reuse"}


@pytest.mark.component("dpkg-deb")
def test_packages_of_two_chunks_are_both_known_to_dpkg(tmp_path: Path, lapstrake: Lapstrake):
    root = tmp_path / "root"
    _copy_dpkg(root)
    context = (
        "lapstrake:\n  contexts:\n    busybox: {directory: /bin, include: [busybox]}\n"
        f"    debian: {{directory: {root}, include: ['**/*']}}\n"
    )
    base = """\
FROM scratch
COPY --from=debian . /
COPY --from=busybox busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "for t in sh cat echo mkdir rm ldconfig; do ln -s busybox /bin/$t; done"]
RUN mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /tmp && echo > /var/lib/dpkg/status
RUN dpkg-divert --package dash --divert /bin/x.old --add /bin/x
RUN dpkg-divert --package dash --divert /bin/y.old --add /bin/y
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
"""
    files = {"base/Dockerfile": base, "dazzle.yaml": COMBINER + context}
    for name in ("a", "b"):
        divert = f"dpkg-divert --package pkg-{name} --divert /opt/{name}.old --rename --add /opt/{name}"
        files[f"chunks/{name}/Dockerfile"] = (
            f"{CHUNK}COPY p.deb /tmp/p.deb\nRUN dpkg -i /tmp/p.deb && rm /tmp/p.deb && {divert}\n"
        )
        files[f"tests/{name}.yaml"] = (
            f"- desc: known\n  command: [dpkg, -l, pkg-{name}]\n"
            f"  assert: ['status == 0', 'stdout.indexOf(\"ii  pkg-{name}\") != -1']\n"
            "- desc: diverted\n  command: [dpkg-divert, --list]\n"
            f"  assert: ['status == 0', 'stdout.indexOf(\"/opt/{name}.old by pkg-{name}\") != -1',"
            " 'stdout.indexOf(\"/bin/y.old by dash\") != -1']\n"
        )
    project = write_project(tmp_path / "p", files)
    for name in ("a", "b"):
        _make_package(f"pkg-{name}", tmp_path, project / "chunks" / name / "p.deb")
    done = lapstrake("build", project, "--to", f"oci:{tmp_path / 'images'}", "--test-every-image", "--json")
    assert done.document["tests"]["run"] == 8
    image = next(item for item in done.document["combinations"] if item["name"] == "both")
    assert image["layers"] == 4
    matrix = lapstrake(
        "project", "conflicts", project, "--to", f"oci:{tmp_path / 'images'}", "--json"
    ).document
    assert {(cell["path"], cell["verdict"]) for cell in matrix["images"]["both"]} == {
        ("/var/lib/dpkg/status", "merged"),
        ("/var/lib/dpkg/diversions", "merged"),
    }


def _copy_dpkg(root: Path) -> None:
    """dpkg and all it needs, from this machine."""
    programs = ["/usr/bin/dpkg", "/usr/bin/dpkg-divert", "/usr/bin/dpkg-deb", "/usr/bin/dpkg-query",
                "/usr/bin/dpkg-split", "/bin/tar", "/sbin/start-stop-daemon"]  # fmt: skip
    wanted = set(programs)
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        wanted |= {word for word in listed.split() if word.startswith("/")}
    for path in wanted:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def _make_package(name: str, scratch: Path, target: Path) -> None:
    tree = scratch / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: m <m@example.org>\nDescription: d\n"
    )
    (tree / "opt" / name).mkdir(parents=True)
    (tree / "opt" / name / "file").write_text(name)
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", tree, target], check=True, capture_output=True
    )
