"""What backup, restore and snapshots have in common: which workspace, in which store, how fast."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from cli.output import ProgressUpdate
from content.keys import Workspace
from content.objects.base import MultipartStore
from content.objects.opening import StoreOptions, open_store
from content.progress import Progress
from servicekit.throttle import Throttle
from servicekit.units import parse_rate

F = TypeVar("F", bound=Callable[..., Any])
_REFRESH_S = 0.2


@dataclass(frozen=True, slots=True)
class StoreChoice:
    """The options as given."""

    workspace: Workspace
    store: str
    s3_endpoint: str | None
    limit_bytes_s: int | None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[MultipartStore]:
        """The store, probed, with ``--limit-rate`` in force both ways."""
        limit = Throttle(self.limit_bytes_s)
        options = StoreOptions(s3_endpoint=self.s3_endpoint, sent=limit, received=limit)
        async with open_store(self.store, options) as store:
            yield store


def store_options(command: F, *, required: bool = True) -> F:
    """Adds --workspace, --store, --s3-endpoint, --limit-rate and --json."""
    options = [
        click.option("--workspace", required=required, metavar="OWNER/ID", help="Whose snapshots."),
        click.option(
            "--store", required=required, metavar="STORE", help="s3://bucket/prefix or file:///dir."
        ),
        click.option("--s3-endpoint", metavar="URL", help="An S3 server that is not Amazon's."),
        click.option("--limit-rate", metavar="SIZE/s", help="Bytes per second to and from the store."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def id_options(command: F) -> F:
    """Adds --uid-map and --gid-map, for `IdMap.parse`."""
    uids = "COUNT users from HOST on this machine are those from ARCHIVE in the snapshot; repeatable."
    gids = "The same for groups. [as --uid-map]"
    command = click.option("--gid-map", multiple=True, metavar="ARCHIVE:HOST:COUNT", help=gids)(command)
    return click.option("--uid-map", multiple=True, metavar="ARCHIVE:HOST:COUNT", help=uids)(command)


def choice(workspace: str, store: str, s3_endpoint: str | None, limit_rate: str | None) -> StoreChoice:
    """Raises InvalidWorkspace; a usage error for a rate that is none."""
    try:
        limit = parse_rate(limit_rate) if limit_rate is not None else None
    except ValueError as error:
        raise click.UsageError(f"--limit-rate: {error}") from None
    if limit == 0:
        raise click.UsageError("--limit-rate: a rate of 0 would never end")
    return StoreChoice(Workspace.parse(workspace), store, s3_endpoint, limit)


@contextlib.asynccontextmanager
async def shown(progress: Progress, update: ProgressUpdate) -> AsyncIterator[None]:
    """Redraws the bar while the block runs."""

    async def redraw() -> None:
        while True:
            update(progress.bytes, progress.total_bytes)
            await asyncio.sleep(_REFRESH_S)

    drawing = asyncio.create_task(redraw())
    try:
        yield
    finally:
        drawing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await drawing
