"""Image specs: what a workspace's image is made of, as JSON.

::

    {"base": REF,                              # <upstream>/repository:tag, ...@sha256:..., oci:DIR:tag
     "layers": [REF,                           # another image's layers, without those of the base
                {"image": REF, "skip_layers": 1},
                {"file": PATH, "at": "/opt/tool"},     # file or directory; a tar alone is the layer
                {"files": {"/etc/motd": {"text": "hi", "mode": "0644"}}},
                {"tar": URL, "digest": "sha256:...", "diff_id": "sha256:...", "media_type": "..."},
                {"snapshot": "owner/workspace", "id": "...", "at": "/workspace"}],
     "chunks": [REF, ...], "chunk_env": {"PATH": "merge-unique"},   # on the base, as the builder combines
     "env": {"EDITOR": "vi", "PATH": {"prepend": "/ide/bin"}, "OLD": null},
     "labels": {...}, "entrypoint": [...], "cmd": [...], "user": "...", "working_dir": "...",
     "compat": "gitpod",                       # read GITPOD_ENV_* of added images, with their meaning
     "access": "entitled"}                     # who may pull all its images may pull it; else a token

Parsing is pure and reports every problem at once; unknown keys are problems.
"""

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ocikit import media_types
from ocikit.digest import Digest
from ocikit.env_merge import EnvAction
from ocikit.errors import OciError
from ocikit.reference import Reference, is_repository, parse_tag_or_digest
from registry_facade.addressing import Target
from registry_facade.env_edits import EnvEdit
from registry_facade.errors import ImageSpecInvalid


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image of an upstream; ``text`` is how the spec wrote it."""

    target: Target
    reference: str | Digest
    text: str


@dataclass(frozen=True, slots=True)
class ImageLayers:
    image: ImageRef
    skip_layers: int = 0


@dataclass(frozen=True, slots=True)
class FileLayer:
    """``at`` empty: a tar is the layer's tar, a directory goes to the root, a file there by its name."""

    path: Path
    at: str = ""


@dataclass(frozen=True, slots=True)
class InlineFile:
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class InlineLayer:
    files: Mapping[str, InlineFile]


@dataclass(frozen=True, slots=True)
class TarLayer:
    """A layer's blob under a URL. ``diff_id`` None: as the digest when it is not compressed, else learnt."""

    url: str
    digest: Digest
    diff_id: Digest | None = None
    media_type: str = ""
    size: int | None = None


@dataclass(frozen=True, slots=True)
class InlineTar:
    """An uncompressed tar; only gitpod's protocol has it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SnapshotLayer:
    """``snapshot_id`` empty: the newest there is when the image is composed."""

    workspace: str
    snapshot_id: str = ""
    at: str = "/"


LayerSpec = ImageLayers | FileLayer | InlineLayer | TarLayer | InlineTar | SnapshotLayer


@dataclass(frozen=True, slots=True)
class ImageSpec:
    base: ImageRef
    layers: tuple[LayerSpec, ...] = ()
    chunks: tuple[ImageRef, ...] = ()
    chunk_env: Mapping[str, EnvAction] = field(default_factory=dict)
    env: tuple[EnvEdit, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the inner config that are replaced: Entrypoint, Cmd, User, WorkingDir."""
    gitpod_compatible: bool = False
    for_entitled: bool = False
    """Whether all who may pull each of its images may pull it; else it takes a token that covers it."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """Every image it is made of, the base first."""
        layers = (layer.image for layer in self.layers if isinstance(layer, ImageLayers))
        return (self.base, *self.chunks, *layers)

    @property
    def is_combination(self) -> bool:
        """Whether it is base and chunks and nothing else: then its bytes are the builder's."""
        return bool(self.chunks) and not (self.layers or self.env or self.labels or self.execution)


LAYER_TYPES = (media_types.OCI_LAYER, media_types.OCI_LAYER_GZIP, media_types.OCI_LAYER_ZSTD)
_NO_FILES = "files of the facade's machine are named by specs of its own directory only"
_WORD = re.compile(r"^[A-Za-z0-9._-]{1,200}$")
_WORKSPACE = re.compile(r"^[A-Za-z0-9_-]{1,128}/[A-Za-z0-9_-]{1,128}$")
_KEYS = frozenset(
    {
        "base",
        "layers",
        "env",
        "labels",
        "entrypoint",
        "cmd",
        "user",
        "working_dir",
        "compat",
        "access",
        "chunks",
        "chunk_env",
    }
)
_EXECUTION = {"entrypoint": "Entrypoint", "cmd": "Cmd", "user": "User", "working_dir": "WorkingDir"}


def parse_image_spec(
    data: bytes, image_id: str, *, upstreams: Collection[str], directory: Path | None
) -> ImageSpec:
    """Relative paths are taken from ``directory``; without one no file of this machine can be named.

    Raises ImageSpecInvalid.
    """
    parser = _Parser(upstreams, directory)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageSpecInvalid(image_id, [f"not JSON: {error}"]) from error
    spec = parser.spec(raw)
    if parser.problems or spec is None:
        raise ImageSpecInvalid(image_id, parser.problems)
    return spec


def parse_image_ref(text: str, upstreams: Collection[str]) -> ImageRef:
    """Names a configured upstream or a layout directory. Raises InvalidReference or ValueError."""
    if text.startswith("oci:"):
        parsed = Reference.parse(text)
        return ImageRef(Target(str(parsed.name), "layout"), parsed.reference, text)
    upstream, separator, rest = text.partition("/")
    if not separator or upstream not in upstreams:
        raise ValueError(
            f"{text!r} begins with none of the upstreams {', '.join(sorted(upstreams)) or '(none)'}"
        )
    name, at, digest = rest.partition("@")
    repository, colon, tag = name.partition(":")
    if not is_repository(repository):
        raise ValueError(f"{text!r} names no repository")
    reference = parse_tag_or_digest(digest if at else tag if colon else "latest")
    return ImageRef(Target(upstream, repository), reference, text)


class _Parser:
    def __init__(self, upstreams: Collection[str], directory: Path | None) -> None:
        self._upstreams = upstreams
        self._directory = directory
        self.problems: list[str] = []

    def spec(self, raw: Any) -> ImageSpec | None:
        if not isinstance(raw, Mapping):
            self.problems.append("must be an object")
            return None
        self._unknown(raw, _KEYS, "")
        if "base" not in raw:
            self.problems.append("base is missing")
        base = self._image(raw.get("base", ""), "base") if "base" in raw else None
        layers = raw.get("layers", [])
        if not isinstance(layers, list):
            self.problems.append("layers must be a list")
            layers = []
        parsed = [self._layer(item, f"layers[{at}]") for at, item in enumerate(layers)]
        chunks = self._chunks(raw.get("chunks", []))
        chunk_env = self._chunk_env(raw.get("chunk_env", {}))
        env = self._env(raw.get("env", {}))
        labels = self._strings(raw.get("labels", {}), "labels")
        execution = self._execution(raw)
        if raw.get("compat", "") not in {"", "gitpod"}:
            self.problems.append('compat can be "gitpod"')
        if raw.get("access", "token") not in {"token", "entitled"}:
            self.problems.append('access can be "token" or "entitled"')
        if self.problems or base is None:
            return None
        made = tuple(layer for layer in parsed if layer is not None)
        return ImageSpec(
            base,
            made,
            tuple(chunk for chunk in chunks if chunk is not None),
            chunk_env,
            env,
            labels,
            execution,
            gitpod_compatible=raw.get("compat") == "gitpod",
            for_entitled=raw.get("access") == "entitled",
        )

    def _unknown(self, raw: Mapping[Any, Any], known: Collection[str], where: str) -> None:
        self.problems.extend(f"{where}{key}: unknown key" for key in sorted(map(str, set(raw) - set(known))))

    def _image(self, text: Any, where: str) -> ImageRef | None:
        if not isinstance(text, str):
            self._bad(where, "a REF")
            return None
        if text.startswith("oci:") and self._directory is None:
            self.problems.append(f"{where}: {_NO_FILES}")
            return None
        try:
            return parse_image_ref(text, self._upstreams)
        except (OciError, ValueError) as error:
            self.problems.append(f"{where}: {error}")
            return None

    def _bad(self, where: str, expected: str) -> None:
        self.problems.append(f"{where}: must be {expected}")

    def _layer(self, raw: Any, where: str) -> LayerSpec | None:
        if isinstance(raw, str):
            image = self._image(raw, where)
            return ImageLayers(image) if image is not None else None
        match raw:
            case {"image": text, **rest}:
                self._unknown(rest, {"skip_layers"}, f"{where}.")
                image, skip = self._image(text, f"{where}.image"), rest.get("skip_layers", 0)
                if not isinstance(skip, int) or isinstance(skip, bool) or skip < 0:
                    self._bad(f"{where}.skip_layers", "a number from 0")
                    return None
                return ImageLayers(image, skip) if image is not None else None
            case {"file": str(path), **rest}:
                self._unknown(rest, {"at"}, f"{where}.")
                at = self._place(rest.get("at", ""), f"{where}.at") if "at" in rest else ""
                if self._directory is None:
                    self.problems.append(f"{where}: {_NO_FILES}")
                    return None
                return FileLayer(self._directory / path, at)
            case {"files": dict(files), **rest}:
                self._unknown(rest, (), f"{where}.")
                return self._inline(files, f"{where}.files")
            case {"tar": str(url), **rest}:
                self._unknown(rest, {"digest", "diff_id", "media_type", "size"}, f"{where}.")
                return self._tar(url, rest, where)
            case {"snapshot": str(workspace), **rest}:
                self._unknown(rest, {"id", "at"}, f"{where}.")
                return self._snapshot(workspace, rest, where)
            case _:
                self._bad(where, "a REF, or an object with image, file, files, tar or snapshot")
                return None

    def _tar(self, url: str, rest: Mapping[Any, Any], where: str) -> TarLayer | None:
        if not url.startswith(("http://", "https://")):
            self._bad(f"{where}.tar", "an http or https URL")
        digest = self._digest(rest.get("digest"), f"{where}.digest")
        diff_id = self._digest(rest["diff_id"], f"{where}.diff_id") if "diff_id" in rest else None
        media_type, size = rest.get("media_type", ""), rest.get("size")
        if media_type not in {"", *LAYER_TYPES}:
            self._bad(f"{where}.media_type", " or ".join(LAYER_TYPES))
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            self._bad(f"{where}.size", "a number of bytes")
        return TarLayer(url, digest, diff_id, media_type, size) if digest is not None else None

    def _snapshot(self, workspace: str, rest: Mapping[Any, Any], where: str) -> SnapshotLayer | None:
        if _WORKSPACE.match(workspace) is None:
            self._bad(f"{where}.snapshot", "owner/workspace")
        if _WORD.match(str(rest.get("id", "x"))) is None:
            self._bad(f"{where}.id", "the id of a snapshot")
        at = self._place(rest.get("at", "/"), f"{where}.at")
        return SnapshotLayer(workspace, str(rest.get("id", "")), at)

    def _digest(self, text: Any, where: str) -> Digest | None:
        try:
            return Digest.parse(text if isinstance(text, str) else "")
        except OciError:
            self._bad(where, "a digest")
            return None

    def _chunks(self, raw: Any) -> list[ImageRef | None]:
        if not isinstance(raw, list):
            self._bad("chunks", "a list of REFs")
            return []
        return [self._image(item, f"chunks[{at}]") for at, item in enumerate(raw)]

    def _chunk_env(self, raw: Any) -> Mapping[str, EnvAction]:
        actions = {str(action) for action in EnvAction}
        if not isinstance(raw, Mapping) or not all(str(value) in actions for value in raw.values()):
            self._bad("chunk_env", f"an object of {', '.join(EnvAction)}")
            return {}
        return {str(name): EnvAction(value) for name, value in raw.items()}

    def _inline(self, files: Mapping[str, Any], where: str) -> InlineLayer | None:
        found: dict[str, InlineFile] = {}
        for name, raw in files.items():
            place = self._place(name, where)
            file = _inline_file(raw)
            if file is None:
                self._bad(f"{where}[{name!r}]", 'an object with "text" or "base64", and maybe "mode"')
            else:
                found[place] = file
        return InlineLayer(found)

    def _place(self, text: Any, where: str) -> str:
        """An absolute path inside the image."""
        if not isinstance(text, str) or not text.startswith("/") or ".." in PurePosixPath(text).parts:
            self._bad(where, "an absolute path without ..")
            return ""
        return text

    def _env(self, raw: Any) -> tuple[EnvEdit, ...]:
        if not isinstance(raw, Mapping):
            self._bad("env", "an object")
            return ()
        edits = []
        for name, value in raw.items():
            edit = EnvEdit.parse(name, value)
            if edit is None:
                self._bad(f"env.{name}", "a string, null, or one of set, append, prepend with a string")
            else:
                edits.append(edit)
        return tuple(edits)

    def _strings(self, raw: Any, where: str) -> Mapping[str, str]:
        if not isinstance(raw, Mapping) or not all(isinstance(value, str) for value in raw.values()):
            self._bad(where, "an object of strings")
            return {}
        return dict(raw)

    def _execution(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        changes: dict[str, Any] = {}
        for key, name in _EXECUTION.items():
            if key not in raw:
                continue
            value = raw[key]
            is_list = key in {"entrypoint", "cmd"}
            items = value if is_list and isinstance(value, list) else [None] if is_list else [value]
            if all(isinstance(item, str) for item in items):
                changes[name] = value
            else:
                self._bad(key, "a list of strings" if is_list else "a string")
        return changes


def _inline_file(raw: Any) -> InlineFile | None:
    if isinstance(raw, str):
        return InlineFile(raw.encode())
    match raw:
        case {"text": str(text), **rest} if set(rest) <= {"mode"}:
            data = text.encode()
        case {"base64": str(text), **rest} if set(rest) <= {"mode"}:
            try:
                data = base64.b64decode(text, validate=True)
            except binascii.Error:
                return None
        case _:
            return None
    try:
        mode = int(str(rest.get("mode", "0644")), 8)
    except ValueError:
        return None
    return InlineFile(data, mode) if 0 <= mode <= 0o7777 else None
