"""The builder through its command line, with a real engine."""

import asyncio
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from builder.chunk_images import CHUNK_NAME, INPUT_HASH
from ocikit.cid import ANNOTATION, cid_of
from ocikit.combine import BASE_DIGEST
from ocikit.layout import LayoutRepository
from ocikit.repository import load_image
from ocikit.validate import image_violations
from tests.support.builder_project import CHUNK, COMBINER, CONTEXT, Lapstrake, write_project

pytestmark = [
    pytest.mark.component("buildah"),
    pytest.mark.skipif(os.geteuid() != 0, reason="building and testing images here needs root"),
]


@pytest.fixture(scope="module")
def lapstrake(tmp_path_factory: pytest.TempPathFactory) -> Lapstrake:
    return Lapstrake(tmp_path_factory.mktemp("state"))


def tags(layout: Path) -> set[str]:
    return set(asyncio.run(LayoutRepository(layout).tags())) if layout.exists() else set()


async def test_builds_once_reuses_and_combines_by_manifest_only(tmp_path: Path, lapstrake: Lapstrake):
    project, images = write_project(tmp_path / "p"), tmp_path / "images"
    first = lapstrake("build", project, "--to", f"oci:{images}", "--json")
    assert first.actions == {"base": "build", "a": "build", "b": "build"}
    again = lapstrake("build", project, "--to", f"oci:{images}", "--json")
    assert set(again.actions.values()) == {"reuse"}
    assert [item["digest"] for item in again.document["combinations"]] == [
        item["digest"] for item in first.document["combinations"]
    ]
    repository = LayoutRepository(images)
    both = await load_image(repository, "both")
    config = (images / "blobs/sha256" / both.manifest.config.digest.encoded).read_bytes()
    assert image_violations(both.manifest, config) == []
    assert [layer.annotations[CHUNK_NAME] for layer in both.manifest.layers] == ["base", "b", "a"]
    shown = {
        item["name"]: item["hash"]
        for item in lapstrake("project", "show", project, "--json").document["chunks"]
    }
    assert both.manifest.layers[1].annotations[INPUT_HASH] == shown["b"]
    base = await repository.resolve(next(tag for tag in await repository.tags() if tag.startswith("base--")))
    assert both.manifest.annotations[BASE_DIGEST] == base.digest
    assert f"a--{shown['a']}--chunked" in await repository.tags()


def test_the_difference_of_two_images_names_the_inputs_that_changed(tmp_path: Path, lapstrake: Lapstrake):
    project, to = write_project(tmp_path / "p"), f"oci:{tmp_path / 'images'}"
    assert lapstrake("build", project, "--to", to).status == 0
    old = f"oci:{tmp_path / 'old'}"
    assert lapstrake("combine", project, "--to", old, "--reuse-from", to, "--all").status == 0
    write_project(project, {"chunks/b/b": "new\n"})
    assert lapstrake("build", project, "--to", to).status == 0
    found = lapstrake("reuse", "diff", f"{old}:both", f"{to}:both", "--json").document
    assert [(miss["chunk"], miss["reason"], miss["changes"]) for miss in found["misses"]] == [
        ("b", "changed", ["source /b changed"]),
        ("a", "reordered", []),
    ]
    shown = lapstrake("reuse", "diff", f"{old}:both", f"{to}:both").stdout
    assert "changed: source /b changed" in shown
    whole = lapstrake("reuse", "diff", to, f"{to}:both")
    assert whole.status == 2
    assert "is a repository of 2 images; name one" in whole.stderr


async def test_layers_say_their_cid_when_asked_and_the_same_one_again(tmp_path: Path, lapstrake: Lapstrake):
    project, images = write_project(tmp_path / "p"), tmp_path / "images"
    built = lapstrake("build", project, "--to", f"oci:{images}", "--annotate-cid", "--no-test", "--json")
    repository = LayoutRepository(images)
    both = await load_image(repository, "both")
    config = (images / "blobs/sha256" / both.manifest.config.digest.encoded).read_bytes()
    assert image_violations(both.manifest, config) == []
    for layer in both.manifest.layers:
        data = (images / "blobs/sha256" / layer.digest.encoded).read_bytes()
        assert layer.annotations[ANNOTATION] == cid_of(data)
    again = lapstrake(
        "combine", project, "--to", f"oci:{images}", "--all", "--annotate-cid", "--no-test", "--json"
    )
    assert [item["digest"] for item in again.document["combinations"]] == [
        item["digest"] for item in built.document["combinations"]
    ]
    lapstrake("combine", project, "--to", f"oci:{images}", "--all", "--no-test", "--json")
    plain = await load_image(repository, "both")
    assert all(ANNOTATION not in layer.annotations for layer in plain.manifest.layers)


def test_two_builds_from_nothing_give_the_same_digests(tmp_path: Path):
    digests = []
    for name in ("first", "second-with-a-longer-name"):
        project = write_project(tmp_path / name / "project")
        run = Lapstrake(tmp_path / name / "state")
        done = run("build", project, "--to", f"oci:{tmp_path / name / 'images'}", "--json").document
        digests.append([item["digest"] for item in [*done["chunks"], *done["combinations"]]])
    assert digests[0] == digests[1]


def test_tests_run_on_what_ships_and_a_failing_one_withholds_the_name(tmp_path: Path, lapstrake: Lapstrake):
    tests = """\
- desc: it has its file, its user and its variables
  user: me
  env: [X=1=2]
  command: [sh, -c, 'cat /a; id -un; echo $X']
  assert: ['status == 0', 'stdout == "a\\nme\\n1=2\\n"']
- desc: a terminal
  entrypoint: [sh, -c]
  command: ['test -t 0 && echo yes']
  assert: ['stdout.trim() == "yes"']
- desc: megabytes
  command: [sh, -c, 'yes | head -c 5000000']
  assert: ['stdout.length == 5000000']
- desc: skipped
  skip: true
  command: [none]
  assert: ['status == 1']
"""
    project, images = write_project(tmp_path / "p", {"tests/a.yaml": tests}), tmp_path / "images"
    junit = tmp_path / "junit.xml"
    done = lapstrake("build", project, "--to", f"oci:{images}", "--junit", junit, "--json").document
    assert done["tests"] == {"run": 3, "cached": 6, "skipped": 3}
    suites = {suite.get("name"): suite for suite in ET.parse(junit).getroot()}  # noqa: S314 (our own)
    assert (suites["both"].get("tests"), suites["both"].get("failures")) == ("4", "0")
    broken = tests.replace("echo yes", "echo no")
    write_project(project, {"tests/a.yaml": broken, "tests/b.yaml": "[]"})
    before = tags(images)
    failed = lapstrake("build", project, "--to", f"oci:{images}", "--junit", junit, "--json")
    assert failed.status == 10
    assert "does not hold: stdout.trim()" in junit.read_text()
    assert "test of a failed: a terminal" in failed.stderr
    assert "stdout: no" in failed.stderr
    assert tags(images) == before
    other = tmp_path / "other"
    assert lapstrake("build", project, "--to", f"oci:{other}").status == 10
    assert not tags(other) & {"one", "both"}
    assert lapstrake("combine", project, "--all", "--to", f"oci:{other}").status == 10
    assert not tags(other) & {"one", "both"}


def test_a_test_that_never_ends_is_killed(tmp_path: Path, lapstrake: Lapstrake):
    tests = "- desc: forever\n  command: [sh, -c, 'sleep 1000 & sleep 1000']\n  assert: ['status == 0']\n"
    project = write_project(tmp_path / "p", {"tests/a.yaml": tests})
    env = {**lapstrake.env(), "LAPSTRAKE_BUILDER_TEST_TIMEOUT": "1s"}
    done = subprocess.run(
        lapstrake.argv("build", project, "--to", f"oci:{tmp_path / 'images'}", "--chunk", "a"),
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 10
    assert "still running after 1 s" in done.stderr


def test_one_chunk_or_one_image_alone(tmp_path: Path, lapstrake: Lapstrake):
    project, images = write_project(tmp_path / "p"), tmp_path / "images"
    assert set(lapstrake("build", project, "--to", f"oci:{images}", "--chunk", "b", "--json").actions) == {
        "base",
        "b",
    }
    assert not tags(images) & {"one", "both"}
    one = lapstrake("build", project, "--to", f"oci:{images}", "--combination", "one", "--json")
    assert one.actions == {"base": "reuse", "a": "build"}
    assert [item["name"] for item in one.document["combinations"]] == ["one"]
    given = lapstrake("combine", project, "--to", f"oci:{images}", "--chunks", "mine=b,a", "--json").document
    assert given["combinations"][0]["chunks"] == ["b", "a"]
    assert "mine" in tags(images)


@pytest.mark.parametrize(
    ("files", "status", "expected"),
    [
        pytest.param(
            {"chunks/a/Dockerfile": f"{CHUNK}RUN echo the last words >&2; exit 3\n"}, 9,
            "building a failed", id="failing Dockerfile",
        ),
        pytest.param(
            {"chunks/a/Dockerfile": "ARG base\nFROM scratch\nCOPY x /x\n", "chunks/a/x": ""}, 4,
            "chunk a was not built from base--", id="not from the base",
        ),
        pytest.param({"dazzle.yaml": "combiner: ["}, 4, "dazzle.yaml:", id="broken dazzle.yaml"),
        pytest.param(
            {"dazzle.yaml": COMBINER + CONTEXT.replace("[busybox]", "[no-such-program]")}, 4,
            "nothing matches /bin/no-such-program", id="context without files",
        ),
    ],
)  # fmt: skip
def test_bad_projects_end_in_one_clear_line(
    tmp_path: Path, lapstrake: Lapstrake, files: dict[str, str], status: int, expected: str
):
    project, images = write_project(tmp_path / "p", files), tmp_path / "images"
    done = lapstrake("build", project, "--to", f"oci:{images}")
    assert done.status == status
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert expected in errors[0]
    assert "Traceback" not in done.stderr
    if status == 9:
        assert any("the last words" in line for line in errors)
    assert not {tag for tag in tags(images) if tag.startswith(("a--", "one", "both"))}


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (
            ("combine", "--combination", "none"),
            5,
            "no combination 'none' in the project; there are: both, one",
        ),
        (("build", "--chunk", "none"), 5, "no chunk 'none' in the project; there are: a, b"),
        (("combine", "--all"), 5, "lacks base as the project has them now; run `lapstrake build` first"),
        (("combine", "--chunks", "x"), 2, "write NAME=c1,c2"),
        (("combine", "--chunks", "x=a,b,a"), 2, "each chunk once"),
        (("build", "--force", "none"), 5, "no chunk 'none' in the project; there are: a, b"),
        (("build", "--junit", "/none/x.xml"), 2, "there is no directory /none"),
        (("build", "--attest"), 2, "only a registry takes"),
        (("combine",), 2, "give one of --all, --combination NAME and --chunks NAME=c1,c2"),
    ],
)
def test_what_is_not_there(
    tmp_path: Path, lapstrake: Lapstrake, words: tuple[str, ...], status: int, expected: str
):
    project = write_project(tmp_path / "p")
    done = lapstrake(words[0], project, *words[1:], "--to", f"oci:{tmp_path / 'images'}")
    assert done.status == status
    assert expected in done.stderr


def test_a_destination_that_cannot_be_written(tmp_path: Path, lapstrake: Lapstrake):
    (tmp_path / "file").write_text("")
    project = write_project(tmp_path / "p")
    done = lapstrake("build", project, "--to", f"oci:{tmp_path / 'file' / 'images'}", "--json")
    assert done.status == 11
    assert str(tmp_path / "file") in done.stderr


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_build_that_was_killed_is_resumed_and_leaves_nothing_half_done(
    tmp_path: Path, lapstrake: Lapstrake, death: signal.Signals
):
    slow = {"chunks/b/Dockerfile": f"{CHUNK}RUN echo started && sleep 60\n"}
    project, images = write_project(tmp_path / "p", slow), tmp_path / "images"
    argv = lapstrake.argv("build", project, "--to", f"oci:{images}", "--jobs", 1)
    with subprocess.Popen(argv, env=lapstrake.env(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("b | STEP 3/3") or "b | started" in line:
                break
        process.send_signal(death)
        assert process.wait(30) == (130 if death is signal.SIGINT else -signal.SIGKILL)
    _await_no_process_that_names(lapstrake.state)
    names = {tag.partition("--")[0] for tag in tags(images)}
    assert names == {"base", "a"}
    assert str(lapstrake.state) not in Path("/proc/mounts").read_text()
    write_project(project, {"chunks/b/Dockerfile": f"{CHUNK}COPY b /b\n"})
    done = lapstrake("build", project, "--to", f"oci:{images}", "--json")
    assert done.actions == {"base": "reuse", "a": "reuse", "b": "build"}
    assert not [path for path in (lapstrake.state / "runs").iterdir() if path.is_dir()]


def _await_no_process_that_names(path: Path) -> None:
    """The kernel ends them a moment after their parent; pytest's time limit is the limit."""
    wanted = str(path).encode()
    while any(wanted in _command_line(process) for process in Path("/proc").glob("[0-9]*/cmdline")):
        time.sleep(0.02)


def _command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("fails", [False, True], ids=["build", "failing build"])
def test_a_secret_is_in_no_layer_no_log_and_no_plan(tmp_path: Path, lapstrake: Lapstrake, *, fails: bool):
    secret = tmp_path / "token"
    secret.write_text("hunter2-and-more\n")
    run = "RUN --mount=type=secret,id=token cat /run/secrets/token && sha256sum < /run/secrets/token > /sum"
    end = " && exit 3" if fails else ""
    project = write_project(tmp_path / "p", {"chunks/a/Dockerfile": f"{CHUNK}{run}{end}\n"})
    images, state = tmp_path / "images", Lapstrake(tmp_path / "state")
    to = ("--to", f"oci:{images}")
    done = state("build", project, *to, "--chunk", "a", "--secret", f"token={secret}")
    assert done.status == (9 if fails else 0)
    assert "*****" in done.stderr
    plan = state("project", "plan", project, *to, "--json")
    for text in (done.stdout, done.stderr, plan.stdout):
        assert "hunter2" not in text
    found = subprocess.run(
        ["grep", "-rl", "hunter2", images, state.state], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""
    if not fails:
        tag = next(tag for tag in tags(images) if tag.startswith("a--") and tag.endswith("--chunked"))
        archive = tmp_path / "a.tar"
        exported = state("export", f"oci:{images}:{tag}", "--format", "rootfs-tar", "-o", archive)
        assert exported.status == 0, exported.stderr
        assert b"hunter2" not in archive.read_bytes()
        assert hashlib.sha256(secret.read_bytes()).hexdigest().encode() in archive.read_bytes()
