"""The builder: combining, ordering, building in parallel, post-processing layers, reporting reuse."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from builder.app import workbenches
from builder.build import BuildOptions, Reporter
from builder.contents import ContentsCache
from builder.image_sets import name_images
from builder.images import complete_names, wanted_images
from builder.layer_publish import LayerRecords, publish_layer
from builder.plan import chain_id_counts
from builder.project import Compression
from builder.project_files import load_project
from builder.reuse import report
from builder.reuse_loading import load_images
from builder.settings import BuilderSettings
from ocikit.layout import LayoutRepository
from ocikit.opening import repositories
from ocikit.reference import RepositoryName
from tests.bench import scratch
from tests.bench.harness import Bench, Sides
from tests.support.builder_project import CHUNK, COMBINER, Lapstrake, write_project
from tests.support.dazzle_shape import TarEngine, write_dazzle_shape
from tests.support.docker_registry import docker_registry

_QUIET = Reporter(lambda _: None, lambda _name, _line: None)
_TREE_BYTES = 48 << 20
_IMAGES = 1000


async def _build(project: Path, to: str, state: Path, engine: TarEngine) -> None:
    settings = BuilderSettings(state_dir=state, jobs=4)
    async with workbenches(project, RepositoryName.parse(to), settings, _QUIET) as (bench,):
        builder = bench.builder(engine, BuildOptions(4, 0))
        base = await builder.base()
        await builder.chunks(list(bench.project.chunks), base.image)


async def _combine(project: Path, to: str, state: Path) -> int:
    async with workbenches(project, RepositoryName.parse(to), BuilderSettings(state_dir=state), _QUIET) as (
        bench,
    ):
        maker, wanted = bench.image_maker(None), wanted_images(bench.project, complete_names(bench.project))
        parts = await maker.load(sorted({name for image in wanted for name in image.chunks}))
        return len(await name_images(bench.store.target, [await maker.make(wanted, parts)]))


@contextlib.contextmanager
def _combine_all(directory: Path) -> Iterator[Sides]:
    project, rounds = write_dazzle_shape(directory / "project"), iter(range(1000))
    with docker_registry(directory / "registry") as registry:
        to = f"{registry.address}/images"
        asyncio.run(_build(project, to, directory / "state", TarEngine()))
        text = (project / "dazzle.yaml").read_text()

        def ours() -> None:
            # another order of layers than before: most images are written anew
            number = next(rounds)
            order = ("alphabetical", "popularity", "as-written")[number % 3]
            (project / "dazzle.yaml").write_text(f"{text}lapstrake: {{order: {order}}}\n")
            assert asyncio.run(_combine(project, to, directory / "state")) == 41

        yield Sides(ours, lambda: 5.0)


@contextlib.contextmanager
def _orders(directory: Path) -> Iterator[Sides]:
    project = load_project(write_dazzle_shape(directory / "project"))
    counts = chain_id_counts({name: item.chunks for name, item in project.combinations.items()})
    yield Sides(lambda: float(counts["popularity"]), lambda: float(counts["alphabetical"]))


@contextlib.contextmanager
def _variant(directory: Path) -> Iterator[Sides]:
    project, to = write_dazzle_shape(directory / "project"), f"oci:{directory / 'images'}"
    asyncio.run(_build(project, to, directory / "state", TarEngine()))
    path, versions = project / "chunks/lang-node/chunk.yaml", iter(range(1000))
    original = path.read_text()

    def ours() -> float:
        path.write_text(original.replace("VERSION: 22", f"VERSION: 22.{next(versions)}"))
        engine = TarEngine()
        asyncio.run(_build(project, to, directory / "state", engine))
        return float(len(engine.built))

    yield Sides(ours, lambda: 6.0)


@contextlib.contextmanager
def _jobs(directory: Path) -> Iterator[Sides]:
    work = f"{CHUNK}RUN sleep 3 && i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo $i > /%s\n"
    files = {f"chunks/{name}/Dockerfile": work % name for name in "abcd"}
    combiner = COMBINER.replace("chunks: [b, a]", "chunks: [a, b, c, d]")
    project = write_project(directory / "project", files, combiner=combiner)
    lapstrake, rounds = Lapstrake(directory / "state"), iter(range(1000))

    def build(jobs: int) -> Callable[[], float]:
        def timed() -> float:
            to = f"oci:{directory / str(next(rounds))}"
            assert lapstrake("build", project, "--to", to, "--chunk", "a", "--no-test").status == 0
            started_s = time.perf_counter()
            chunks = [word for name in "bcd" for word in ("--chunk", name)]
            force = ["--force", "a", "--chunk", "a"]
            assert (
                lapstrake("build", project, "--to", to, *chunks, *force, "--jobs", jobs, "--no-test").status
                == 0
            )
            return time.perf_counter() - started_s

        return timed

    yield Sides(build(1), build(2))


@contextlib.contextmanager
def _reproducible(directory: Path) -> Iterator[Sides]:
    rounds = iter(range(1000))

    def digests() -> list[str]:
        root = directory / str(next(rounds))
        project = write_project(root / "project")
        done = Lapstrake(root / "state")(
            "build", project, "--to", f"oci:{root / 'i'}", "--no-test", "--json"
        ).document
        shutil.rmtree(root / "state")
        return [item["digest"] for item in [*done["chunks"], *done["combinations"]]]

    first = digests()

    def ours() -> float:
        again = digests()
        return sum(one == other for one, other in zip(first, again, strict=True)) / len(first)

    yield Sides(ours, lambda: 1.0)


def _tree(directory: Path) -> Path:
    """Real files: the first of the environment's packages, in many directories."""
    root, size = directory / "tree", 0
    source = Path(sysconfig.get_paths()["purelib"])
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink() and size < _TREE_BYTES:
            target = root / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            size += path.stat().st_size
    return root


def process_layer(tar: Path, scratch: Path, compression: Compression) -> None:
    """What a built layer goes through, from the engine's tar to a blob in a layout."""
    scratch.mkdir(parents=True)
    (scratch / "contents").mkdir()
    repository = LayoutRepository(scratch / "images", create=True)
    published = publish_layer(
        tar,
        repository,
        LayerRecords(scratch),
        ContentsCache(scratch / "contents"),
        compression=compression,
        clamp_s=0,
        annotations={},
    )
    assert asyncio.run(published) is not None


@contextlib.contextmanager
def _memory_directory(fallback: Path) -> Iterator[Path]:
    """Where no disk is waited for: ours makes blobs durable and the peer does not, which is not compared."""
    if not scratch.MEMORY.is_dir():
        yield fallback
        return
    with scratch.directory(in_memory=True) as directory:
        yield directory


def _processing(
    compression: Compression, compressor: str
) -> Callable[[Path], "contextlib.AbstractContextManager[Sides]"]:
    @contextlib.contextmanager
    def sides(directory: Path) -> Iterator[Sides]:
        with _memory_directory(directory) as place:
            yield _layer_sides(place)

    def _layer_sides(directory: Path) -> Sides:
        tree, tar, rounds = _tree(directory), directory / "layer.tar", iter(range(1000))
        subprocess.run(["tar", "-cf", tar, "-C", tree, "."], check=True)
        size = tar.stat().st_size / (1 << 20)

        def ours() -> float:
            scratch = directory / f"scratch-{next(rounds)}"
            started_s = time.perf_counter()
            process_layer(tar, scratch, compression)
            elapsed_s = time.perf_counter() - started_s
            shutil.rmtree(scratch)
            return size / elapsed_s

        def peer() -> float:
            started_s = time.perf_counter()
            script = f'tar -cf - -C "$1" . | {compressor} > "$2"'
            subprocess.run(["sh", "-c", script, "sh", tree, directory / "peer"], check=True)
            return size / (time.perf_counter() - started_s)

        return Sides(ours, peer)

    return sides


@contextlib.contextmanager
def _memory(directory: Path) -> Iterator[Sides]:
    """The worse of both compressions."""
    tree, tar, rounds = _tree(directory), directory / "layer.tar", iter(range(1000))
    subprocess.run(["tar", "-cf", tar, "-C", tree, "."], check=True)

    def ours() -> float:
        peaks = []
        for kind in Compression:
            scratch = directory / f"scratch-{next(rounds)}"
            argv = [sys.executable, "-m", "tests.bench.bench_builder", tar, scratch, kind]
            done = subprocess.run(argv, check=True, capture_output=True, text=True)
            peaks.append(float(done.stdout))
        return max(peaks)

    yield Sides(ours, lambda: 150.0)


@contextlib.contextmanager
def _report(directory: Path) -> Iterator[Sides]:
    project, to = write_dazzle_shape(directory / "project"), f"oci:{directory / 'images'}"
    asyncio.run(_build(project, to, directory / "state", TarEngine()))
    asyncio.run(_combine(project, to, directory / "state"))
    repository = LayoutRepository(directory / "images")

    async def multiply() -> None:
        tags = [tag for tag in await repository.tags() if "--" not in tag]
        for number in range(_IMAGES - len(tags)):
            raw = await repository.manifest(tags[number % len(tags)])
            await repository.put_manifest(raw, f"copy-{number}")

    asyncio.run(multiply())

    async def load() -> int:
        async with repositories() as opener:
            return report(await load_images(opener, [to], None)).images

    def ours() -> None:
        assert asyncio.run(load()) == _IMAGES

    yield Sides(ours, lambda: 10.0)


def benches() -> list[Bench]:
    built = ("buildah",) if os.geteuid() == 0 else ("buildah as root",)
    gzip, zstd = _processing(Compression.GZIP, "gzip -6"), _processing(Compression.ZSTD, "zstd -3 -q")
    return [
        Bench("builder: combine 41 images", "5 s", "s", "<= 1", _combine_all, ("docker-registry",), 3),
        Bench("builder: snapshots, by popularity", "alphabetical", "", "<= 0.40", _orders, (), 1),
        Bench("builder: built for one variant of six", "dazzle: 6", "", "<= 0.17", _variant, (), 1),
        Bench("builder: --jobs 1 over --jobs 2", "--jobs 2", "s", ">= 1.7", _jobs, built, 2),
        Bench("builder: equal digests from nothing", "all", "", ">= 1", _reproducible, built, 1),
        Bench("builder: layer to gzip blob", "tar | gzip -6", "MiB/s", ">= 0.8", gzip, ("gzip",), 5),
        Bench("builder: layer to zstd blob", "tar | zstd -3", "MiB/s", ">= 0.8", zstd, ("zstd",), 9),
        Bench("builder: memory of a layer's way", "150 MiB", "MiB", "<= 1", _memory, (), 1),
        Bench("builder: reuse report, 1000 images", "10 s", "s", "<= 1", _report, (), 2),
    ]


def _peak_mib() -> float:
    """Of this program: ``ru_maxrss`` would count what its parent had when it forked."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    process_layer(Path(sys.argv[1]), Path(sys.argv[2]), Compression(sys.argv[3]))
    print(_peak_mib())
