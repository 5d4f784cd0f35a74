"""The image half of the demo: build, combine, serve, pull with a client we did not write, compose."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.demo_run import DemoFailed, DemoRun, metric_total
from ocikit.descriptor import Descriptor
from ocikit.layout import LayoutRepository
from ocikit.manifest import Manifest, parse_manifest_or_index
from servicekit.units import format_size

_EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "workspace-images"
_UPSTREAM = "demo"
_ADDED_FILE = "home/workspace/WELCOME.txt"
_ADDED_TEXT = "This file was composed into the image when it was pulled.\n"


def run_images(run: DemoRun) -> None:
    """Adds a row per step. Raises DemoFailed."""
    project = _copy_example(run)
    images = run.work / "images"
    combinations = _build(run, project, images)
    first, second = _pair_with_overlap(images, combinations)
    specs = run.work / "image-specs"
    _write_spec(specs, second)
    with run.serving(
        "facade",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        f"{_UPSTREAM}=oci:{images}",
        "--image-specs",
        specs,
        "--cache-dir",
        run.work / "facade-cache",
    ) as origin:
        _pull_pair(run, origin, first, second)
        _pull_composed(run, origin)


def _copy_example(run: DemoRun) -> Path:
    run.check(
        holds=_EXAMPLE.is_dir(), otherwise=f"{_EXAMPLE} is missing; run the demo from a source checkout"
    )
    project = run.work / "project"
    shutil.copytree(_EXAMPLE, project, symlinks=True)
    return project


def _build(run: DemoRun, project: Path, images: Path) -> Sequence[str]:
    shown, _ = run.lapstrake("project", "show", project)
    combinations = [item["name"] for item in shown["combinations"]]
    chunks = [item["name"] for item in shown["chunks"]]
    _, seconds = run.lapstrake("build", project, "--to", f"oci:{images}")
    layers = {layer.digest: layer.size for name in combinations for layer in _layers(images, name)}
    run.add(
        "build",
        sum(layers.values()),
        seconds,
        f"1 base, {len(chunks)} chunks, tested; {len(combinations)} images from {len(layers)} layers",
    )
    plan, seconds = run.lapstrake("project", "plan", project, "--to", f"oci:{images}")
    again = [action for action in plan["actions"] if action["action"] != "reuse"]
    run.check(holds=not again, otherwise=f"a second build would build again: {again}")
    run.add("plan again", 0, seconds, f"all {len(plan['actions'])} reused, nothing to build")
    reuse, seconds = run.lapstrake("reuse", "report", *(f"oci:{images}:{name}" for name in combinations))
    run.add(
        "reuse report",
        reuse["physical_bytes"],
        seconds,
        f"{format_size(reuse['logical_bytes'])} of images stored once: {reuse['dedupe_ratio']:.2f} x",
    )
    return combinations


def _pair_with_overlap(images: Path, names: Sequence[str]) -> tuple[str, str]:
    """Two images, the second with layers that the first lacks, that share the most bytes."""
    layers = {name: {layer.digest: layer.size for layer in _layers(images, name)} for name in names}
    pairs = [
        (sum(layers[first][digest] for digest in layers[first].keys() & layers[second].keys()), first, second)
        for first in names
        for second in names
        if layers[second].keys() - layers[first].keys()
    ]
    _, first, second = max(pairs)
    return first, second


def _layers(images: Path, name: str) -> Sequence[Descriptor]:
    return _manifest(images, name).layers


def _manifest(layout: Path, name: str) -> Manifest:
    raw = LayoutRepository(layout).read_manifest(name)
    document = parse_manifest_or_index(raw)
    if not isinstance(document, Manifest):
        raise DemoFailed(f"oci:{layout}:{name} is an index, not an image")
    return document


def _write_spec(specs: Path, base: str) -> None:
    specs.mkdir()
    (specs / "welcome.txt").write_text(_ADDED_TEXT, encoding="utf-8")
    spec: Mapping[str, Any] = {
        "base": f"{_UPSTREAM}/workspace:{base}",
        "layers": [{"file": "welcome.txt", "at": f"/{_ADDED_FILE}"}],
        "env": {"WORKSPACE_ID": "demo"},
    }
    (specs / "demo.json").write_text(json.dumps(spec, indent=2), encoding="utf-8")


def _pull_pair(run: DemoRun, origin: str, first: str, second: str) -> None:
    images = run.work / "images"
    for step, name in (("pull, cold", first), ("pull again, warm", first), ("pull a second image", second)):
        before = _received(origin)
        target = run.work / "pulled" / step.replace(" ", "-").replace(",", "") / name
        seconds = _skopeo(run, f"{origin}/{_UPSTREAM}/workspace:{name}", target, name)
        fetched = _received(origin) - before
        layers = _layers(images, name)
        known = {layer.digest for layer in _layers(images, first)} if step != "pull, cold" else set()
        fresh = [layer for layer in layers if layer.digest not in known]
        limit = sum(layer.size for layer in fresh)
        run.check(
            holds=limit <= fetched <= limit + 64 * 1024,
            otherwise=f"{step}: {fetched} bytes came from upstream, {limit} bytes of layers were missing",
        )
        run.add(
            f"{step} ({name})",
            sum(layer.size for layer in layers),
            seconds,
            f"{len(fresh)} of {len(layers)} layers fetched, {len(layers) - len(fresh)} from the cache; "
            f"{fetched} bytes from upstream",
        )


def _received(origin: str) -> int:
    return int(metric_total(origin, "facade_received_bytes_total", {"source": "upstream"}))


def _skopeo(run: DemoRun, url: str, target: Path, tag: str) -> float:
    target.parent.mkdir(parents=True, exist_ok=True)
    reference = url.replace("http://", "docker://")
    _, seconds = run.command(
        "skopeo", "copy", "--quiet", "--src-tls-verify=false", reference, f"oci:{target}:{tag}"
    )
    return seconds


def _pull_composed(run: DemoRun, origin: str) -> None:
    target = run.work / "pulled" / "composed"
    seconds = _skopeo(run, f"{origin}/workspaces/demo:latest", target, "demo")
    root = run.work / "composed-root"
    root.mkdir()
    layers = _layers(target, "demo")
    for layer in layers:
        _unpack(target / "blobs" / layer.digest.algorithm / layer.digest.encoded, root)
    added = root / _ADDED_FILE
    run.check(
        holds=added.is_file() and added.read_text(encoding="utf-8") == _ADDED_TEXT,
        otherwise=f"the composed image was pulled, but {_ADDED_FILE} is not in it",
    )
    run.add(
        "pull a composed image",
        sum(layer.size for layer in layers),
        seconds,
        f"{len(layers)} layers, the last made on the fly; {_ADDED_FILE} is there",
    )


def _unpack(blob: Path, root: Path) -> None:
    """GNU tar sees the compression by itself; whiteouts do not matter for one added file."""
    subprocess.run(
        ["tar", "-x", "--exclude=.wh.*", "--exclude=dev/*", "-f", str(blob), "-C", str(root)], check=True
    )
