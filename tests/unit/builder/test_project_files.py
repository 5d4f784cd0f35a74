import contextlib
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import ProjectInvalid
from builder.project import Compression, Order
from builder.project_files import load_project
from builder.yaml_source import Problems, read_yaml
from ocikit.env_merge import EnvAction


def write(root: Path, **files: str) -> Path:
    """``base__Dockerfile="..."`` is base/Dockerfile; a base and chunks a and b are there by default."""
    given = {
        "base/Dockerfile": "FROM scratch\n",
        "chunks/a/Dockerfile": "ARG base\nFROM ${base}\n",
        "chunks/b/Dockerfile": "ARG base\nFROM ${base}\n",
        "dazzle.yaml": "combiner:\n  combinations: []\n",
        **{name.replace("__", "/"): text for name, text in files.items()},
    }
    for name, text in given.items():
        path = root / name.replace("_yaml", ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def problems(root: Path) -> str:
    with pytest.raises(ProjectInvalid) as caught:
        load_project(root)
    return str(caught.value)


def test_variants_take_the_place_of_the_chunk_and_keep_their_scalars_as_written(tmp_path: Path):
    write(
        tmp_path,
        chunks__a__chunk_yaml=(
            "variants:\n  - name: 3.10\n    args: {PYTHON_VERSION: 3.10, ON: yes, N: 010}\n"
            "  - name: other\n    dockerfile: Dockerfile.other\n"
        ),
    )
    (tmp_path / "chunks/a/Dockerfile.other").write_text("ARG base\nFROM ${base}\n")
    project = load_project(tmp_path)
    assert list(project.chunks) == ["a:3.10", "a:other", "b"]
    assert project.chunks["a:3.10"].args == {"PYTHON_VERSION": "3.10", "ON": "yes", "N": "010"}
    assert project.chunks["a:other"].dockerfile == "Dockerfile.other"


def test_referenced_combinations_come_first_and_once(tmp_path: Path):
    write(
        tmp_path,
        dazzle_yaml=(
            "combiner:\n  combinations:\n"
            "    - {name: all, ref: [two, one], chunks: [a]}\n"
            "    - {name: one, chunks: [a]}\n    - {name: two, ref: [one], chunks: [b]}\n"
            "  envvars:\n    - {name: PATH, action: merge-unique}\n"
        ),
    )
    project = load_project(tmp_path)
    assert project.combinations["all"].chunks == ("a", "b")
    assert project.combinations["two"].chunks == ("a", "b")
    assert project.env_actions == {"PATH": EnvAction.MERGE_UNIQUE}


def test_ignore_matches_whole_names_with_their_variant(tmp_path: Path):
    write(
        tmp_path,
        chunks__a__chunk_yaml="variants: [{name: '1'}, {name: '2'}]",
        dazzle_yaml='combiner:\n  combinations: [{name: x, chunks: ["a:1", "a:2"]}]\nignore: ["a:2", a]\n',
    )
    project = load_project(tmp_path)
    assert list(project.chunks) == ["a:1", "b"]
    assert project.warnings == (
        "dazzle.yaml:2: combination 'x' uses 'a:2', which is ignored: it cannot be combined",
    )
    assert not project.is_complete(project.combinations["x"])


def test_directories_with_underscore_or_dot_and_plain_files_are_no_chunks(tmp_path: Path):
    write(tmp_path, chunks___hidden__x="", chunks__README="")
    (tmp_path / "chunks" / ".git").mkdir()
    assert list(load_project(tmp_path).chunks) == ["a", "b"]


def test_options_of_our_own(tmp_path: Path):
    write(
        tmp_path,
        dazzle_yaml=(
            "lapstrake:\n  order: popularity\n  compression: zstd\n  allow-conflicts: ['/etc/*']\n"
            "  contexts: {tools: {directory: /bin, include: [true]}}\n"
        ),
    )
    options = load_project(tmp_path).options
    assert (options.order, options.compression) == (Order.POPULARITY, Compression.ZSTD)
    assert options.contexts[0].include == ("true",)


def test_tests_are_read_with_all_their_fields(tmp_path: Path):
    write(
        tmp_path,
        tests__a_yaml=(
            "- desc: it runs\n  command: [go, version]\n  entrypoint: [bash, -i, -c]\n  env: [A=b=c]\n"
            "  user: 1000\n  skip: true\n  assert: ['status == 0']\n"
        ),
    )
    test = load_project(tmp_path).chunks["a"].tests[0]
    assert (test.command, test.entrypoint, test.user) == (("go", "version"), ("bash", "-i", "-c"), "1000")
    assert (test.env, test.skip) == ({"A": "b=c"}, True)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"dazzle_yaml": "combiner: [\n"}, r"dazzle.yaml:2: ", id="not yaml"),
        pytest.param(
            {"dazzle_yaml": "combiner: 5\n"}, r"dazzle.yaml:1: combiner must be a mapping", id="kind"
        ),
        pytest.param(
            {"dazzle_yaml": "combiner:\n  combinations:\n    - {name: x, chunks: [c]}\n"},
            r"dazzle.yaml:3: combination 'x' uses the unknown chunk 'c'",
            id="unknown chunk",
        ),
        pytest.param(
            {"dazzle_yaml": "combiner:\n  combinations:\n    - {name: x, ref: [y]}\n"},
            r"dazzle.yaml:3: combination 'x' refers to the unknown 'y'",
            id="unknown ref",
        ),
        pytest.param(
            {"dazzle_yaml": "combiner:\n combinations:\n - {name: x, ref: [y]}\n - {name: y, ref: [x]}\n"},
            r"dazzle.yaml:\d: combinations refer to each other in a circle: x -> y -> x",
            id="circle",
        ),
        pytest.param(
            {"dazzle_yaml": "combiner:\n  combinations:\n    - {name: x}\n    - {name: x}\n"},
            r"dazzle.yaml:4: combination 'x' appears twice",
            id="twice",
        ),
        pytest.param(
            {"dazzle_yaml": "combiner:\n  envvars: [{name: A, action: blend}]\n"},
            r"dazzle.yaml:2: 'blend' is no action",
            id="action",
        ),
        pytest.param(
            {"chunks__a__chunk_yaml": "variants:\n  - args: {A: b}\n"},
            r"chunks/a/chunk.yaml:2: a variant needs a name",
            id="variant without name",
        ),
        pytest.param(
            {"chunks__a__chunk_yaml": "variants:\n  - {name: x, dockerfile: none}\n"},
            r"chunks/a/none: is missing",
            id="no such dockerfile",
        ),
        pytest.param(
            {"chunks__a__chunk_yaml": "variants:\n  - {name: x, args: {A: [b]}}\n"},
            r"chunks/a/chunk.yaml:2: args 'A' must be a string",
            id="argument is no string",
        ),
        pytest.param(
            {"tests__a_yaml": "- desc: x\n  command: [a]\n  assert: ['nope']\n  other: 1\n"},
            r"tests/a.yaml:4: unknown key 'other'[^\n]*\n[^\n]*tests/a.yaml:3: assertion 'nope'",
            id="two in a test",
        ),
        pytest.param({"chunks__a__Dockerfile": None}, r"chunks/a/Dockerfile: is missing", id="no dockerfile"),
        pytest.param(
            {"base__chunk_yaml": "variants: [{name: a}, {name: b}]"},
            "more than one variant",
            id="base variants",
        ),
        pytest.param(
            {"chunks__base__Dockerfile": "FROM x\n"},
            r"chunks/base: 'base' would have the tags of 'base'",
            id="a chunk named like the base",
        ),
        pytest.param(
            {"chunks__a__chunk_yaml": "variants: [{name: b}]", "chunks__a-b__Dockerfile": "FROM x\n"},
            r"chunks/a-b: 'a-b' would have the tags of 'a:b'",
            id="two chunks, one tag",
        ),
    ],
)
def test_every_problem_names_file_and_line(tmp_path: Path, files: dict[str, str | None], expected: str):
    write(tmp_path, **{name: text for name, text in files.items() if text is not None})
    for name, text in files.items():
        if text is None:
            (tmp_path / name.replace("__", "/")).unlink()
    assert re.search(expected, problems(tmp_path))


def test_all_problems_are_found_at_once(tmp_path: Path):
    write(
        tmp_path,
        dazzle_yaml="combiner:\n  combinations:\n    - {name: x, chunks: [p, q]}\n    - {name: ''}\n",
    )
    assert problems(tmp_path).count("\n") == 2


def test_a_tests_file_without_a_chunk_is_a_warning(tmp_path: Path):
    write(tmp_path, tests__lost_yaml="[]")
    assert load_project(tmp_path).warnings == (
        "tests/lost.yaml:1: no chunk 'lost': these tests are never run",
    )


def test_unknown_keys_are_warnings(tmp_path: Path):
    write(tmp_path, dazzle_yaml="combiner:\n  combination: []\n")
    assert load_project(tmp_path).warnings[0].startswith("dazzle.yaml:2: unknown key 'combination'")


def test_a_name_that_makes_no_tag_is_an_error(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "chunks" / ("x" * 60)).mkdir()
    (tmp_path / "chunks" / ("x" * 60) / "Dockerfile").write_text("")
    assert "cannot be a chunk's name" in problems(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["a: &x [*x]", "&a [" * 300, "{" * 2000, "\0", "\xff\xfe", "a: !!python/object:os.system x", "*" * 500],
    ids=["self reference", "deep", "braces", "nul", "not utf-8", "tag", "stars"],
)
def test_hostile_yaml_is_read_or_refused(tmp_path: Path, text: str):
    write(tmp_path)
    (tmp_path / "dazzle.yaml").write_bytes(text.encode("latin-1"))
    with contextlib.suppress(ProjectInvalid):
        load_project(tmp_path)


@given(st.text(alphabet=st.sampled_from("combiner:\n -[]{}ref,name chunks&*!|>'\"#%@"), max_size=200))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    found = Problems()
    value = read_yaml(path, "any.yaml", found)
    if value is not None:
        value.fields(("combiner", "name"), "it")
        value.items("it")
        value.text_map("it")


def test_platforms_are_read_and_judged(tmp_path: Path):
    project = load_project(
        write(tmp_path, dazzle_yaml="lapstrake: {platforms: [linux/amd64, linux/arm64/v8]}\n")
    )
    assert [str(one) for one in project.options.platforms] == ["linux/amd64", "linux/arm64/v8"]
    write(tmp_path, dazzle_yaml="lapstrake: {platforms: [arm64, linux/amd64, linux/amd64]}\n")
    found = problems(tmp_path)
    assert "dazzle.yaml:1: 'arm64' is not a platform" in found
    assert "platform linux/amd64 appears twice" in found


def test_references_that_multiply_are_followed_once(tmp_path: Path):
    lines = [f"    - {{name: c{at}, ref: [c{at + 1}, c{at + 1}]}}" for at in range(200)]
    combinations = "\n".join([*lines, "    - {name: c200, chunks: [a]}"])
    project = load_project(write(tmp_path, dazzle_yaml=f"combiner:\n  combinations:\n{combinations}\n"))
    assert project.combinations["c0"].chunks == ("a",)


_WORDS = st.sampled_from([
    "combiner", "combinations", "name", "chunks", "ref", "envvars", "action", "ignore", "lapstrake", "order",
    "contexts", "platforms", "allow-conflicts", "variants", "args", "dockerfile", "desc", "command", "assert",
    "env", "user", "skip", "entrypoint", "a", "b", "a:1", "Dockerfile", "status == 0", "A=b", "merge", "*",
    "", "popularity", "linux/amd64", "../..", "/", "1", "true", None,
])  # fmt: skip
_DOCUMENTS = st.recursive(
    _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS.filter(bool), inner, max_size=5),
    max_leaves=25,
)


@given(_DOCUMENTS, st.sampled_from(["dazzle.yaml", "chunks/a/chunk.yaml", "tests/a.yaml", "base/chunk.yaml"]))
def test_any_document_is_a_project_or_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, document: object, name: str
):
    root = write(tmp_path_factory.mktemp("any"))
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    with contextlib.suppress(ProjectInvalid):
        load_project(root)
