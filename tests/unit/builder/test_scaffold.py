from pathlib import Path

import pytest

from builder.errors import ProjectInvalid, UnknownName
from builder.project_files import load_project
from builder.scaffold import add_chunk, add_combination, init_project


def test_a_project_from_nothing(tmp_path: Path):
    init_project(tmp_path)
    add_chunk(tmp_path, "go")
    add_chunk(tmp_path, "node")
    add_combination(tmp_path, "web", ["node"])
    add_combination(tmp_path, "all", ["go", "node"])
    project = load_project(tmp_path)
    assert {name: item.chunks for name, item in project.combinations.items()} == {
        "all": ("go", "node"),
        "web": ("node",),
    }
    assert project.chunks["go"].tests[0].assertions[0].text == "status == 0"


def test_what_exists_is_left_as_it_is(tmp_path: Path):
    init_project(tmp_path)
    (tmp_path / "base/Dockerfile").write_text("FROM mine\n")
    assert init_project(tmp_path) == []
    assert (tmp_path / "base/Dockerfile").read_text() == "FROM mine\n"


@pytest.mark.parametrize(
    "text",
    [
        "# head\ncombiner:\n  combinations: # all\n  - name: x # why\n    chunks: [a]\n\n  # vars\n",
        "combiner:\n    combinations:\n        - {name: x, chunks: [a]}\n        # the end\nignore: []\n",
        "ignore: []\n# only this\n",
        "combiner:\n  combinations: []   # none yet\n  envvars: []\nignore: [] # last\n",
    ],
    ids=["list not indented", "deep indent", "no combiner", "empty list"],
)
def test_comments_and_layout_stay(tmp_path: Path, text: str):
    init_project(tmp_path)
    add_chunk(tmp_path, "a")
    (tmp_path / "dazzle.yaml").write_text(text)
    known = set(load_project(tmp_path).combinations)
    add_combination(tmp_path, "new", ["a"])
    now = (tmp_path / "dazzle.yaml").read_text()
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert [comment for comment in comments if comment not in now] == []
    assert set(load_project(tmp_path).combinations) == {*known, "new"}


def test_refuses_what_cannot_be(tmp_path: Path):
    init_project(tmp_path)
    add_chunk(tmp_path, "a")
    add_combination(tmp_path, "x", ["a"])
    with pytest.raises(ProjectInvalid, match="is there already"):
        add_combination(tmp_path, "x", ["a"])
    with pytest.raises(UnknownName):
        add_combination(tmp_path, "y", ["b"])
    with pytest.raises(ProjectInvalid):
        add_chunk(tmp_path, "a:b")
