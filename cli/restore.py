"""``lapstrake restore``."""

import functools
import time
from pathlib import Path

import click

from cli import exit_codes
from cli.main import run
from cli.output import Output
from cli.store_options import StoreChoice, choice, id_options, shown, store_options
from content.archive.id_map import IdMap
from content.foreign import unpack_file
from content.progress import Progress
from content.restore import RestoreRequest, RestoreResult
from content.restore import restore as restore_snapshot
from servicekit.units import format_size

optional_store_options = functools.partial(store_options, required=False)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--snapshot", "snapshot_id", metavar="ID", help="Which snapshot. [the latest]")
@click.option("--only", multiple=True, metavar="PATH", help="Only PATH and what is below it; repeatable.")
@click.option("--replace", is_flag=True, help="Put the restored tree in the place of what DIR holds.")
@click.option(
    "--tar",
    "tar_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Any tar instead; - is standard input.",
)
@id_options
@optional_store_options
def restore(
    directory: Path,
    snapshot_id: str | None,
    only: tuple[str, ...],
    replace: bool,
    tar_file: Path | None,
    uid_map: tuple[str, ...],
    gid_map: tuple[str, ...],
    workspace: str | None,
    store: str | None,
    s3_endpoint: str | None,
    limit_rate: str | None,
    as_json: bool,
) -> int:
    """Restore a snapshot of a workspace into DIR, which appears when all of it is there and checked.

    JSON: snapshot_id, entries, bytes, duration_s. Ends with status 3 when attributes could not be set.
    """
    output, ids = Output(as_json=as_json), IdMap.parse(uid_map, gid_map)
    if tar_file is not None:
        return _unpack(tar_file, directory, output, replace=replace, ids=ids)
    if workspace is None or store is None:
        raise click.UsageError("say --workspace and --store, or --tar")
    chosen = choice(workspace, store, s3_endpoint, limit_rate)
    request = RestoreRequest(directory.absolute(), chosen.workspace, snapshot_id, only, replace, ids)
    result = run(_restore(request, chosen, output))
    for item in result.left_out:
        output.notes.print(f"left out: {item.path}: {item.reason}", markup=False)
    if result.rebuilt_index:
        output.notes.print("the index was lost: read from the tar; see `lapstrake snapshots rebuild-index`")
    output.result(
        {
            "snapshot_id": result.snapshot.id,
            "entries": result.entries,
            "bytes": result.bytes,
            "duration_s": round(result.duration_s, 3),
        },
        f"snapshot {result.snapshot.id}: {result.entries} entries, {format_size(result.bytes)} to "
        f"{directory}, {result.duration_s:.1f} s",
    )
    return exit_codes.INCOMPLETE if result.left_out else exit_codes.OK


def _unpack(tar_file: Path, directory: Path, output: Output, *, replace: bool, ids: IdMap | None) -> int:
    started_s = time.monotonic()
    unpacked = run(unpack_file(tar_file, directory.absolute(), replace=replace, ids=ids))
    for item in unpacked.left_out:
        output.notes.print(f"left out: {item.path}: {item.reason}", markup=False)
    duration_s = round(time.monotonic() - started_s, 3)
    fields = {
        "snapshot_id": None,
        "entries": unpacked.entries,
        "bytes": unpacked.bytes,
        "duration_s": duration_s,
    }
    output.result(fields, f"{unpacked.entries} entries, {format_size(unpacked.bytes)} to {directory}")
    return exit_codes.INCOMPLETE if unpacked.left_out else exit_codes.OK


async def _restore(request: RestoreRequest, chosen: StoreChoice, output: Output) -> RestoreResult:
    progress = Progress()
    with output.progress("restore") as update:
        async with chosen.open() as opened, shown(progress, update):
            return await restore_snapshot(request, opened, progress=progress)
