"""``lapstrake snapshots``: list, show, verify, prune."""

import dataclasses
import stat as stat_module
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from cli import exit_codes
from cli.main import run
from cli.output import Output, table
from cli.store_options import StoreChoice, choice, store_options
from content import sidecar
from content.archive.index import Entry, IndexReader
from content.catalog import Catalog
from content.maintenance import Swept, sweep
from content.maintenance import prune as prune_snapshots
from content.retention import KeepRules, Verdict
from content.snapshot import Snapshot
from content.verify import VerifyResult
from content.verify import verify as verify_snapshot
from servicekit.units import format_size


@click.group()
def snapshots() -> None:
    """List, show, verify and prune snapshots of a workspace."""


def _fields(snapshot: Snapshot) -> dict[str, Any]:
    return dataclasses.asdict(snapshot)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


@snapshots.command("list")
@store_options
def list_(workspace: str, store: str, s3_endpoint: str | None, limit_rate: str | None, as_json: bool) -> None:
    """Which snapshots there are, oldest first. JSON: workspace, incarnation, snapshots."""
    chosen = choice(workspace, store, s3_endpoint, limit_rate)

    async def load() -> Any:
        async with chosen.open() as opened:
            return (await Catalog(opened, chosen.workspace).load()).pointer

    pointer = run(load())
    rows = [
        (
            s.id,
            _when(s.created_s),
            s.entries,
            format_size(s.tar_bytes),
            format_size(s.copied_bytes),
            s.left_out,
        )
        for s in pointer.snapshots
    ]
    Output(as_json=as_json).result(
        {
            "workspace": workspace,
            "incarnation": pointer.incarnation,
            "snapshots": [_fields(snapshot) for snapshot in pointer.snapshots],
        },
        table(("SNAPSHOT", "CREATED (UTC)", "ENTRIES", "SIZE", "COPIED", "LEFT OUT"), rows),
    )


@snapshots.command()
@click.argument("snapshot_id", metavar="[ID]", required=False)
@store_options
def show(
    snapshot_id: str | None,
    workspace: str,
    store: str,
    s3_endpoint: str | None,
    limit_rate: str | None,
    as_json: bool,
) -> None:
    """What a snapshot holds (the latest, without ID), read from its index alone.

    JSON: snapshot and entries (list of {path, type, mode, uid, gid, size, mtime_ns, link}).
    """
    chosen = choice(workspace, store, s3_endpoint, limit_rate)
    with tempfile.TemporaryFile() as file:
        snapshot = run(_fetch_index(chosen, snapshot_id, file))
        entries = IndexReader(file).entries()
        if as_json:
            Output(as_json=True).result(
                {"snapshot": _fields(snapshot), "entries": list(map(_entry_fields, entries))}
            )
            return
        for line in _listing(entries):
            click.echo(line)


async def _fetch_index(chosen: StoreChoice, snapshot_id: str | None, file: Any) -> Snapshot:
    async with chosen.open() as opened:
        snapshot = await Catalog(opened, chosen.workspace).snapshot(snapshot_id)
        await sidecar.fetch_or_rebuild(opened, snapshot, file)
        return snapshot


def _entry_fields(entry: Entry) -> dict[str, Any]:
    names = ("path", "type", "mode", "uid", "gid", "size", "mtime_ns", "link")
    return {name: getattr(entry, name) for name in names}


def _listing(entries: Iterator[Entry]) -> Iterator[str]:
    kinds = {"f": "-"}
    for entry in entries:
        mode = stat_module.filemode(entry.mode).replace("?", "-", 1)[1:]
        when = _when(entry.mtime_ns // 1_000_000_000)
        link = f" -> {entry.link}" if entry.link else ""
        path = (entry.path + link).encode(errors="surrogateescape").decode(errors="backslashreplace")
        kind = kinds.get(entry.type, entry.type)
        yield f"{kind}{mode} {entry.uid}/{entry.gid} {entry.size:>12} {when} {path}"


@snapshots.command()
@click.argument("snapshot_id", metavar="[ID]", required=False)
@click.option("--all", "every", is_flag=True, help="Every snapshot, not the latest only.")
@click.option(
    "--sample", type=click.FloatRange(0, 100, min_open=True), metavar="PERCENT", help="Read only a share."
)
@store_options
def verify(
    snapshot_id: str | None,
    every: bool,
    sample: float | None,
    workspace: str,
    store: str,
    s3_endpoint: str | None,
    limit_rate: str | None,
    as_json: bool,
) -> int:
    """Read a snapshot back and prove every member (the latest snapshot, without ID).

    Ends with status 6 when something is damaged. JSON: snapshots (list of {snapshot_id, entries,
    bytes_read, bytes_total, problems}).
    """
    chosen = choice(workspace, store, s3_endpoint, limit_rate)
    output = Output(as_json=as_json)

    async def work() -> list[VerifyResult]:
        async with chosen.open() as opened:
            catalog = Catalog(opened, chosen.workspace)
            wanted = [await catalog.snapshot(snapshot_id)]
            if every:
                wanted = list((await catalog.load()).pointer.snapshots)
            return [await verify_snapshot(opened, one, sample=(sample or 100) / 100) for one in wanted]

    results = run(work())
    lines = [
        f"{r.snapshot_id}: "
        + ("; ".join(r.problems) if r.problems else f"good, {format_size(r.bytes_read)} read")
        for r in results
    ]
    output.result({"snapshots": [dataclasses.asdict(result) for result in results]}, "\n".join(lines))
    return exit_codes.CORRUPT if any(result.problems for result in results) else exit_codes.OK


@snapshots.command("rebuild-index")
@click.argument("snapshot_id", metavar="[ID]", required=False)
@store_options
def rebuild_index(
    snapshot_id: str | None,
    workspace: str,
    store: str,
    s3_endpoint: str | None,
    limit_rate: str | None,
    as_json: bool,
) -> None:
    """Put back the index of a snapshot that was lost or damaged, by reading its tar (the latest, without ID).

    Does nothing when the index is good. JSON: snapshot_id, rebuilt, index_bytes.
    """
    chosen = choice(workspace, store, s3_endpoint, limit_rate)

    async def work() -> tuple[Snapshot, Snapshot]:
        async with chosen.open() as opened:
            catalog = Catalog(opened, chosen.workspace)
            before = await catalog.snapshot(snapshot_id)
            with tempfile.TemporaryFile() as file:
                return before, await sidecar.repair(opened, catalog, before, file)

    before, after = run(work())
    rebuilt = before != after
    Output(as_json=as_json).result(
        {"snapshot_id": after.id, "rebuilt": rebuilt, "index_bytes": after.index_bytes},
        f"{after.id}: " + ("index rebuilt from the tar" if rebuilt else "the index is good"),
    )


@snapshots.command()
@click.option("--keep-last", type=click.IntRange(min=0), default=0, metavar="N", help="The N newest.")
@click.option(
    "--keep-hourly", type=click.IntRange(min=0), default=0, metavar="N", help="One of each of N hours."
)
@click.option(
    "--keep-daily", type=click.IntRange(min=0), default=0, metavar="N", help="One of each of N days."
)
@click.option(
    "--keep-weekly", type=click.IntRange(min=0), default=0, metavar="N", help="One of each of N weeks."
)
@click.option(
    "--keep-monthly", type=click.IntRange(min=0), default=0, metavar="N", help="One of each of N months."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@store_options
def prune(
    keep_last: int,
    keep_hourly: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
    dry_run: bool,
    workspace: str,
    store: str,
    s3_endpoint: str | None,
    limit_rate: str | None,
    as_json: bool,
) -> None:
    """Delete the snapshots that no --keep rule wants, and leftovers of backups that never finished.

    The latest snapshot is always kept, and the latest good one; without a rule all are. JSON: kept, deleted
    (lists of ids), swept_objects, swept_uploads, dry_run.
    """
    chosen = choice(workspace, store, s3_endpoint, limit_rate)
    rules = KeepRules(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly)

    async def work() -> tuple[list[Verdict], Swept]:
        async with chosen.open() as opened:
            catalog = Catalog(opened, chosen.workspace)
            verdicts = await prune_snapshots(opened, catalog, rules, dry_run=dry_run)
            return verdicts, await sweep(opened, catalog, dry_run=dry_run)

    verdicts, swept = run(work())
    rows = [(v.snapshot.id, "keep" if v.reasons else "delete", ", ".join(v.reasons)) for v in verdicts]
    Output(as_json=as_json).result(
        {
            "kept": [v.snapshot.id for v in verdicts if v.reasons],
            "deleted": [v.snapshot.id for v in verdicts if not v.reasons],
            "swept_objects": list(swept.objects),
            "swept_uploads": list(swept.uploads),
            "dry_run": dry_run,
        },
        table(("SNAPSHOT", "VERDICT", "WHY"), rows),
    )
