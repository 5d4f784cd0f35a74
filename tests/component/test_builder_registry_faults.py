"""Pushing to a real registry that fails in the middle of it."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from builder.app import workbenches
from builder.build import BuildOptions, Reporter
from builder.image_sets import name_images
from builder.images import complete_names, wanted_images
from builder.settings import BuilderSettings
from ocikit.blobs import read_blob
from ocikit.errors import OciError
from ocikit.manifest import child_descriptors, parse_manifest_or_index
from ocikit.opening import repositories
from ocikit.reference import RepositoryName
from tests.support.builder_project import write_project
from tests.support.dazzle_shape import TarEngine
from tests.support.docker_registry import DockerRegistry
from tests.support.registry_proxy import Fault, RegistryProxy, registry_proxy

pytestmark = [pytest.mark.component("docker-registry")]
QUIET = Reporter(lambda _: None, lambda _name, _line: None)
FOR_GOOD = 1000
LAYER_BYTES = 3 << 20
"""More than one piece of an upload."""


@pytest.fixture
async def proxy(docker_registry: DockerRegistry) -> AsyncIterator[RegistryProxy]:
    async with registry_proxy(docker_registry.address) as proxy:
        yield proxy


async def build_and_combine(project: Path, address: str, state: Path) -> Sequence[str]:
    """The digests of all that was built."""
    engine, to = (
        TarEngine(layer_bytes=LAYER_BYTES, incompressible=True),
        RepositoryName.parse(f"{address}/images"),
    )
    async with workbenches(project, to, BuilderSettings(state_dir=state, jobs=2), QUIET) as (bench,):
        builder = bench.builder(engine, BuildOptions(2, 0))
        base = await builder.base()
        done = [base, *await builder.chunks(list(bench.project.chunks), base.image)]
        maker = bench.image_maker(None)
        parts = await maker.load(list(bench.project.chunks))
        wanted = wanted_images(bench.project, complete_names(bench.project))
        made = await name_images(bench.store.target, [await maker.make(wanted, parts)])
    return [*(item.image.descriptor.digest for item in done), *(item.digest for item in made)]


async def named_and_complete(registry: DockerRegistry) -> set[str]:
    """The tags; each stands for something of which every blob is there and is what its digest says."""
    async with repositories() as opener:
        repository = opener.open(RepositoryName.parse(f"{registry.address}/images"))
        try:
            tags = set(await repository.tags())
        except OciError:
            return set()
        for tag in tags:
            for child in child_descriptors(parse_manifest_or_index(await repository.manifest(tag))):
                await read_blob(repository.blobs, child, limit_bytes=1 << 30)
        return tags


@pytest.mark.parametrize(
    ("method", "part", "fault"),
    [
        ("POST", "/blobs/uploads/", "refuse"),
        ("PUT", "/blobs/uploads/", "reset half-way"),
        ("PUT", "/manifests/", "lose the answer"),
    ],
)
async def test_what_a_failing_registry_was_given_a_name_for_is_whole_and_the_next_run_goes_on(
    tmp_path: Path,
    docker_registry: DockerRegistry,
    proxy: RegistryProxy,
    method: str,
    part: str,
    fault: Fault,
):
    project = write_project(tmp_path / "p")
    proxy.on(method, part, *[None] * 2, *[fault] * FOR_GOOD)
    with pytest.raises(OciError) as caught:
        await build_and_combine(project, proxy.address, tmp_path / "state")
    assert "\n" not in str(caught.value)
    before = await named_and_complete(docker_registry)
    assert not before & {"one", "both"}
    proxy.heal()
    digests = await build_and_combine(project, proxy.address, tmp_path / "state")
    assert await named_and_complete(docker_registry) >= before | {"one", "both"}
    assert digests == await build_and_combine(project, f"oci:{tmp_path}", tmp_path / "other")


async def test_faults_that_pass_are_not_noticed(
    tmp_path: Path, docker_registry: DockerRegistry, proxy: RegistryProxy
):
    project = write_project(tmp_path / "p")
    proxy.on("POST", "/blobs/uploads/", None, "refuse")
    proxy.on("PUT", "/blobs/uploads/", "reset half-way", None, "lose the answer")
    proxy.on("PUT", "/manifests/", None, "lose the answer", None, "refuse")
    digests = await build_and_combine(project, proxy.address, tmp_path / "state")
    assert await named_and_complete(docker_registry) >= {"one", "both"}
    assert digests == await build_and_combine(project, docker_registry.address, tmp_path / "other")
