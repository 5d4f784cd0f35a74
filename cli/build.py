"""``lapstrake build`` and ``lapstrake combine``."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.build_output import document, images_table, say_built
from cli.main import run
from cli.output import Output, OutputFile
from cli.platform_option import SEVERAL

if TYPE_CHECKING:
    from builder.app import Workbench
    from builder.build import BuildOptions, Done
    from builder.chunk_tests import TestRunner
    from builder.engine import BuildEngine
    from builder.image_sets import MadeImage
    from builder.images import ImageMaker, Parts, TriedImage, Wanted
    from builder.settings import BuilderSettings
    from ocikit.descriptor import Platform

_PROJECT = click.argument(
    "project", type=click.Path(exists=True, file_okay=False, path_type=Path), default="."
)
_TO = click.option(
    "--to", required=True, metavar="REPO", help="Where images go: registry/repository or oci:DIR."
)
_STATE = click.option("--state-dir", type=click.Path(file_okay=False), help="What is kept between runs.")
_NO_TEST = click.option("--no-test", is_flag=True, help="Leave the tests out.")
_REUSE_FROM = click.option(
    "--reuse-from", metavar="REPO", help="Take what REPO has instead of building it; mounted where possible."
)
_JOBS = click.option("--jobs", "-j", type=click.IntRange(min=1), help="At a time; default: as many as CPUs.")
_JUNIT = click.option("--junit", type=OutputFile(), help="Write test results as JUnit XML.")
_ATTEST = click.option(
    "--attest", is_flag=True, help="Push an SPDX document and the test results beside each image."
)
_HASH_COMPAT = click.option(
    "--hash-compat",
    type=click.Choice(["native", "dazzle"]),
    default="native",
    show_default=True,
    help="Whose hashes tags are made of.",
)
_EVERY_IMAGE = click.option(
    "--test-every-image", is_flag=True, help="Repeat a chunk's tests also where nothing they see differs."
)
_CID = click.option(
    "--annotate-cid", is_flag=True, default=None, help="Write the IPFS name of each layer into the manifests."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command()
@_PROJECT
@_TO
@click.option("--chunk", "chunks", multiple=True, metavar="NAME", help="Only this chunk; may be repeated.")
@click.option(
    "--combination", "combinations", multiple=True, metavar="NAME", help="Only this image and its chunks."
)
@SEVERAL
@_JOBS
@click.option("--engine", type=click.Choice(["auto", "buildah", "buildkit"]), help="What builds Dockerfiles.")
@_NO_TEST
@_EVERY_IMAGE
@_JUNIT
@_ATTEST
@click.option("--force", "force", multiple=True, metavar="NAME", help="Build this chunk (or base) anew.")
@click.option(
    "--rebase", is_flag=True, help="Move chunks onto a changed base when their tests pass there; else build."
)
@click.option("--secret", "secrets", multiple=True, metavar="ID=FILE", help="For RUN --mount=type=secret.")
@_REUSE_FROM
@click.option(
    "--source-date-epoch",
    type=int,
    envvar="SOURCE_DATE_EPOCH",
    help="No file in a layer is newer; default 0.",
)
@_HASH_COMPAT
@_CID
@_STATE
@_JSON
def build(
    project: Path,
    to: str,
    chunks: tuple[str, ...],
    combinations: tuple[str, ...],
    platforms: "tuple[Platform, ...]",
    jobs: int | None,
    engine: str | None,
    no_test: bool,
    test_every_image: bool,
    junit: Path | None,
    attest: bool,
    force: tuple[str, ...],
    rebase: bool,
    secrets: tuple[str, ...],
    reuse_from: str | None,
    source_date_epoch: int | None,
    hash_compat: str,
    annotate_cid: bool | None,
    state_dir: str | None,
    as_json: bool,
) -> None:
    """Build the chunks of PROJECT that REPO lacks, test them, and combine them into images.

    Without --chunk or --combination: everything. With --chunk: only chunks. What REPO has under the hash of
    its present inputs is never built again; a run that was interrupted is resumed by running it again.
    """
    from builder.app import LazyEngine, workbenches
    from builder.build import BuildOptions

    if rebase and no_test:
        raise click.UsageError("--rebase is safe only with tests; leave out --no-test")
    output, target = Output(as_json=as_json), _target(to, attest=attest)
    settings = _settings(
        jobs=jobs,
        engine=engine,
        source_date_epoch=source_date_epoch,
        state_dir=state_dir,
        annotate_cid=annotate_cid,
    )

    async def work() -> Mapping[str, Any]:
        started_s = time.monotonic()
        async with workbenches(
            project,
            target,
            settings,
            _reporter(output),
            platforms=platforms,
            reuse_from=_maybe(reuse_from),
            hash_compat=hash_compat,
        ) as benches:
            wanted = _wanted(benches[0], combinations, everything=not chunks)
            names = _needed(benches[0], chunks, combinations, wanted)
            forced = benches[0].project.units(force)
            options = BuildOptions(settings.jobs, settings.source_date_epoch, forced, _secrets(secrets))
            tool = LazyEngine(settings.engine, benches[0].state)
            try:
                built = [await _build(bench, tool, options, names, rebase=rebase) for bench in benches]
            finally:
                await tool.close()
            on_base = [bench for bench, _ in built]
            done = [item for _, items in built for item in items]
            with _tests(on_base[0], junit, leave_out=no_test) as runner:
                makers = [bench.image_maker(runner, everywhere=test_every_image) for bench in on_base]
                parts = [await maker.load(names) for maker in makers]
                results = [
                    result
                    for maker, own in zip(makers, parts, strict=True)
                    for result in await maker.test_chunks(own)
                ]
                made = await _make(on_base, makers, parts, wanted, attest=attest)
        say_built(output, done)
        return document(to, done, results, made, time.monotonic() - started_s)

    fields = run(work())
    output.result(fields, images_table(fields))


@click.command()
@_PROJECT
@_TO
@click.option("--all", "everything", is_flag=True, help="Every combination of the project.")
@click.option(
    "--combination", "combinations", multiple=True, metavar="NAME", help="This one; may be repeated."
)
@click.option("--chunks", "given", metavar="NAME=c1,c2", help="An image of these chunks, in this order.")
@SEVERAL
@click.option(
    "--reorder", is_flag=True, help="Put images in the order of today's popularity, also those that are out."
)
@_NO_TEST
@_EVERY_IMAGE
@_JUNIT
@_ATTEST
@_JOBS
@_REUSE_FROM
@_HASH_COMPAT
@_CID
@_STATE
@_JSON
def combine(
    project: Path,
    to: str,
    everything: bool,
    combinations: tuple[str, ...],
    given: str | None,
    platforms: "tuple[Platform, ...]",
    reorder: bool,
    no_test: bool,
    test_every_image: bool,
    junit: Path | None,
    attest: bool,
    jobs: int | None,
    reuse_from: str | None,
    hash_compat: str,
    annotate_cid: bool | None,
    state_dir: str | None,
    as_json: bool,
) -> None:
    """Join chunks that are in REPO into images, by writing manifests and configs only.

    Each image is tested before its name is written. The same chunks give the same bytes.
    """
    if sum([everything, bool(combinations), given is not None]) != 1:
        raise click.UsageError("give one of --all, --combination NAME and --chunks NAME=c1,c2")
    from builder.app import workbenches

    output, target = Output(as_json=as_json), _target(to, attest=attest)
    settings = _settings(jobs=jobs, state_dir=state_dir, annotate_cid=annotate_cid)

    async def work() -> Mapping[str, Any]:
        started_s = time.monotonic()
        async with workbenches(
            project,
            target,
            settings,
            _reporter(output),
            platforms=platforms,
            reuse_from=_maybe(reuse_from),
            hash_compat=hash_compat,
        ) as benches:
            wanted = (
                [_given(benches[0], given)]
                if given
                else _wanted(benches[0], combinations, everything=everything)
            )
            names = sorted({name for image in wanted for name in image.chunks})
            with _tests(benches[0], junit, leave_out=no_test) as runner:
                makers = [bench.image_maker(runner, everywhere=test_every_image) for bench in benches]
                parts = [await maker.load(names) for maker in makers]
                made = await _make(benches, makers, parts, wanted, attest=attest, reorder=reorder)
        return document(to, [], [], made, time.monotonic() - started_s)

    fields = run(work())
    output.result(fields, images_table(fields))


def _settings(**flags: object) -> "BuilderSettings":
    from builder.settings import BuilderSettings
    from servicekit.settings import load

    return load(BuilderSettings, "builder", flags=flags)


def _target(to: str, *, attest: bool) -> Any:
    """Refused before anything is built: an OCI layout has no referrers."""
    if attest and to.startswith("oci:"):
        raise click.UsageError(f"--attest pushes referrers, which only a registry takes; --to is {to}")
    return _name(to)


def _name(text: str) -> Any:
    from ocikit.reference import RepositoryName

    return RepositoryName.parse(text)


def _maybe(text: str | None) -> Any:
    return None if text is None else _name(text)


def _reporter(output: Output) -> Any:
    from builder.build import Reporter

    def log(name: str, line: str) -> None:
        if not output.as_json:
            click.echo(f"{name} | {line}", err=True)

    return Reporter(output.say, log)


def _secrets(given: Sequence[str]) -> Mapping[str, Path]:
    secrets: dict[str, Path] = {}
    for item in given:
        name, separator, path = item.partition("=")
        if not separator or not Path(path).is_file():
            raise click.UsageError(f"--secret {name}=...: write ID=FILE, with a file that exists")
        secrets[name] = Path(path)
    return secrets


def _wanted(bench: "Workbench", combinations: Sequence[str], *, everything: bool) -> "Sequence[Wanted]":
    from builder.images import complete_names, wanted_images

    names = combinations or (complete_names(bench.project) if everything else ())
    return wanted_images(bench.project, names)


def _given(bench: "Workbench", text: str) -> "Wanted":
    from builder.images import Wanted
    from ocikit.reference import is_tag

    name, separator, chunks = text.partition("=")
    if not separator or not is_tag(name) or not chunks:
        raise click.UsageError(f"--chunks {text}: write NAME=c1,c2")
    names = tuple(bench.project.chunk(chunk.strip()).name for chunk in chunks.split(","))
    if len(set(names)) < len(names):
        raise click.UsageError(f"--chunks {text}: each chunk once")
    return Wanted(name, names)


def _needed(
    bench: "Workbench", chunks: Sequence[str], combinations: Sequence[str], wanted: "Sequence[Wanted]"
) -> Sequence[str]:
    """The chunks to build: those named, and those of the wanted images; all when nothing is named."""
    if not chunks and not combinations:
        return list(bench.project.chunks)
    named = {bench.project.chunk(name).name for name in chunks}
    return sorted(named | {bench.project.chunk(name).name for image in wanted for name in image.chunks})


@contextlib.contextmanager
def _tests(bench: "Workbench", junit: Path | None, *, leave_out: bool) -> "Iterator[TestRunner | None]":
    """A runner, whose results are written to ``junit`` whatever comes of them; None leaves tests out."""
    from builder.junit import junit_xml

    runner = None if leave_out else bench.test_runner()
    try:
        yield runner
    finally:
        if junit is not None:
            junit.write_bytes(junit_xml(runner.results if runner is not None else []))


async def _build(
    bench: "Workbench", tool: "BuildEngine", options: "BuildOptions", names: Sequence[str], *, rebase: bool
) -> "tuple[Workbench, Sequence[tuple[Platform, Done]]]":
    """Builds what is missing for one platform; its workbench as it is on the base that came of it."""
    base = await bench.builder(tool, options).base()
    on_base = await bench.on_base(base.image)
    if rebase:
        gate = on_base.image_maker(on_base.test_runner()).passes
        options = dataclasses.replace(options, gate=gate)
    done = [base, *await on_base.builder(tool, options).chunks(names, base.image)]
    return on_base, [(bench.platform, item) for item in done]


async def _make(
    benches: "Sequence[Workbench]",
    makers: "Sequence[ImageMaker]",
    parts: "Sequence[Parts]",
    wanted: "Sequence[Wanted]",
    *,
    attest: bool,
    reorder: bool = False,
) -> "Sequence[MadeImage]":
    """The images of all platforms, composed and tested, then named together."""
    from builder.image_sets import name_images
    from builder.images import as_published

    tried: list[Sequence[TriedImage]] = []
    for bench, maker, own in zip(benches, makers, parts, strict=True):
        ordered = wanted if reorder else await as_published(wanted, bench.store)
        tried.append(await maker.make(ordered, own))
    made = await name_images(benches[0].store.target, tried)
    if attest:
        for maker, own, images in zip(makers, parts, tried, strict=True):
            await maker.attest(images, own)
    return made
