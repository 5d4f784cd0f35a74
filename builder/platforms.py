"""For which platforms images are made, and which of them this host can run. Blocking."""

import contextlib
import platform as this_host
from pathlib import Path

from ocikit.descriptor import Platform

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_ARCHITECTURES = {
    "x86_64": "amd64", "i386": "386", "i686": "386", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm",
    "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x", "loongarch64": "loong64",
}  # fmt: skip
"""What the kernel calls a machine -> Go's word for it, which images use (image-spec v1.1, config.md)."""
_ALSO_RUNS = {"amd64": "386", "arm64": "arm"}


def host_platform() -> Platform:
    machine = this_host.machine()
    return Platform("linux", _ARCHITECTURES.get(machine, machine))


def is_runnable(wanted: Platform) -> bool:
    """Whether this host can run programs for ``wanted``: itself, or by an emulator that the kernel knows."""
    own = host_platform().architecture
    if wanted.os not in {"linux", ""} or wanted.architecture in {own, _ALSO_RUNS.get(own), ""}:
        return wanted.os in {"linux", ""}
    machines = [machine for machine, name in _ARCHITECTURES.items() if name == wanted.architecture]
    return any(_is_enabled(f"qemu-{name}") for machine in machines for name in {machine, machine[:3]})


def _is_enabled(handler: str) -> bool:
    with contextlib.suppress(OSError):
        return (_BINFMT / handler).read_text().startswith("enabled")
    return False
