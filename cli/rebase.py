"""``lapstrake rebase``: an image on a new base, by manifest only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.main import run
from cli.output import Output

if TYPE_CHECKING:
    from builder.chunk_tests import TestCase
    from builder.project import ChunkTest
    from ocikit.repository import Image, Repository


@click.command()
@click.argument("image_ref", metavar="IMAGE")
@click.option("--onto", required=True, metavar="BASE", help="The new base, an image.")
@click.option("--to", required=True, metavar="REF", help="Where the result goes.")
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the tests are; the gate runs those of every chunk that IMAGE is made of.",
)
@click.option("--no-test", is_flag=True, help="Move it without asking the tests: not safe in general.")
@click.option("--platform", metavar="OS/ARCH", help="Of images for several platforms, this one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rebase(
    image_ref: str,
    onto: str,
    to: str,
    project: Path | None,
    no_test: bool,
    platform: str | None,
    as_json: bool,
) -> None:
    """Put the layers that IMAGE has above its base onto BASE; nothing is built, no layer is read.

    IMAGE says by org.opencontainers.image.base.digest which base it has; that base must be in IMAGE's
    repository. The result is named only if the tests of its chunks pass on it.
    """
    from builder.chunk_images import BASE_DIGEST
    from builder.images import as_image
    from builder.rebase import rebase_image
    from ocikit.descriptor import Platform
    from ocikit.digest import Digest
    from ocikit.errors import InvalidManifest
    from ocikit.opening import repositories
    from ocikit.reference import Reference
    from ocikit.repository import load_image, push_config_and_manifest

    if project is None and not no_test:
        raise click.UsageError("give --project DIR, whose tests are the gate, or --no-test")
    output = Output(as_json=as_json)
    source, base_ref, target = (Reference.parse(text) for text in (image_ref, onto, to))
    wanted = None if platform is None else Platform.parse(platform)

    async def work() -> tuple[str, int]:
        from builder.chunk_store import transfer_blob

        async with repositories() as opener:
            repository, bases, destination = (
                opener.open(source.name), opener.open(base_ref.name), opener.open(target.name, create=True)
            )  # fmt: skip
            image = await load_image(repository, source.reference, wanted)
            recorded = image.manifest.annotations.get(BASE_DIGEST, "")
            if not recorded:
                raise InvalidManifest("does not say on which base it was built", image_ref)
            old = await load_image(repository, Digest.parse(recorded), wanted)
            new = await load_image(bases, base_ref.reference, wanted)
            composed = rebase_image(image, old.config, new, (image_ref, str(base_ref.reference)))
            moved = {layer.digest for layer in new.manifest.layers}
            for layer in composed.layers:
                await transfer_blob(layer, bases if layer.digest in moved else repository, destination)
            tested = 0
            if project is not None and not no_test:
                tested = await _gate(project, as_image(composed), destination, str(target))
            if target.is_digest:
                raise InvalidManifest("the result needs a tag, not a digest", to)
            stored = await push_config_and_manifest(
                destination, composed.config, composed.manifest, str(target.reference)
            )
            return str(stored.digest), tested

    digest, tested = run(work())
    output.result(
        {"reference": to, "digest": digest, "tests": tested, "built": 0},
        f"{to}: {digest}, 0 chunks built, {tested} tests passed",
    )


async def _gate(project: Path, image: "Image", repository: "Repository", name: str) -> int:
    """Runs the tests of the chunks whose layers ``image`` has; raises TestsFailed."""
    import asyncio

    from builder.chunk_tests import PassedTests, TestRunner, describe_failure
    from builder.errors import TestsFailed
    from builder.project_files import load_project
    from builder.sandbox import Sandbox
    from builder.settings import BuilderSettings
    from builder.state import StateDirectory
    from builder.unpack import UnpackedLayers
    from servicekit.settings import load

    settings = load(BuilderSettings, "builder")
    state = StateDirectory(settings.state_dir)
    await asyncio.to_thread(state.prepare)
    loaded = await asyncio.to_thread(load_project, project)
    tests = {name: chunk.tests for name, chunk in {**loaded.chunks, "base": loaded.base}.items()}
    cases = _cases(image, tests, name)
    runner = TestRunner(
        Sandbox(UnpackedLayers(state.unpacked)),
        PassedTests(state.test_results),
        jobs=settings.jobs,
        timeout_s=settings.test_timeout,
    )
    results = await runner.run(image, repository, cases)
    if failures := [describe_failure(result) for result in results if result.failure]:
        raise TestsFailed(failures)
    return len(results)


def _cases(image: "Image", tests: "Mapping[str, Sequence[ChunkTest]]", name: str) -> "Sequence[TestCase]":
    from builder.chunk_tests import cases_of
    from builder.reuse import image_use

    chunks = dict.fromkeys(layer.chunk for layer in image_use(name, image).layers)
    return cases_of(name, {chunk: tests[chunk] for chunk in chunks if chunk in tests})
