"""``lapstrake limits``: I/O limits of a cgroup."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cli.output import Output, table
from content.io_limits.devices import Device, device_of
from content.io_limits.limiter import CgroupLimiter, IoLimits
from servicekit.units import parse_rate

_CGROUP = click.argument("cgroup", metavar="CGROUP", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def limits() -> None:
    """Apply, show and clear the I/O limits of a cgroup (v1 blkio or v2 io)."""


def _rate(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_rate(text) or None
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from None


@limits.command()
@_CGROUP
@click.option(
    "--path", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Limits the disk under DIR."
)
@click.option("--read", metavar="SIZE/s", help="Bytes read per second. [unlimited]")
@click.option("--write", metavar="SIZE/s", help="Bytes written per second. [unlimited]")
@click.option("--read-iops", type=click.IntRange(min=1), metavar="N", help="Reads per second. [unlimited]")
@click.option("--write-iops", type=click.IntRange(min=1), metavar="N", help="Writes per second. [unlimited]")
@_JSON
def apply(
    cgroup: Path,
    path: Path,
    read: str | None,
    write: str | None,
    read_iops: int | None,
    write_iops: int | None,
    as_json: bool,
) -> None:
    """Limit what the processes in CGROUP (a directory) may do to a disk, and check that it holds."""
    wanted = IoLimits(_rate("--read", read), _rate("--write", write), read_iops, write_iops)
    limiter = CgroupLimiter(cgroup)
    limiter.apply(device_of(path), wanted)
    _show(limiter.show(), Output(as_json=as_json))


@limits.command()
@_CGROUP
@_JSON
def show(cgroup: Path, as_json: bool) -> None:
    """What is in force. JSON: devices (device -> limits per second, null for unlimited)."""
    _show(CgroupLimiter(cgroup).show(), Output(as_json=as_json))


@limits.command()
@_CGROUP
@_JSON
def clear(cgroup: Path, as_json: bool) -> None:
    """Lift all limits; do this before ending processes that may wait for their I/O."""
    limiter = CgroupLimiter(cgroup)
    limiter.clear()
    _show(limiter.show(), Output(as_json=as_json))


def _show(found: Mapping[Device, IoLimits], output: Output) -> None:
    fields: dict[str, Any] = {str(device): dataclasses.asdict(value) for device, value in found.items()}
    rows = [
        (device, *("unlimited" if value is None else value for value in row.values()))
        for device, row in fields.items()
    ]
    columns = ("DEVICE", "READ B/s", "WRITE B/s", "READ IOPS", "WRITE IOPS")
    output.result({"devices": fields}, table(columns, rows))
