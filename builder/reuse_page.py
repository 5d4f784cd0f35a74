"""The reuse report as one HTML page: an image a row, layers to scale, shared ones in one colour; pure."""

import html
from collections.abc import Mapping, Sequence

from builder.reuse import ImageUse, LayerUse, refcounts, report
from ocikit.digest import Digest
from servicekit.units import format_size

_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #1d2530; }
h1 { font-size: 1.3rem; } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: middle; }
.bar { display: flex; height: 1.3rem; } .bar span { border-right: 1px solid #fff; min-width: 2px; }
.shared { background: #2f6f8f; } .own { background: #e0a458; } .key span { padding: 0 .6rem; color: #fff; }
""".strip()


def reuse_page(images: Sequence[ImageUse]) -> str:
    """A page without scripts and without anything fetched."""
    found, uses = report(images), refcounts(images)
    widest = max((sum(layer.size_bytes for layer in image.layers) for image in images), default=1) or 1
    rows = "\n".join(_row(image, uses, widest) for image in images)
    summary = (
        f"{found.images} images, {format_size(found.logical_bytes)} if nothing were shared, "
        f"{format_size(found.physical_bytes)} stored: {found.dedupe_ratio:.2f} to one"
    )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Layer reuse</title>\n'
        f"<style>{_STYLE}</style>\n<h1>Layer reuse</h1>\n<p>{html.escape(summary)}</p>\n"
        '<p class="key"><span class="shared">in several images</span> '
        '<span class="own">in one only</span></p>\n'
        f"<table>\n{rows}\n</table>\n</html>\n"
    )


def _row(image: ImageUse, uses: Mapping[Digest, int], widest: int) -> str:
    size = sum(layer.size_bytes for layer in image.layers)
    cells = "".join(
        f'<span class="{"shared" if uses[layer.digest] > 1 else "own"}" '
        f'style="flex: {max(layer.size_bytes, 1)}" title="{_title(layer, uses)}"></span>'
        for layer in image.layers
    )
    width = 100 * size / widest
    bar = f'<div class="bar" style="width: {width:.2f}%">{cells}</div>'
    return (
        f'<tr><th>{html.escape(image.name)}</th><td>{format_size(size)}</td><td width="100%">{bar}</td></tr>'
    )


def _title(layer: LayerUse, uses: Mapping[Digest, int]) -> str:
    name = layer.chunk or layer.digest.short
    return html.escape(f"{name}: {format_size(layer.size_bytes)}, in {uses[layer.digest]} images")
