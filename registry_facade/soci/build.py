"""One layer to one zTOC, in a process of its own.

``python -m registry_facade.soci.build LAYER DIGEST OUT PARENT idle|awaited`` answers on stdout with one
JSON object: ``digest`` and ``size`` of the zTOC that is now in OUT, or ``refused`` and why. Unless it is
awaited it runs only when a processor has nothing else to do. It takes at most MAX_MEMORY_BYTES, and ends with
its parent.
"""

import contextlib
import hashlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

from registry_facade.soci.errors import NotIndexable
from registry_facade.soci.index import BUILD_TOOL, SPAN_BYTES
from registry_facade.soci.toc import read_toc
from registry_facade.soci.zinfo import checkpoints_of, spans_of
from registry_facade.soci.ztoc import Ztoc, dump
from servicekit.parent import end_with

MAX_MEMORY_BYTES = 1 << 30
MAX_CPU_S = 900


def build_ztoc(layer: Path, span_bytes: int = SPAN_BYTES, build_tool: str = BUILD_TOOL) -> memoryview:
    """The zTOC of a gzipped tar; blocking. Raises NotIndexable, OSError."""
    checkpoints, unpacked_bytes = checkpoints_of(layer, span_bytes)
    files, end = read_toc(layer)
    if end > unpacked_bytes:
        raise NotIndexable(f"it unpacks to {end} bytes for one, and to {unpacked_bytes} for another")
    spans = spans_of(layer, checkpoints, span_bytes)
    try:
        return dump(Ztoc(build_tool, layer.stat().st_size, end, files, spans))
    except ValueError as error:
        raise NotIndexable(str(error)) from error


def main(layer: str, digest: str, out: str) -> dict[str, object]:
    """Raises OSError; RuntimeError when the layer is not what ``digest`` says."""
    with Path(layer).open("rb") as file:
        algorithm, _, encoded = digest.partition(":")
        if hashlib.file_digest(file, algorithm).hexdigest() != encoded:
            raise RuntimeError("the cached file is not the layer any more")
    try:
        ztoc = build_ztoc(Path(layer))
    except NotIndexable as refusal:
        return {"refused": str(refusal)}
    Path(out).write_bytes(ztoc)
    return {"digest": f"sha256:{hashlib.sha256(ztoc).hexdigest()}", "size": len(ztoc)}


def _be_modest(parent: int, priority: str) -> None:
    end_with(parent, signal.SIGKILL)
    os.nice(10)
    if priority == "idle":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # its I/O is then idle too
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _layer, _digest, _out, _parent, _priority = sys.argv[1:]
    _be_modest(int(_parent), _priority)
    sys.stdout.write(json.dumps(main(_layer, _digest, _out)))
