"""What ``lapstrake build`` and ``lapstrake combine`` say when they are done: tables, and one JSON object."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import Output, table
from servicekit.units import format_size

if TYPE_CHECKING:
    from builder.build import Done
    from builder.chunk_tests import TestResult
    from builder.image_sets import MadeImage
    from ocikit.descriptor import Platform


def say_built(output: Output, done: "Sequence[tuple[Platform, Done]]") -> None:
    rows = [
        (
            item.planned.chunk,
            platform,
            item.planned.action,
            item.planned.reason,
            format_size(item.size_bytes),
            f"{item.duration_s:.1f} s",
        )
        for platform, item in done
    ]
    if not output.as_json:
        output.console.print(table(("chunk", "platform", "action", "why", "layers", "time"), rows))


def document(
    to: str,
    done: "Sequence[tuple[Platform, Done]]",
    results: "Sequence[TestResult]",
    made: "Sequence[MadeImage]",
    duration_s: float,
) -> Mapping[str, Any]:
    everything = [*results, *(result for item in made for image in item.images for result in image.results)]
    return {
        "chunks": [
            {
                "chunk": item.planned.chunk,
                "platform": str(platform),
                "action": item.planned.action,
                "reason": item.planned.reason,
                "digest": item.image.descriptor.digest,
                "bytes": item.size_bytes,
                "duration_s": round(item.duration_s, 3),
            }
            for platform, item in done
        ],
        "combinations": [_image_fields(to, item) for item in made],
        "tests": {
            "run": sum(not result.is_cached and not result.not_run for result in everything),
            "cached": sum(result.is_cached for result in everything),
            "skipped": sum(bool(result.not_run) for result in everything),
        },
        "duration_s": round(duration_s, 3),
    }


def _image_fields(to: str, made: "MadeImage") -> Mapping[str, Any]:
    """``digest`` is what the name stands for; layers and bytes are those of all platforms together."""
    return {
        "name": made.name,
        "reference": f"{to}:{made.name}",
        "chunks": list(made.images[0].wanted.chunks),
        "digest": made.digest,
        "layers": sum(len(image.composed.layers) for image in made.images),
        "bytes": made.size_bytes,
        "is_new": made.is_new,
        "platforms": [
            {
                "platform": str(image.composed.platform),
                "digest": image.composed.manifest_descriptor.digest,
                "chunks": list(image.wanted.chunks),
                "layers": len(image.composed.layers),
                "bytes": image.size_bytes,
            }
            for image in made.images
        ],
    }


def images_table(fields: Mapping[str, Any]) -> Any:
    rows = [
        (
            item["reference"],
            ", ".join(platform["platform"] for platform in item["platforms"]),
            item["layers"],
            format_size(item["bytes"]),
            item["digest"].short,
            "new" if item["is_new"] else "unchanged",
        )
        for item in fields["combinations"]
    ]
    tests = fields["tests"]
    title = f"tests: {tests['run']} run, {tests['cached']} known to pass, {tests['skipped']} not run"
    return table(("image", "for", "layers", "size", "digest", ""), rows, title=f"\n{title}\n")
