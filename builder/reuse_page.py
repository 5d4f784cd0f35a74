"""The reuse report as one HTML page: an image a row, layers to scale, shared ones in one colour; pure.

No script, and nothing fetched: the page can be an artifact of a CI run. Pointing at a layer lights it up in
every image it is in.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from posixpath import commonprefix

from builder.reuse import (
    ImageCost,
    ImageUse,
    LayerUse,
    image_costs,
    layer_counts,
    refcount_histogram,
    refcounts,
    report,
)
from ocikit.digest import Digest
from servicekit.units import format_size

_TICKS = 4
_TOP = 15
_STYLE = """
:root { --shared: #2f6f8f; --own: #c77d1e; --quiet: #5b6672; color-scheme: light; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1.5rem;
  color: #1d2530; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
.quiet { color: var(--quiet); }
.figures { display: flex; flex-wrap: wrap; gap: .6rem 2.4rem; margin: 1.1rem 0; }
.figures b { display: block; font-size: 1.35rem; font-weight: 600; }
table { border-collapse: collapse; } .images { width: 100%; }
td, th { padding: .16rem .9rem .16rem 0; text-align: left; white-space: nowrap; font-weight: 400; }
thead th { color: var(--quiet); font-size: .85rem; vertical-align: bottom; } .number { text-align: right; }
.wide { width: 100%; max-width: 0; padding-right: 0; } .bar, .axis { display: flex; position: relative; }
.bar { height: 1.35rem; } .bar span { box-shadow: inset -1px 0 #fff; color: #fff; font-size: .72rem;
  line-height: 1.35rem; min-width: 1px; overflow: hidden; text-overflow: ellipsis; }
.bar span::before { content: attr(data-chunk); padding-left: .25rem; }
.shared { background: var(--shared); } .own { background: var(--own); }
.axis { justify-content: space-between; font-size: .78rem; } .axis i { font-style: normal; }
.key span { border-radius: 2px; color: #fff; margin-right: .5rem; padding: .1rem .6rem; }
.meter { background: var(--shared); height: .8rem; min-width: 1px; }
""".strip()


def reuse_page(images: Sequence[ImageUse]) -> str:
    """Images of any names; what they hold is escaped."""
    uses = refcounts(images)
    marks = {digest: f"l{at}" for at, digest in enumerate(uses)}
    shared = [marks[digest] for digest, count in uses.items() if count > 1]
    lit = "\n".join(f"body:has(.{mark}:hover) .{mark} {{ filter: brightness(1.45); }}" for mark in shared)
    prefix = _common_prefix([image.name for image in images])
    return "\n".join([
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Layer reuse</title>',
        f"<style>{_STYLE}\n{lit}</style>",
        f'<h1>Layer reuse</h1><div class="quiet">{html.escape(prefix)}</div>',
        _figures(images), _image_table(images, uses, marks, prefix),
        "<h2>How many images use a layer</h2>", _histogram(images),
        "<h2>The largest layers</h2>", _largest(images), "</html>\n",
    ])  # fmt: skip


def _common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a separator; empty for one image alone."""
    common = commonprefix(list(names)) if len(names) > 1 else ""
    return common[: max(common.rfind(mark) for mark in ":/") + 1]


def _figures(images: Sequence[ImageUse]) -> str:
    found = report(images)
    penalty = "unknown" if found.order_penalty is None else f"{found.order_penalty:.2f} x"
    figures = {
        "images": str(found.images),
        "if nothing were shared": format_size(found.logical_bytes),
        "stored": format_size(found.physical_bytes),
        "dedupe ratio": f"{found.dedupe_ratio:.2f} x",
        "recompression waste": format_size(found.recompression_waste_bytes),
        "order penalty": penalty,
        "snapshots": f"{found.distinct_chain_ids} of {found.distinct_diff_ids} contents",
    }
    cells = "".join(
        f'<div><b>{value}</b><span class="quiet">{name}</span></div>' for name, value in figures.items()
    )
    return f'<div class="figures">{cells}</div>'


def _image_table(
    images: Sequence[ImageUse], uses: Mapping[Digest, int], marks: Mapping[Digest, str], prefix: str
) -> str:
    costs = image_costs(images)
    widest = max((sum(layer.size_bytes for layer in image.layers) for image in images), default=0) or 1
    ticks = "".join(f"<i>{format_size(widest * at // _TICKS)}</i>" for at in range(_TICKS + 1))
    rows = "\n".join(
        _row(image.name.removeprefix(prefix), cost, _bar(image, uses, marks, widest))
        for image, cost in zip(images, costs, strict=True)
    )
    heads = "".join(f'<th class="number">{name}</th>' for name in ("cold pull", "only here", "fair share"))
    return (
        '<p class="key"><span class="shared">in several images</span><span class="own">in one only</span>'
        '<em class="quiet">point at a layer to see where else it is</em></p>\n'
        f'<table class="images"><thead><tr><th>image</th>{heads}'
        f'<th class="wide"><div class="axis">{ticks}</div></th></tr></thead>\n{rows}\n</table>'
    )


def _row(name: str, cost: ImageCost, bar: str) -> str:
    sizes = (cost.size_bytes, cost.marginal_bytes, round(cost.fair_bytes))
    cells = "".join(f'<td class="number">{format_size(size)}</td>' for size in sizes)
    return f'<tr><th>{html.escape(name)}</th>{cells}<td class="wide">{bar}</td></tr>'


def _bar(image: ImageUse, uses: Mapping[Digest, int], marks: Mapping[Digest, str], widest: int) -> str:
    cells = "".join(
        f'<span class="{"shared" if uses[layer.digest] > 1 else "own"} {marks[layer.digest]}" '
        f'style="width: {100 * layer.size_bytes / widest:.4f}%" data-chunk="{html.escape(layer.chunk)}" '
        f'title="{html.escape(_title(layer, uses))}"></span>'
        for layer in image.layers
    )
    return f'<div class="bar">{cells}</div>'


def _title(layer: LayerUse, uses: Mapping[Digest, int]) -> str:
    name = f"{layer.chunk}, {layer.digest.short}" if layer.chunk else layer.digest.short
    return f"{name}: {format_size(layer.size_bytes)}, in {_images(uses[layer.digest])}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _histogram(images: Sequence[ImageUse]) -> str:
    steps = refcount_histogram(images)
    most = max((size for _, _, size in steps), default=0) or 1
    return _table(
        ("used by at least", "layers", "bytes", ""),
        (
            (_images(step), str(layers), format_size(size), _meter(size / most))
            for step, layers, size in steps
        ),
    )


def _meter(part: float) -> str:
    return f'<div class="meter" style="width: {20 * part:.2f}rem"></div>'


def _largest(images: Sequence[ImageUse]) -> str:
    """By bytes stored; the last column is what sharing saves."""
    return _table(
        ("chunk", "layer", "bytes", "in", "saved by sharing"),
        (
            (
                html.escape(layer.chunk or "-"),
                layer.digest.short,
                format_size(layer.size_bytes),
                _images(count.images),
                format_size(layer.size_bytes * (count.images - 1)),
            )
            for count in layer_counts(images)[:_TOP]
            for layer in [count.layer]
        ),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n{body}\n</table>"
