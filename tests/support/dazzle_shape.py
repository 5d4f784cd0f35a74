"""A project of the shape and size of the one large dazzle project: names and numbers are made up.

23 chunk directories, 10 of them with variants: 40 build units. 41 combinations of 39 of them, five of which
repeat another one; 25 test files, two of them for chunks that do not exist.
"""

import io
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from builder.engine import BuildRequest, BuiltImage, LogLine
from ocikit.digest import Digest
from ocikit.image_config import ImageConfig
from ocikit.layout import LayoutRepository
from ocikit.repository import load_image

VARIANTS: Mapping[str, Sequence[str]] = {
    "lang-dotnet": ("6", "8"),
    "lang-go": ("1.23", "1.24"),
    "lang-java": ("11", "17", "21"),
    "lang-node": ("16", "18", "20", "22", "24", "25"),
    "lang-php": ("8.2", "8.3"),
    "lang-python": ("3.10", "3.11", "3.12", "3.13"),
    "lang-ruby": ("3.1", "3.2", "3.3"),
    "lang-rust": ("1.80", "1.81"),
    "tool-postgres": ("15", "16"),
    "tool-yarn": ("1",),
}
PLAIN = (
    "dep-cacert-update", "lang-c", "lang-clojure", "lang-elixir", "lang-r", "tool-brew", "tool-chrome",
    "tool-docker", "tool-mongodb", "tool-mysql", "tool-nginx", "tool-tailscale", "tool-vnc",
)  # fmt: skip
EVERYWHERE = ("dep-cacert-update", "tool-docker", "tool-tailscale")


def combinations() -> Mapping[str, tuple[Sequence[str], Sequence[str]]]:
    """Name -> (refs, own chunks)."""
    made: dict[str, tuple[Sequence[str], Sequence[str]]] = {"base": ((), EVERYWHERE)}
    for directory, variants in VARIANTS.items():
        word = directory.partition("-")[2]
        for variant in variants:
            extra = ["tool-yarn:1"] if word == "node" else []
            made.setdefault(f"{word}-{variant}", (("base",), [f"{directory}:{variant}", *extra]))
    del made["yarn-1"], made["postgres-15"]
    for chunk in ("lang-c", "lang-clojure", "lang-elixir", "lang-r"):
        made[chunk.partition("-")[2]] = (("base",), [chunk])
    made["mongodb"] = (("node-24",), ["tool-mongodb"])
    made["mysql"] = (("node-24",), ["tool-mysql"])
    made["vnc"] = (("node-24",), ["tool-vnc", "tool-chrome"])
    languages = ["lang-go:1.24", "lang-java:21", "lang-python:3.13", "lang-ruby:3.3", "lang-rust:1.81"]
    tools = ["tool-brew", "tool-nginx", "lang-c", "lang-clojure", "tool-postgres:16"]
    made["full"] = (("node-24",), [*languages, *tools])
    made["full-vnc"] = (("full", "vnc"), [])
    made["full-mysql"] = (("full", "mysql"), ["lang-php:8.3"])
    for alias, of in {"node": "25", "node-lts": "24"}.items():
        made[alias] = (("base",), [f"lang-node:{of}", "tool-yarn:1"])
    made["python"] = (("base",), ["lang-python:3.13"])
    made["ruby-3"] = (("base",), ["lang-ruby:3.3"])
    made["dotnet"] = (("base",), ["lang-dotnet:8"])
    return made


def write_dazzle_shape(root: Path) -> Path:
    files = {
        "base/Dockerfile": "FROM scratch\n",
        "dazzle.yaml": _dazzle_yaml(),
        "tests/prologue.yaml": _tests("prologue", 1),
        "tests/lang-lost.yaml": _tests("lost", 1),
    }
    for directory in (*VARIANTS, *PLAIN):
        files[f"chunks/{directory}/Dockerfile"] = (
            f"ARG base\nFROM ${{base}}\nARG VERSION\nRUN {directory} $VERSION\n"
        )
        files[f"chunks/{directory}/install.sh"] = f"#!/bin/sh\necho {directory}\n"
        files[f"tests/{directory}.yaml"] = _tests(directory, 4 if directory in EVERYWHERE else 3)
        if directory in VARIANTS:
            lines = [
                f"  - name: {variant}\n    args:\n      VERSION: {variant}\n"
                for variant in VARIANTS[directory]
            ]
            files[f"chunks/{directory}/chunk.yaml"] = "variants:\n" + "".join(lines)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "chunks" / "_archived").mkdir()
    return root


def _dazzle_yaml() -> str:
    lines = ["combiner:", "  combinations:"]
    for name, (refs, chunks) in combinations().items():
        lines += [f"  - name: {name}"]
        lines += ["    ref:", *(f"    - {ref}" for ref in refs)] if refs else []
        lines += ["    chunks:", *(f"    - {chunk}" for chunk in chunks)] if chunks else []
    lines += [
        "  envvars:",
        "  - name: PATH",
        "    action: merge-unique",
        "  - name: HOME",
        "    action: use-last",
    ]
    return "\n".join([*lines, ""])


def _tests(name: str, count: int) -> str:
    return "".join(
        f'- desc: "{name} {at}"\n  entrypoint: [bash, -i, -c]\n  command: ["{name} --version"]\n'
        f"  assert:\n  - status == 0\n"
        f"  - stdout.indexOf(\"{at}\") != -1 || stderr.indexOf('{at}') != -1\n"
        for at in range(count)
    )


class TarEngine:
    """A deterministic engine: a chunk's layer is a real tar of one file, made of its name and arguments."""

    name = "tar"

    def __init__(
        self,
        *,
        layer_bytes: int = 2000,
        base_files: Mapping[str, bytes] = MappingProxyType({}),
        incompressible: bool = False,
    ) -> None:
        self.built: list[str] = []
        self._layer_bytes = layer_bytes
        self._base_files = base_files
        self._incompressible = incompressible

    async def build(self, request: BuildRequest, on_log: LogLine) -> BuiltImage:
        on_log(f"building {request.name}")
        self.built.append(request.name)
        tar = request.output / "layer.tar"
        line = f"{request.name} {sorted(request.args.items())}\n"
        data = (line.encode() * self._layer_bytes)[: self._layer_bytes]
        if self._incompressible:
            data = random.Random(line).randbytes(self._layer_bytes)
        with tarfile.open(tar, "w") as archive:
            member = tarfile.TarInfo(f"opt/{request.name.replace(':', '-')}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            for path, content in (self._base_files if request.base is None else {}).items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(content), 0o755
                archive.addfile(member, io.BytesIO(content))
        diff_id = Digest.of(tar.read_bytes())
        env = {"Env": ["PATH=/usr/bin:/bin", "HOME=/home/me"]}
        if request.base is None:
            return BuiltImage(ImageConfig(request.platform, (diff_id,), execution=env), (tar,))
        base = await load_image(LayoutRepository(request.base[0]), request.base[1])
        own = {"Env": [f"PATH=/opt/{request.name}:/usr/bin:/bin", "HOME=/home/me"]}
        config = ImageConfig(base.config.platform, (*base.config.diff_ids, diff_id), base.config.history, own)
        return BuiltImage(config, (*(Path("/nonexistent") for _ in base.config.diff_ids), tar))

    async def close(self) -> None:
        return
