"""``lapstrake backup``."""

from pathlib import Path

import click

from cli import exit_codes
from cli.main import run
from cli.output import Output
from cli.store_options import StoreChoice, choice, id_options, shown, store_options
from content.archive.id_map import IdMap
from content.backup import BackupRequest, BackupResult, back_up
from content.journal import JournalDirectory
from content.progress import Progress
from servicekit.units import format_size


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--exclude", "excludes", multiple=True, metavar="PATTERN", help="As in .gitignore; repeatable.")
@click.option(
    "--incarnation",
    type=click.IntRange(min=0),
    help="The workspace's start that DIR belongs to. [the latest]",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="LAPSTRAKE_CONTENT_STATE_DIR",
    default=Path("~/.cache/lapstrake/content").expanduser(),
    help="Where it is noted how far an upload is. [~/.cache/lapstrake/content]",
)
@id_options
@store_options
def backup(
    directory: Path,
    excludes: tuple[str, ...],
    incarnation: int | None,
    state_dir: Path,
    uid_map: tuple[str, ...],
    gid_map: tuple[str, ...],
    workspace: str,
    store: str,
    s3_endpoint: str | None,
    limit_rate: str | None,
    as_json: bool,
) -> int:
    """Back up DIR as a snapshot of a workspace; only what changed since the last one is sent.

    The snapshot is one plain tar, which any tar reads. Run again after an interruption, it sends only what
    the store does not have yet. Ends with status 3 when something could not be read; excluded files and
    sockets are listed too, but are no failure. JSON: snapshot_id, entries, tar_bytes, sent_bytes,
    copied_bytes, resumed_bytes, files_read, left_out (list of {path, reason}), duration_s, note.
    """
    output = Output(as_json=as_json)
    chosen = choice(workspace, store, s3_endpoint, limit_rate)
    request = BackupRequest(
        directory.absolute(), chosen.workspace, excludes, incarnation, IdMap.parse(uid_map, gid_map)
    )
    result = run(_back_up(request, chosen, JournalDirectory(state_dir.absolute()), output))
    _show(result, output)
    incomplete = any(not item.expected for item in result.left_out)
    return exit_codes.INCOMPLETE if incomplete else exit_codes.OK


async def _back_up(
    request: BackupRequest, chosen: StoreChoice, journals: JournalDirectory, output: Output
) -> BackupResult:
    progress = Progress()
    with output.progress("backup") as update:
        async with chosen.open() as opened, shown(progress, update):
            return await back_up(request, opened, progress=progress, journals=journals)


def _show(result: BackupResult, output: Output) -> None:
    snapshot = result.snapshot
    fields = {
        "snapshot_id": snapshot.id,
        "entries": snapshot.entries,
        "tar_bytes": snapshot.tar_bytes,
        "sent_bytes": result.sent_bytes,
        "copied_bytes": result.copied_bytes,
        "resumed_bytes": result.resumed_bytes,
        "files_read": result.files_read,
        "left_out": [{"path": item.path, "reason": item.reason} for item in result.left_out],
        "duration_s": round(result.duration_s, 3),
        "note": result.note,
    }
    for item in result.left_out:
        output.say(f"left out: {item.path}: {item.reason}")
    if result.note:
        output.say(result.note)
    if result.resumed_bytes:
        output.say(f"continued an interrupted upload: {format_size(result.resumed_bytes)} were there")
    output.result(
        fields,
        f"snapshot {snapshot.id}: {snapshot.entries} entries, {format_size(snapshot.tar_bytes)}; "
        f"{format_size(result.sent_bytes)} sent, {format_size(result.copied_bytes)} copied by the store, "
        f"{result.files_read} files read, {result.duration_s:.1f} s",
    )
