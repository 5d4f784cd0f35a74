"""``lapstrake rebase``: an image on a new base, by manifest only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.main import run
from cli.output import Output
from cli.platform_option import PlatformType

if TYPE_CHECKING:
    from builder.chunk_tests import TestCase, TestResult
    from builder.project import ChunkTest
    from ocikit.compose import ComposedImage
    from ocikit.descriptor import Platform
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
@click.option(
    "--platform",
    "platforms",
    type=PlatformType(),
    multiple=True,
    metavar="OS/ARCH",
    help="Of an image for several platforms only this one; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rebase(
    image_ref: str,
    onto: str,
    to: str,
    project: Path | None,
    no_test: bool,
    platforms: "tuple[Platform, ...]",
    as_json: bool,
) -> None:
    """Put the layers that IMAGE has above its base onto BASE; nothing is built, no layer is read.

    IMAGE says by org.opencontainers.image.base.digest which base it has; that base must be in IMAGE's
    repository. The result is named only if the tests of its chunks pass on it. An index stays one: all its
    platforms are moved, or those given, and each must be one whose tests this host can run.
    """
    from builder.rebase_images import Place, rebase_images
    from ocikit.errors import InvalidManifest
    from ocikit.opening import repositories
    from ocikit.reference import Reference

    if project is None and not no_test:
        raise click.UsageError("give --project DIR, whose tests are the gate, or --no-test")
    output = Output(as_json=as_json)
    source, base, target = (Reference.parse(text) for text in (image_ref, onto, to))

    async def work() -> tuple[str, int]:
        if target.is_digest:
            raise InvalidManifest("the result needs a tag, not a digest", to)
        passed: list[TestResult] = []
        async with repositories() as opener:
            destination = opener.open(target.name, create=True)

            async def gate(image: "ComposedImage") -> None:
                if project is not None and not no_test:
                    passed.extend(await _gate(project, image, destination, to))

            digest = await rebase_images(
                Place(opener.open(source.name), source.reference, image_ref),
                Place(opener.open(base.name), base.reference, onto),
                destination,
                str(target.reference),
                platforms,
                gate,
            )
        return str(digest), len(passed)

    digest, tested = run(work())
    output.result(
        {"reference": to, "digest": digest, "tests": tested, "built": 0},
        f"{to}: {digest}, 0 chunks built, {tested} tests passed",
    )


async def _gate(
    project: Path, composed: "ComposedImage", repository: "Repository", name: str
) -> "Sequence[TestResult]":
    """Runs the tests of the chunks whose layers the image has; raises TestsFailed and EngineUnavailable."""
    import asyncio

    from builder.chunk_tests import PassedTests, TestRunner
    from builder.errors import EngineUnavailable
    from builder.images import raise_failures
    from builder.platforms import is_runnable
    from builder.project_files import load_project
    from builder.sandbox import Sandbox
    from builder.settings import BuilderSettings
    from builder.state import StateDirectory
    from builder.unpack import UnpackedLayers
    from ocikit.repository import as_image
    from servicekit.settings import load

    settings = load(BuilderSettings, "builder")
    state = StateDirectory(settings.state_dir)
    await asyncio.to_thread(state.prepare)
    loaded = await asyncio.to_thread(load_project, project)
    tests = {name: chunk.tests for name, chunk in {**loaded.chunks, "base": loaded.base}.items()}
    image = as_image(composed)
    cases = _cases(image, tests, name)
    if cases and not is_runnable(composed.platform):
        raise EngineUnavailable(
            f"the gate for {composed.platform}",
            "this host cannot run its tests; leave it out by --platform, or use --no-test",
        )
    runner = TestRunner(
        Sandbox(UnpackedLayers(state.unpacked)),
        PassedTests(state.test_results),
        jobs=settings.jobs,
        timeout_s=settings.test_timeout,
    )
    results = await runner.run(image, repository, cases)
    raise_failures(results)
    return results


def _cases(image: "Image", tests: "Mapping[str, Sequence[ChunkTest]]", name: str) -> "Sequence[TestCase]":
    from builder.chunk_tests import cases_of
    from builder.reuse import image_use

    chunks = dict.fromkeys(layer.chunk for layer in image_use(name, image).layers)
    return cases_of(name, {chunk: tests[chunk] for chunk in chunks if chunk in tests})
