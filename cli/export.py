"""``lapstrake export``: an image as one file."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.main import run
from cli.output import Output, OutputFile
from cli.platform_option import ONE_OF_SEVERAL

if TYPE_CHECKING:
    from ocikit.descriptor import Platform

_FORMATS = ["oci-archive", "docker-archive", "rootfs-tar", "ext4", "erofs", "squashfs"]


@click.command()
@click.argument("ref")
@click.option("--format", "kind", type=click.Choice(_FORMATS), required=True, help="What to write.")
@click.option(
    "--output",
    "-o",
    "target",
    type=OutputFile(),
    required=True,
    help="The file.",
)
@click.option("--name", help="What importers call the image; default: REF's repository and tag.")
@ONE_OF_SEVERAL
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    ref: str, kind: str, target: Path, name: str | None, platform: "Platform | None", as_json: bool
) -> None:
    """Write the image REF as one file: archives to import, or file systems that a virtual machine boots.

    Whiteouts are applied, owners and extended attributes kept; the same image gives the same bytes.
    """
    from builder.export import ExportFormat, export_image
    from ocikit.opening import repositories
    from ocikit.reference import Reference
    from ocikit.repository import load_image

    wanted = Reference.parse(ref)
    named = name or (f"localhost/image:{wanted.reference}" if wanted.name.layout is not None else ref)

    async def work() -> None:
        async with repositories() as opener:
            repository = opener.open(wanted.name)
            image = await load_image(repository, wanted.reference, platform)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".lapstrake-export-") as scratch:
                await export_image(image, repository, named, ExportFormat(kind), target, Path(scratch))

    run(work())
    size = target.stat().st_size
    Output(as_json=as_json).result(
        {"output": str(target), "format": kind, "bytes": size}, f"{target}: {kind}, {size} bytes"
    )
