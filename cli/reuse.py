"""``lapstrake reuse``: how far images share their layers."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.main import run
from cli.output import Output, OutputFile, table
from cli.platform_option import ONE_OF_SEVERAL
from servicekit.units import format_size

if TYPE_CHECKING:
    from builder.reuse import ImageUse, ReuseReport
    from builder.reuse_diff import ImageDifference
    from ocikit.descriptor import Platform

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def reuse() -> None:
    """Show how far images share their layers, and what is lost where they do not."""


@reuse.command("report")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@ONE_OF_SEVERAL
@click.option("--matrix", is_flag=True, help="Also the bytes to pull each image where another is.")
@click.option(
    "--layers", "list_layers", is_flag=True, help="Also each distinct layer, and the chunk it is from."
)
@click.option("--versions", is_flag=True, help="Each REF is a version, oldest first: also churn per chunk.")
@click.option("--html", "page", type=OutputFile(), help="Write a page as well.")
@_JSON
def report_command(
    refs: tuple[str, ...],
    platform: "Platform | None",
    matrix: bool,
    list_layers: bool,
    versions: bool,
    page: Path | None,
    as_json: bool,
) -> None:
    """Bytes and layers shared by a set of images, from manifests and configs alone.

    REF is an image, or a whole repository (registry/repository or oci:DIR).
    """
    from builder.reuse import churn, image_costs, layer_counts, pull_matrix, refcount_histogram, report
    from builder.reuse_page import reuse_page

    output = Output(as_json=as_json)
    sets = run(_load([[ref] for ref in refs] if versions else [refs], platform))
    images = [image for one in sets for image in one]
    found, costs = report(images), image_costs(images)
    fields: dict[str, Any] = {
        **_fields(found),
        "histogram": [
            {"used_by_at_least": k, "layers": layers, "bytes": size}
            for k, layers, size in refcount_histogram(images)
        ],
        "costs": [dataclasses.asdict(cost) for cost in costs],
    }
    if matrix:
        fields["pull_bytes"] = pull_matrix(images)
    if list_layers:
        fields["distinct_layers"] = [
            {
                "digest": count.layer.digest,
                "diff_id": count.layer.diff_id,
                "chunk": count.layer.chunk,
                "input_hash": count.layer.input_hash,
                "bytes": count.layer.size_bytes,
                "content_bytes": count.layer.content_bytes,
                "images": count.images,
            }
            for count in layer_counts(images)
        ]
    if versions:
        fields["churn"] = [dataclasses.asdict(chunk) for chunk in churn(sets)]
    if page is not None:
        page.write_text(reuse_page(images), encoding="utf-8")
    output.result(fields, table(("", "", ""), _summary(found)))
    if not as_json:
        _tables(output, fields)


@reuse.command("diff")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@ONE_OF_SEVERAL
@_JSON
def diff_command(first: str, second: str, platform: "Platform | None", as_json: bool) -> None:
    """What pulling B costs on a node that has A, and why layers are not shared."""
    from builder.reuse_diff import Miss

    output = Output(as_json=as_json)
    found, changes = run(_difference(first, second, platform))
    misses = [
        {
            "chunk": miss.layer.chunk,
            "digest": miss.layer.digest,
            "bytes": miss.layer.size_bytes,
            "reason": miss.reason.name.lower(),
            "changes": list(changed),
        }
        for miss, changed in zip(found.misses, changes, strict=True)
    ]
    rows = [
        (
            miss.layer.chunk or "-",
            miss.layer.digest.short,
            format_size(miss.layer.size_bytes),
            f"changed: {'; '.join(changed)}" if miss.reason is Miss.CHANGED and changed else miss.reason,
        )
        for miss, changed in zip(found.misses, changes, strict=True)
    ]
    title = f"{format_size(found.warm_bytes)} to pull with A there, {format_size(found.cold_bytes)} without"
    output.result(
        {"cold_bytes": found.cold_bytes, "warm_bytes": found.warm_bytes, "misses": misses},
        table(("chunk", "layer", "size", "why it is not shared"), rows, title=title),
    )


async def _difference(
    first: str, second: str, platform: "Platform | None"
) -> "tuple[ImageDifference, Sequence[Sequence[str]]]":
    from builder.reuse_diff import diff
    from builder.reuse_loading import changed_inputs, load_images
    from ocikit.opening import repositories

    async with repositories() as opener:
        loaded = [await load_images(opener, [ref], platform) for ref in (first, second)]
        for ref, images in zip((first, second), loaded, strict=True):
            if len(images) != 1:
                raise click.UsageError(f"{ref} is a repository of {len(images)} images; name one, {ref}:TAG")
        (one,), (other,) = loaded
        found = diff(one, other)
        return found, await changed_inputs(opener, one, other, found.misses)


def _fields(found: "ReuseReport") -> Mapping[str, Any]:
    return {
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


def _summary(found: "ReuseReport") -> Sequence[Sequence[object]]:
    penalty = (
        "unknown: no uncompressed sizes" if found.order_penalty is None else f"{found.order_penalty:.2f} x"
    )
    snapshots = f"{found.distinct_chain_ids} snapshots of {found.distinct_diff_ids} contents"
    return [
        ("images", found.images, f"{found.layers} layers, {found.distinct_digests} distinct"),
        ("if nothing were shared", format_size(found.logical_bytes), ""),
        ("stored", format_size(found.physical_bytes), f"dedupe ratio {found.dedupe_ratio:.2f} x"),
        ("recompression waste", format_size(found.recompression_waste_bytes), "same content, other bytes"),
        ("order penalty", penalty, snapshots),
    ]


def _tables(output: Output, fields: Mapping[str, Any]) -> None:
    steps = [
        (row["used_by_at_least"], row["layers"], format_size(row["bytes"])) for row in fields["histogram"]
    ]
    output.console.print(table(("used by at least", "layers", "bytes"), steps, title="\n"))
    sizes = ("size_bytes", "marginal_bytes", "fair_bytes")
    costs = [(row["name"], *(format_size(row[key]) for key in sizes)) for row in fields["costs"]]
    output.console.print(table(("image", "cold pull", "used by no other", "fair share"), costs, title="\n"))
    if "pull_bytes" in fields:
        rows = [
            (before or "(empty node)", *(format_size(size) for size in row.values()))
            for before, row in fields["pull_bytes"].items()
        ]
        output.console.print(table(("node has", *fields["pull_bytes"][""]), rows, title="\n"))
    if "distinct_layers" in fields:
        rows = [
            (
                row["chunk"] or "-",
                row["input_hash"][:12] or "-",
                row["digest"].short,
                format_size(row["bytes"]),
                row["images"],
            )
            for row in fields["distinct_layers"]
        ]
        output.console.print(table(("chunk", "input hash", "layer", "bytes", "images"), rows, title="\n"))
    if "churn" in fields:
        rows = [
            (
                row["chunk"] or "-",
                format_size(row["new_bytes"]),
                format_size(row["total_bytes"]),
                row["survival"],
            )
            for row in fields["churn"]
        ]
        output.console.print(table(("chunk", "new", "of", "versions a layer lives"), rows, title="\n"))


async def _load(sets: Sequence[Sequence[str]], platform: "Platform | None") -> "Sequence[Sequence[ImageUse]]":
    from builder.reuse_loading import load_images
    from ocikit.opening import repositories

    async with repositories() as opener:
        return [await load_images(opener, refs, platform) for refs in sets]
