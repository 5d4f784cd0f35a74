"""``lapstrake project``: create, inspect and plan a project of chunks."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.main import run
from cli.output import Output, table
from cli.platform_option import ONE_OF_SEVERAL, SEVERAL

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from builder.app import Workbench
    from builder.conflicts import SharedFile
    from builder.fingerprint import Inputs
    from builder.plan import PlannedAction
    from builder.project import Project
    from ocikit.descriptor import Platform
    from ocikit.reference import RepositoryName

_PROJECT = click.argument("project", type=click.Path(file_okay=False, path_type=Path), default=".")
_TO = click.option("--to", metavar="REPO", help="The repository that is asked what it has.")
_HASH_COMPAT = click.option(
    "--hash-compat",
    type=click.Choice(["native", "dazzle"]),
    default="native",
    show_default=True,
    help="Whose hashes; dazzle's need --to with the base in it.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def project() -> None:
    """Create, inspect and plan a project of chunks."""


@project.command("init")
@_PROJECT
@_JSON
def init(project: Path, as_json: bool) -> None:
    """Make PROJECT a project: dazzle.yaml and a base to start from. What exists is left as it is."""
    from builder.scaffold import init_project

    _made(init_project(project), as_json=as_json)


@project.command("add-chunk")
@click.argument("words", nargs=-1, required=True, metavar="[PROJECT] NAME")
@_JSON
def add_chunk_command(words: tuple[str, ...], as_json: bool) -> None:
    """Start the chunk NAME: a Dockerfile and a tests file."""
    from builder.scaffold import add_chunk

    root, names = _root_and_names(words)
    if len(names) != 1:
        raise click.UsageError("give the NAME of one chunk")
    _made(add_chunk(root, names[0]), as_json=as_json)


@project.command("add-combination")
@click.argument("words", nargs=-1, required=True, metavar="[PROJECT] NAME CHUNK...")
@_JSON
def add_combination_command(words: tuple[str, ...], as_json: bool) -> None:
    """Add the image NAME of CHUNKs to dazzle.yaml; its comments stay."""
    from builder.scaffold import add_combination

    root, names = _root_and_names(words)
    if len(names) < 2:
        raise click.UsageError("give a NAME and at least one CHUNK")
    _made(add_combination(root, names[0], names[1:]), as_json=as_json)


def _root_and_names(words: Sequence[str]) -> tuple[Path, Sequence[str]]:
    """PROJECT may be left out: the first word is one when there is a project in it."""
    from builder.project_files import PROJECT_FILE

    if len(words) > 1 and (Path(words[0]) / PROJECT_FILE).is_file():
        return Path(words[0]), words[1:]
    return Path(), words


@project.command("show")
@_PROJECT
@ONE_OF_SEVERAL
@_JSON
def show(project: Path, platform: "Platform | None", as_json: bool) -> None:
    """The chunks of PROJECT with the hashes of their inputs, and its combinations."""
    output = Output(as_json=as_json)
    loaded = _load(project, output)
    inputs = _inputs(loaded, platform)
    fields = {
        "platform": inputs["base"].platform,
        "base": inputs[loaded.base.name].hash,
        "chunks": [{"name": name, "hash": inputs[name].hash} for name in loaded.chunks],
        "combinations": [
            {"name": item.name, "chunks": list(item.chunks)} for item in loaded.combinations.values()
        ],
        "warnings": list(loaded.warnings),
    }
    rows = [("base", "base", inputs["base"].hash[:12])]
    rows += [("chunk", name, inputs[name].hash[:12]) for name in loaded.chunks]
    rows += [("image", item.name, " ".join(item.chunks)) for item in loaded.combinations.values()]
    output.result(fields, table(("", "name", "hash, or chunks"), rows))


@project.command("hash")
@_PROJECT
@click.argument("names", nargs=-1, metavar="[CHUNK...]")
@_TO
@ONE_OF_SEVERAL
@_HASH_COMPAT
@_JSON
def hash_command(
    project: Path,
    names: tuple[str, ...],
    to: str | None,
    platform: "Platform | None",
    hash_compat: str,
    as_json: bool,
) -> None:
    """The hash of each CHUNK's inputs, of all without a CHUNK: what tags in a repository are made of."""
    output = Output(as_json=as_json)
    loaded = _load(project, output)
    inputs = _inputs(loaded, platform)
    chosen = [name if name == "base" else loaded.chunk(name).name for name in names]
    if hash_compat != "native":
        if to is None:
            raise click.UsageError("dazzle's hashes know the registry: give --to REPO")
        inputs = run(_compat_inputs(project, to, hash_compat, platform))
    hashes = {name: inputs[name].hash for name in chosen or ["base", *loaded.chunks]}
    output.result({"hashes": hashes}, "\n".join(f"{value}  {name}" for name, value in hashes.items()))


@project.command("plan")
@_PROJECT
@_TO
@SEVERAL
@click.option("--reuse-from", metavar="REPO", help="Another repository to take chunks from.")
@click.option("--force", multiple=True, metavar="NAME", help="Build this chunk (or base) anew.")
@_HASH_COMPAT
@_JSON
def plan(
    project: Path,
    to: str | None,
    platforms: "tuple[Platform, ...]",
    reuse_from: str | None,
    force: tuple[str, ...],
    hash_compat: str,
    as_json: bool,
) -> None:
    """What `lapstrake build` would do now, and why; and what each order of layers would cost.

    Without --to nothing is known to be built.
    """
    from builder.app import chosen_platforms
    from builder.plan import chain_id_counts

    output = Output(as_json=as_json)
    loaded = _load(project, output)
    forced = loaded.units(force)
    counts = dict(chain_id_counts({name: item.chunks for name, item in loaded.combinations.items()}))
    if to is None:
        chosen = chosen_platforms(loaded, platforms)
        actions = [action for one in chosen for action in _unknown(loaded, one, forced)]
    else:
        planned, pinned = run(_plan(project, to, platforms, reuse_from, forced, hash_compat))
        actions, counts = list(planned), {**counts, **pinned}
    fields = {
        "actions": [{"platform": platform, **dataclasses.asdict(action)} for platform, action in actions],
        "chain_ids": counts,
    }
    rows = [(item.chunk, platform, item.action, item.reason) for platform, item in actions]
    output.result(fields, table(("chunk", "platform", "action", "why"), rows))
    if not as_json:
        text = ", ".join(f"{order} {count}" for order, count in counts.items())
        output.console.print(f"\nunpacked snapshots by order: {text} (this project: {loaded.options.order})")


@project.command("conflicts")
@_PROJECT
@click.option("--to", required=True, metavar="REPO", help="The repository that has the chunks.")
@click.option(
    "--combination", "names", multiple=True, metavar="NAME", help="Only this image; may be repeated."
)
@ONE_OF_SEVERAL
@_JSON
def conflicts(
    project: Path, to: str, names: tuple[str, ...], platform: "Platform | None", as_json: bool
) -> None:
    """The files that more than one chunk of an image writes or deletes, and what becomes of them.

    Read from tables of contents that lie beside the chunks; no layer is fetched. Nothing is changed.
    """
    output = Output(as_json=as_json)
    found = run(_shared_files(project, to, names, platform))
    rows = [
        (image, file.path, file.chunk, file.kind or "and", file.other, file.verdict)
        for image, files in found.items()
        for file in files
    ]
    fields = {image: [dataclasses.asdict(file) for file in files] for image, files in found.items()}
    output.result({"images": fields}, table(("image", "file", "chunk", "", "of chunk", "so it is"), rows))


async def _shared_files(
    root: Path, to: str, names: Sequence[str], platform: "Platform | None"
) -> "Mapping[str, Sequence[SharedFile]]":
    from builder.images import as_published, complete_names, wanted_images

    async with _benches(root, to, "native", [platform] if platform else [], None) as benches:
        if len(benches) > 1:
            offered = ", ".join(str(bench.platform) for bench in benches)
            raise click.UsageError(f"the project is built for {offered}; give --platform")
        bench = benches[0]
        wanted = wanted_images(bench.project, names or complete_names(bench.project))
        maker = bench.image_maker(None)
        parts = await maker.load(sorted({name for image in wanted for name in image.chunks}))
        return await maker.shared_files(await as_published(wanted, bench.store), parts)


def _made(changes: Sequence[str], *, as_json: bool) -> None:
    Output(as_json=as_json).result({"changed": list(changes)}, "\n".join(changes) or "nothing to do")


def _load(root: Path, output: Output) -> "Project":
    from builder.project_files import load_project

    loaded = load_project(root)
    for warning in loaded.warnings:
        output.say(f"warning: {warning}")
    return loaded


def _inputs(project: "Project", platform: "Platform | None") -> "Mapping[str, Inputs]":
    """For ``platform``, or for the only one that the project is built for."""
    from builder.app import chosen_platforms
    from builder.fingerprint import project_inputs

    chosen = chosen_platforms(project, [platform] if platform else [])
    if len(chosen) > 1:
        raise click.UsageError(f"the project is built for {', '.join(map(str, chosen))}; give --platform")
    return project_inputs(project, chosen[0])


def _unknown(
    project: "Project", platform: "Platform", force: frozenset[str]
) -> "Sequence[tuple[str, PlannedAction]]":
    """The plan for a repository of which nothing is known."""
    from builder.fingerprint import project_inputs
    from builder.plan import plan_chunk

    inputs = project_inputs(project, platform)
    return [
        (
            str(platform),
            plan_chunk(name, inputs[name], base_digest=None, published=None, forced=name in force),
        )
        for name in ("base", *project.chunks)
    ]


async def _plan(
    root: Path,
    to: str,
    platforms: "Sequence[Platform]",
    reuse_from: str | None,
    force: frozenset[str],
    hash_compat: str,
) -> "tuple[Sequence[tuple[str, PlannedAction]], Mapping[str, int]]":
    """The actions, and the number of snapshots with the orders that are published, where orders are kept."""
    from builder.build import plan_project
    from builder.images import as_published, complete_names, wanted_images
    from builder.plan import stack_count
    from builder.project import Order
    from ocikit.reference import RepositoryName

    elsewhere = None if reuse_from is None else RepositoryName.parse(reuse_from)
    found: list[tuple[str, PlannedAction]] = []
    pinned: dict[str, int] = {}
    async with _benches(root, to, hash_compat, platforms, elsewhere) as benches:
        for bench in benches:
            actions = await plan_project(bench.project, bench.inputs, bench.store, force=force)
            found += [(str(bench.platform), action) for action in actions]
        if bench.project.options.order is Order.POPULARITY:
            wanted = wanted_images(bench.project, complete_names(bench.project))
            published = await as_published(wanted, bench.store)
            pinned["as published"] = stack_count([image.chunks for image in published])
    return found, pinned


async def _compat_inputs(
    root: Path, to: str, hash_compat: str, platform: "Platform | None"
) -> "Mapping[str, Inputs]":
    async with _benches(root, to, hash_compat, [platform] if platform else [], None) as benches:
        return benches[0].inputs


def _benches(
    root: Path,
    to: str,
    hash_compat: str,
    platforms: "Sequence[Platform]",
    reuse_from: "RepositoryName | None",
) -> "AbstractAsyncContextManager[Sequence[Workbench]]":
    from builder.app import workbenches
    from builder.build import Reporter
    from builder.settings import BuilderSettings
    from ocikit.reference import RepositoryName
    from servicekit.settings import load

    reporter = Reporter(lambda _: None, lambda _name, _line: None)  # warnings were given when it was loaded
    settings = load(BuilderSettings, "builder")
    name = RepositoryName.parse(to)
    return workbenches(
        root,
        name,
        settings,
        reporter,
        platforms=platforms,
        reuse_from=reuse_from,
        hash_compat=hash_compat,
    )
