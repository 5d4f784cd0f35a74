"""Which real programs are here, and what happens to a test whose program is not."""

import os
import shutil

import pytest

_PROGRAMS = {
    "containerd": ("containerd", "ctr", "containerd-shim-runc-v2", "runc"),
    "buildkit": ("buildkitd", "buildctl", "runc"),
    "btrfs-progs": ("mkfs.btrfs", "btrfs"),
    "docker": ("dockerd", "docker"),
    "e2fsprogs": ("mke2fs", "e2fsck", "debugfs"),
    "erofs-utils": ("mkfs.erofs",),
    "kubo": ("ipfs",),
    "redis": ("redis-server",),
    "squashfs-tools": ("sqfstar",),
}
"""Components that are not one program of the same name."""

KNOWN = (
    "buildah", "skopeo", "podman", "docker-registry", "redis", "kubo", "rclone", "minio", "containerd",
    "docker", "umoci", "bsdtar", "kubectl", "s5cmd", "nginx", "fio", "wrk", "crane",
    "buildkit", "e2fsprogs", "erofs-utils", "squashfs-tools", "dpkg-deb", "ldconfig", "btrfs-progs",
    "oci-conformance", "oci-conformance-v1.test",
)  # fmt: skip


def missing(component: str) -> list[str]:
    """The programs of ``component`` that are not on PATH."""
    return [name for name in _PROGRAMS.get(component, (component,)) if shutil.which(name) is None]


def program(name: str) -> str:
    """Where the program is; call `require` first."""
    found = shutil.which(name)
    assert found is not None, f"{name} is not on PATH"
    return found


def require(*components: str) -> None:
    """Skips the running test when a component is missing; fails it where components are demanded."""
    absent = {name: gone for name in components if (gone := missing(name))}
    if not absent:
        return
    reason = "not found on PATH: " + "; ".join(
        name if gone == [name] else f"{name} ({', '.join(gone)})" for name, gone in absent.items()
    )
    if os.environ.get("LAPSTRAKE_REQUIRE_COMPONENTS") == "1":
        pytest.fail(f"LAPSTRAKE_REQUIRE_COMPONENTS=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def header() -> list[str]:
    """Lines for the head of pytest's report."""
    here = [name for name in KNOWN if not missing(name)]
    absent = [name for name in KNOWN if missing(name)]
    return [f"components: {', '.join(here) or 'none'}", f"components missing: {', '.join(absent) or 'none'}"]
