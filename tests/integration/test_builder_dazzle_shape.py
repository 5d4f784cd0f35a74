"""A project of the size of the real one, against a real registry."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from builder.app import workbenches
from builder.attestations import RESULTS_MEDIA_TYPE, SPDX_MEDIA_TYPE
from builder.build import BuildOptions, Done, Reporter
from builder.plan import Action
from builder.project_files import load_project
from builder.settings import BuilderSettings
from ocikit.digest import Digest
from ocikit.distribution.repository import RegistryRepository
from ocikit.manifest import Manifest
from ocikit.opening import repositories
from ocikit.reference import RepositoryName
from registry_facade.settings import LocalSettings
from tests.support.builder_project import Lapstrake, write_project
from tests.support.dazzle_shape import TarEngine, write_dazzle_shape
from tests.support.docker_registry import DockerRegistry
from tests.support.facade import running_facade

pytestmark = [pytest.mark.component("docker-registry")]
QUIET = Reporter(lambda _: None, lambda _name, _line: None)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_dazzle_shape(tmp_path / "project")


@pytest.fixture
def settings(tmp_path: Path) -> BuilderSettings:
    return BuilderSettings(state_dir=tmp_path / "state", jobs=8)


async def build(
    project: Path, to: str, settings: BuilderSettings, engine: TarEngine, *, reuse_from: str | None = None
) -> Sequence[Done]:
    other = RepositoryName.parse(reuse_from) if reuse_from else None
    async with workbenches(project, RepositoryName.parse(to), settings, QUIET, reuse_from=other) as (bench,):
        builder = bench.builder(engine, BuildOptions(8, 0))
        base = await builder.base()
        return [base, *await builder.chunks(list(bench.project.chunks), base.image)]


@asynccontextmanager
async def uploads(registry: DockerRegistry, repository: str) -> AsyncIterator[list[str]]:
    """The digests that are uploaded into ``repository`` during the block, by the registry's own log."""
    log, found = registry.process.log, []
    start = log.stat().st_size
    yield found
    text = log.read_bytes()[start:].decode()
    found += re.findall(rf'"PUT /v2/{repository}/blobs/uploads/\S*digest=(sha256(?::|%3A)[0-9a-f]+)', text)


async def test_builds_once_and_combines_all_without_a_layer_byte(
    project: Path, settings: BuilderSettings, docker_registry: DockerRegistry
):
    to, engine = f"{docker_registry.address}/team/images", TarEngine()
    done = await build(project, to, settings, engine)
    assert len(engine.built) == len(done) == 41
    layers = {str(layer.digest) for item in done for layer in item.image.manifest.layers}
    async with uploads(docker_registry, "team/images") as uploaded:
        combined = Lapstrake(settings.state_dir)(
            "combine", project, "--to", to, "--all", "--no-test", "--json"
        )
        assert len(combined.document["combinations"]) == 41
    assert uploaded
    assert not layers.intersection(digest.replace("%3A", ":") for digest in uploaded)
    async with repositories() as opener:
        repository = opener.open(RepositoryName.parse(to))
        tags = set(await repository.tags())
    assert {item["name"] for item in combined.document["combinations"]} <= tags
    again = Lapstrake(settings.state_dir)("combine", project, "--to", to, "--all", "--no-test", "--json")
    assert not any(item["is_new"] for item in again.document["combinations"])


async def test_another_repository_of_the_registry_gets_everything_mounted(
    project: Path, settings: BuilderSettings, docker_registry: DockerRegistry
):
    first, second = (f"{docker_registry.address}/{name}" for name in ("one", "two"))
    await build(project, first, settings, TarEngine())
    engine = TarEngine()
    async with uploads(docker_registry, "two") as uploaded:
        done = await build(project, second, settings, engine, reuse_from=first)
    assert engine.built == []
    assert {item.planned.action for item in done} == {Action.PULL}
    assert uploaded == []


async def test_a_machine_that_knows_nothing_moves_no_layer_to_fill_another_repository(
    project: Path, settings: BuilderSettings, docker_registry: DockerRegistry, tmp_path: Path
):
    first, second = (f"{docker_registry.address}/{name}" for name in ("one", "two"))
    done = await build(project, first, settings, TarEngine())
    layers = {layer.digest.encoded for item in done for layer in item.image.manifest.layers}
    start = docker_registry.process.log.stat().st_size
    combined = Lapstrake(tmp_path / "another state")(
        "combine", project, "--to", second, "--reuse-from", first, "--all", "--no-test", "--json"
    )
    assert len(combined.document["combinations"]) == 41
    text = docker_registry.process.log.read_bytes()[start:].decode()
    downloaded = set(re.findall(r'"GET /v2/\S+/blobs/sha256:([0-9a-f]+)', text))
    assert downloaded
    assert not layers & downloaded


async def test_a_new_repository_without_the_old_one_gives_the_same_images(
    project: Path, settings: BuilderSettings, docker_registry: DockerRegistry
):
    digests = []
    for name in ("one", "two/deeper"):
        done = await build(project, f"{docker_registry.address}/{name}", settings, TarEngine())
        digests.append([item.image.descriptor.digest for item in done])
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("file", "old", "new", "built"),
    [
        ("chunks/lang-node/chunk.yaml", "VERSION: 22", "VERSION: 22.1", ["lang-node:22"]),
        ("tests/lang-node.yaml", "status == 0", "status != 1", []),
        ("dazzle.yaml", "action: use-last", "action: use-first", []),
        ("chunks/tool-vnc/install.sh", None, None, ["tool-vnc"]),
    ],
    ids=["one variant bumped", "tests edited", "environment rule", "chmod +x"],
)
async def test_an_edit_builds_exactly_what_it_touches(
    project: Path,
    settings: BuilderSettings,
    tmp_path: Path,
    file: str,
    old: str | None,
    new: str,
    built: list[str],
):
    to = f"oci:{tmp_path / 'images'}"
    await build(project, to, settings, TarEngine())
    if old is None:
        (project / file).chmod(0o755)
    else:
        text = (project / file).read_text()
        assert old in text
        (project / file).write_text(text.replace(old, new, 1))
    engine = TarEngine()
    await build(project, to, settings, engine)
    assert engine.built == built


def test_popularity_needs_far_fewer_snapshots(project: Path, tmp_path: Path):
    plan = Lapstrake(tmp_path / "state")("project", "plan", project, "--json").document
    counts = plan["chain_ids"]
    assert counts["popularity"] <= 0.40 * counts["alphabetical"]
    assert counts["lower_bound"] == 39


async def test_the_order_by_popularity_stays_with_images_that_are_out(
    project: Path, settings: BuilderSettings, tmp_path: Path
):
    to, lapstrake = f"oci:{tmp_path / 'i'}", Lapstrake(settings.state_dir)
    written = (project / "dazzle.yaml").read_text()
    (project / "dazzle.yaml").write_text(f"{written}lapstrake: {{order: popularity}}\n")
    await build(project, to, settings, TarEngine())
    combine = ("combine", project, "--to", to, "--all", "--no-test", "--json")
    first = {item["name"]: item for item in lapstrake(*combine).document["combinations"]}
    assert first["full"]["chunks"][:3] == ["dep-cacert-update", "tool-docker", "tool-tailscale"]
    more = "".join(f"  - name: more-{at}\n    chunks: [lang-clojure, lang-r]\n" for at in range(50))
    crowded = f"{written}lapstrake: {{order: popularity}}\n".replace(
        "  combinations:\n", f"  combinations:\n{more}"
    )
    (project / "dazzle.yaml").write_text(crowded)
    second = {item["name"]: item for item in lapstrake(*combine).document["combinations"]}
    assert {name: second[name]["digest"] for name in first} == {name: first[name]["digest"] for name in first}
    counts = lapstrake("project", "plan", project, "--to", to, "--json").document["chain_ids"]
    assert counts["as published"] != counts["popularity"]
    third = {item["name"]: item for item in lapstrake(*combine, "--reorder").document["combinations"]}
    assert third["full"]["chunks"][0] == "lang-clojure"


async def test_each_test_of_a_unit_runs_once_for_all_the_images_that_leave_it_alone(
    project: Path, settings: BuilderSettings, tmp_path: Path
):
    to = f"oci:{tmp_path / 'i'}"
    busybox = Path("/bin/busybox").read_bytes()
    await build(project, to, settings, TarEngine(base_files={"bin/bash": busybox, "bin/sh": busybox}))
    for path in (project / "tests").iterdir():
        path.write_text(re.sub(r"entrypoint: .*", "entrypoint: [sh, -c]", path.read_text()))
        path.write_text(re.sub(r'command: \["(\S+).*', r'command: ["echo \1 0123456789"]', path.read_text()))
    loaded = load_project(project)
    used = {chunk for item in loaded.combinations.values() for chunk in item.chunks}
    pairs = sum(len(loaded.chunk(name).tests) for name in used)
    asked = sum(
        len(loaded.chunk(name).tests) for item in loaded.combinations.values() for name in item.chunks
    )
    lapstrake = Lapstrake(settings.state_dir)
    done = lapstrake("combine", project, "--to", to, "--all", "--json").document
    assert done["tests"] == {"run": pairs, "cached": asked - pairs, "skipped": 0}
    assert pairs < asked / 4
    report = lapstrake("reuse", "report", to, "--layers", "--json").document
    hashes = lapstrake("project", "hash", project, "--json").document["hashes"]
    named = {layer["chunk"]: layer["input_hash"] for layer in report["distinct_layers"]}
    assert named == {name: hashes[name] for name in {"base", *used}}
    again = lapstrake("combine", project, "--to", to, "--all", "--json").document
    assert again["tests"] == {"run": 0, "cached": asked, "skipped": 0}


async def attest(directory: Path, address: str, settings: BuilderSettings) -> None:
    """Pushes twice: what is listed already is not listed again."""
    project, to = write_project(directory / "p"), f"{address}/attested"
    await build(project, to, settings, TarEngine())
    for _ in range(2):
        done = Lapstrake(settings.state_dir)(
            "combine", project, "--to", to, "--combination", "one", "--no-test", "--attest", "--json"
        ).document
    subject = Digest.parse(done["combinations"][0]["digest"])
    async with repositories() as opener:
        repository = opener.open(RepositoryName.parse(to))
        assert isinstance(repository, RegistryRepository)
        listed = (await repository.client.referrers(repository.repository, subject)).manifests
        kinds = []
        for descriptor in listed:
            manifest = Manifest.parse((await repository.manifest(descriptor.digest)).data)
            assert manifest.subject is not None
            assert manifest.subject.digest == subject
            kinds += [layer.media_type for layer in manifest.layers]
    assert sorted(kinds) == sorted([SPDX_MEDIA_TYPE, RESULTS_MEDIA_TYPE])
    report = Lapstrake(settings.state_dir)("reuse", "report", to, "--json").document
    assert [cost["name"].rpartition(":")[2] for cost in report["costs"]] == ["one"]


async def test_images_are_attested_where_the_registry_lists_no_referrers(
    tmp_path: Path, settings: BuilderSettings, docker_registry: DockerRegistry
):
    await attest(tmp_path, docker_registry.address, settings)


async def test_images_are_attested_where_the_registry_lists_referrers(
    tmp_path: Path, settings: BuilderSettings
):
    local = LocalSettings(enabled=True, namespace="local", root=None)
    async with running_facade(tmp_path / "facade", local=local) as facade:
        address = facade.url.removeprefix("http://")
        await asyncio.to_thread(lambda: asyncio.run(attest(tmp_path, f"{address}/local", settings)))
