import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import ProjectInvalid
from builder.fingerprint import Inputs, differences, project_inputs
from builder.project_files import load_project
from ocikit.descriptor import Platform
from ocikit.manifest import canonical_json

AMD64 = Platform("linux", "amd64")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "base/Dockerfile": "FROM scratch\n",
        "chunks/a/Dockerfile": "ARG base\nFROM ${base}\nCOPY . /\n",
        "chunks/a/run.sh": "#!/bin/sh\n",
        "chunks/a/README.md": "hello\n",
        "chunks/a/.dockerignore": "README.md\n*/deep\n",
        "chunks/a/dir/deep": "1",
        "chunks/v/Dockerfile": "ARG base\nFROM ${base}\n",
        "chunks/v/chunk.yaml": "variants:\n - {name: '1', args: {V: '1'}}\n - {name: '2', args: {V: '2'}}\n",
        "tests/a.yaml": "[]",
        "dazzle.yaml": "combiner: {}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "chunks/a/link").symlink_to("run.sh")
    return tmp_path


def hashes(root: Path) -> dict[str, str]:
    return {name: inputs.hash for name, inputs in project_inputs(load_project(root), AMD64).items()}


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new)) and None


def relink(root: Path) -> None:
    (root / "chunks/a/link").unlink()
    (root / "chunks/a/link").symlink_to("README.md")


ALL = {"base", "a", "v:1", "v:2"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        pytest.param(lambda root: (root / "chunks/a/run.sh").chmod(0o755), {"a"}, id="chmod +x"),
        pytest.param(replace("chunks/a/run.sh", "sh", "bash"), {"a"}, id="content"),
        pytest.param(relink, {"a"}, id="link target"),
        pytest.param(lambda root: (root / "chunks/a/new").mkdir(), {"a"}, id="empty directory"),
        pytest.param(replace("chunks/a/Dockerfile", "/", "/x"), {"a"}, id="Dockerfile"),
        pytest.param(replace("chunks/v/chunk.yaml", "V: '2'", "V: '3'"), {"v:2"}, id="one variant bumped"),
        pytest.param(
            lambda root: (root / "chunks/v/Dockerfile.other").write_text("x"), {"v:1", "v:2"}, id="stray file"
        ),
        pytest.param(replace("base/Dockerfile", "scratch", "scratch "), ALL, id="base"),
        pytest.param(replace("chunks/a/README.md", "hello", "bye"), set(), id="ignored by .dockerignore"),
        pytest.param(replace("chunks/a/dir/deep", "1", "2"), set(), id="ignored by a pattern with a star"),
        pytest.param(replace("tests/a.yaml", "[]", "# none\n[]"), set(), id="tests"),
        pytest.param(replace("chunks/a/.dockerignore", "README.md", "/README.md"), set(), id="same meaning"),
        pytest.param(
            replace("chunks/a/.dockerignore", "README.md", "!README.md"), {"a"}, id="no more ignored"
        ),
        pytest.param(
            replace("dazzle.yaml", "{}", "{combinations: [{name: x, chunks: [a]}]}"), set(), id="combination"
        ),
    ],
)
def test_the_hash_changes_with_what_matters_and_nothing_else(
    root: Path, change: Callable[[Path], None], changed: set[str]
):
    before = hashes(root)
    change(root)
    after = hashes(root)
    assert {name for name in before if before[name] != after[name]} == changed


def test_the_hash_is_the_same_in_another_directory(root: Path, tmp_path_factory: pytest.TempPathFactory):
    other = tmp_path_factory.mktemp("elsewhere") / "moved"
    before = hashes(root)
    root.rename(other)
    assert hashes(other) == before


def test_a_pattern_is_anchored_at_the_context_as_docker_has_it(root: Path):
    (root / "chunks/a/.dockerignore").write_text("deep\n**/*.md\n")
    sources = project_inputs(load_project(root), AMD64)["a"].sources
    assert set(sources) == {"/dir", "/dir/deep", "/link", "/run.sh"}


def test_a_list_of_ignored_files_that_is_no_text_is_named(root: Path):
    (root / "chunks/a/.dockerignore").write_bytes(b"\xff\n")
    with pytest.raises(ProjectInvalid, match=r"chunks/a/.dockerignore: is not UTF-8"):
        project_inputs(load_project(root), AMD64)


def test_a_directory_counts_for_which_an_exception_from_what_is_ignored_is_made(root: Path):
    (root / "chunks/a/kept").mkdir()
    for name in ("kept/x", "kept/y", ".dockerignore"):
        (root / "chunks/a" / name).write_text("kept\n!kept/x\n")
    before = project_inputs(load_project(root), AMD64)["a"]
    assert {path for path in before.sources if path.startswith("/kept")} == {"/kept", "/kept/x"}
    (root / "chunks/a/kept").chmod(0o700)
    assert hashes(root)["a"] != before.hash


def test_inputs_survive_being_stored(root: Path):
    inputs = project_inputs(load_project(root), AMD64)["v:1"]
    assert Inputs.parse(json.loads(canonical_json(inputs.dump()))) == inputs
    assert Inputs.parse({"format_version": 99}) is None


def test_differences_are_named(root: Path):
    before = project_inputs(load_project(root), AMD64)
    (root / "chunks/a/run.sh").chmod(0o755)
    (root / "chunks/a/README.md").rename(root / "chunks/a/other")
    replace("chunks/v/chunk.yaml", "V: '2'", "W: '2'")(root)
    replace("base/Dockerfile", "scratch", "scratch AS x")(root)
    after = project_inputs(load_project(root), AMD64)
    assert differences(after["a"], before["a"]) == [
        "base changed", "source /other added", "source /run.sh changed"
    ]  # fmt: skip
    assert differences(after["v:2"], before["v:2"]) == [
        "base changed", "argument V removed", "argument W added"
    ]  # fmt: skip


def test_a_named_context_is_part_of_the_hash_of_who_names_it(root: Path, tmp_path: Path):
    tool = tmp_path / "outside" / "tool"
    tool.parent.mkdir()
    tool.write_text("1")
    (root / "dazzle.yaml").write_text(
        f"lapstrake: {{contexts: {{outside: {{directory: {tool.parent}, include: [tool]}}}}}}\n"
    )
    replace("chunks/a/Dockerfile", "COPY . /", "COPY --from=outside tool /tool")(root)
    before = hashes(root)
    tool.write_text("2")
    assert {name for name, value in hashes(root).items() if value != before[name]} == {"a"}
    tool.unlink()
    with pytest.raises(ProjectInvalid, match="nothing matches"):
        hashes(root)
