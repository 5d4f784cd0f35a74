"""``lapstrake restore``."""

from pathlib import Path

import click

from cli import exit_codes
from cli.main import run
from cli.output import Output
from cli.store_options import StoreChoice, choice, shown, store_options
from content.progress import Progress
from content.restore import RestoreRequest, RestoreResult
from content.restore import restore as restore_snapshot
from servicekit.units import format_size


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--snapshot", "snapshot_id", metavar="ID", help="Which snapshot. [the latest]")
@click.option("--only", multiple=True, metavar="PATH", help="Only PATH and what is below it; repeatable.")
@click.option("--replace", is_flag=True, help="Put the restored tree in the place of what DIR holds.")
@store_options
def restore(
    directory: Path,
    snapshot_id: str | None,
    only: tuple[str, ...],
    replace: bool,
    workspace: str,
    store: str,
    s3_endpoint: str | None,
    limit_rate: str | None,
    as_json: bool,
) -> int:
    """Restore a snapshot of a workspace into DIR, which appears when all of it is there and checked.

    JSON: snapshot_id, entries, bytes, duration_s. Ends with status 3 when attributes could not be set.
    """
    output = Output(as_json=as_json)
    chosen = choice(workspace, store, s3_endpoint, limit_rate)
    request = RestoreRequest(directory.absolute(), chosen.workspace, snapshot_id, only, replace)
    result = run(_restore(request, chosen, output))
    for item in result.left_out:
        output.notes.print(f"left out: {item.path}: {item.reason}", markup=False)
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


async def _restore(request: RestoreRequest, chosen: StoreChoice, output: Output) -> RestoreResult:
    progress = Progress()
    with output.progress("restore") as update:
        async with chosen.open() as opened, shown(progress, update):
            return await restore_snapshot(request, opened, progress=progress)
