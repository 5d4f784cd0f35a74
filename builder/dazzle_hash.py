"""The hash that dazzle itself gives chunks, byte for byte, for registries that are full of its tags.

It knows the registry's name and chunk.yaml of all variants, and no file modes; see docs/builder.md for the
native hash, which is the better one. Blocking.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from builder.fingerprint import Inputs
from builder.highwayhash import highwayhash256
from builder.project import Chunk, ChunkTest, Project

_KEY = bytes.fromhex("0340f3c8947cad7875140f4c4af7c62b43131dc2a8c7fc4628f0685e369a3b0b")
_STRING = "tag:yaml.org,2002:str"


def dazzle_hash(chunk: Chunk, base_reference: str = "", tests: Sequence[ChunkTest] | None = None) -> str:
    """64 hexadecimal digits. ``base_reference`` is ``host/repo:tag@digest``, and empty for the base.

    ``tests`` None leaves them out, as dazzle does for the tags of bases and chunks.
    """
    dockerfile = (chunk.directory / chunk.dockerfile).read_text(encoding="utf-8", errors="surrogateescape")
    text = f"Baseref: {base_reference}\n" if base_reference else ""
    text += manifest_text(dockerfile, list(_source_lines(chunk.directory)), chunk.args, tests)
    return _hash(text.encode("utf-8", "surrogateescape"))


def manifest_text(
    dockerfile: str,
    sources: Sequence[str],
    args: Mapping[str, str],
    tests: Sequence[ChunkTest] | None = None,
) -> str:
    """What is hashed, but for the base's reference."""
    lines = "\n".join(sorted(f"{name}={value}" for name, value in args.items()))
    text = f"Dockerfile: {dockerfile}\nSources:\n" + "\n".join(sources) + f"\nArgs:\n{lines}\n"
    return text if tests is None else f"{text}Tests:\n{_tests_yaml(tests)}\n"


def with_dazzle_hashes(
    project: Project, inputs: Mapping[str, Inputs], base_reference: str | None
) -> Mapping[str, Inputs]:
    """``inputs`` under dazzle's hashes: the base's, and the chunks' where the base's reference is known."""
    base = project.base.name
    named = {base: dataclasses.replace(inputs[base], given_hash=dazzle_hash(project.base))}
    if base_reference is not None:
        for name, chunk in project.chunks.items():
            named[name] = dataclasses.replace(inputs[name], given_hash=dazzle_hash(chunk, base_reference))
    return {**inputs, **named}


def _hash(data: bytes) -> str:
    return highwayhash256(_KEY, data).hex()


def _source_lines(directory: Path, prefix: str = "", above: frozenset[Path] = frozenset()) -> Iterator[str]:
    """In the order of doublestar v1: sub-directories first, then a directory's own entries."""
    entries = sorted(directory.iterdir(), key=lambda path: path.name.encode())
    seen = above | {directory.resolve()}
    for entry in entries:
        if entry.is_dir() and entry.resolve() not in seen:
            yield from _source_lines(entry, f"{prefix}/{entry.name}", seen)
    for entry in entries:
        if entry.is_file():
            yield f"{prefix}/{entry.name}:{_hash(entry.read_bytes())}"
        elif entry.is_dir():
            yield f"{prefix}/{entry.name}"


def _tests_yaml(tests: Sequence[ChunkTest]) -> str:
    """As Go's yaml.v3 writes it: indented by four, commands in flow style."""
    if not tests:
        return "[]\n"
    lines: list[str] = []
    for test in tests:
        lines.append(f"- desc: {_scalar(test.description)}")
        lines += ["  skip: true"] * test.skip
        lines += [f"  user: {_scalar(test.user)}"] * bool(test.user)
        lines.append(f"  command: {_flow(test.command)}")
        lines += [f"  entrypoint: {_flow(test.entrypoint)}"] if test.entrypoint else []
        lines += (
            ["  env:", *(f"    - {_scalar(f'{k}={v}')}" for k, v in test.env.items())] if test.env else []
        )
        lines += ["  assert:", *(f"    - {_scalar(one.text)}" for one in test.assertions)]
    return "\n".join([*lines, ""])


def _scalar(text: str) -> str:
    node = yaml.ScalarNode(_STRING, text, style=_style(text))
    return yaml.serialize(node, width=float("inf"), allow_unicode=True).removesuffix("...\n").rstrip("\n")


def _flow(texts: Sequence[str]) -> str:
    nodes = [yaml.ScalarNode(_STRING, text, style=_style(text)) for text in texts]
    node = yaml.SequenceNode("tag:yaml.org,2002:seq", nodes, flow_style=True)
    return yaml.serialize(node, width=float("inf"), allow_unicode=True).rstrip("\n")


def _style(text: str) -> str | None:
    """Double quotes for what would not be read back as a string, else as plain as it can be."""
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]  # not in its stubs
    return None if tag == _STRING and "\n" not in text else '"'
