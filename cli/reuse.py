"""``lapstrake reuse``: how far images share their layers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.main import run
from cli.output import Output, table
from servicekit.units import format_size

if TYPE_CHECKING:
    from builder.reuse import ImageUse


@click.group()
def reuse() -> None:
    """Show how far images share their layers, and what is lost where they do not."""


@reuse.command("report")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option("--platform", metavar="OS/ARCH", help="Of images for several platforms, this one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report_command(refs: tuple[str, ...], platform: str | None, as_json: bool) -> None:
    """Bytes and layers shared by a set of images, from manifests and configs alone."""
    from builder.reuse import report

    output = Output(as_json=as_json)
    images = run(_load(refs, platform))
    found = report(images)
    fields: Mapping[str, Any] = {
        "images": found.images,
        "layers": found.layers,
        "logical_bytes": found.logical_bytes,
        "physical_bytes": found.physical_bytes,
        "dedupe_ratio": round(found.dedupe_ratio, 4),
        "recompression_waste_bytes": found.recompression_waste_bytes,
        "unpacked_bytes": found.unpacked_bytes,
        "order_penalty": None if found.order_penalty is None else round(found.order_penalty, 4),
        "distinct_digests": found.distinct_digests,
        "distinct_diff_ids": found.distinct_diff_ids,
        "distinct_chain_ids": found.distinct_chain_ids,
    }
    penalty = (
        "unknown (no uncompressed sizes)" if found.order_penalty is None else f"{found.order_penalty:.2f} x"
    )
    rows = [
        ("images", found.images, f"{found.layers} layers, {found.distinct_digests} distinct"),
        ("stored if nothing were shared", format_size(found.logical_bytes), ""),
        ("stored", format_size(found.physical_bytes), f"dedupe ratio {found.dedupe_ratio:.2f} x"),
        ("recompression waste", format_size(found.recompression_waste_bytes), "same content, other bytes"),
        (
            "order penalty",
            penalty,
            f"{found.distinct_chain_ids} snapshots of {found.distinct_diff_ids} contents",
        ),
    ]
    output.result(fields, table(("", "", ""), rows))


async def _load(refs: Sequence[str], platform: str | None) -> "Sequence[ImageUse]":
    from builder.reuse import image_use
    from ocikit.descriptor import Platform
    from ocikit.opening import repositories
    from ocikit.reference import Reference
    from ocikit.repository import load_image

    wanted = None if platform is None else Platform.parse(platform)
    names = [Reference.parse(ref) for ref in refs]
    async with repositories() as opener:
        return [
            image_use(str(name), await load_image(opener.open(name.name), name.reference, wanted))
            for name in names
        ]
