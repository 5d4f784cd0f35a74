"""A network link of a stated rate to a namespace of its own, where a real server can stand behind it."""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Link:
    """``address`` is the far end's; commands begun with ``inside`` run there."""

    address: str
    inside: tuple[str, ...]
    interface: str

    @property
    def received_bytes(self) -> int:
        """What came over it so far, headers included."""
        return int(Path(f"/sys/class/net/{self.interface}/statistics/rx_bytes").read_text())


def can_link() -> bool:
    """Whether this process may make namespaces and shape traffic."""
    return os.geteuid() == 0 and _quietly("ip", "netns", "list") and _quietly("tc", "-V")


def _quietly(*argv: str) -> bool:
    try:
        return subprocess.run(argv, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextlib.contextmanager
def limited_link(bytes_per_s: int) -> Iterator[Link]:
    """What comes from the far end is held to ``bytes_per_s``, headers of TCP/IP included; needs root."""
    number = os.getpid() % 16000 * 4 + next(_numbers) % 4
    name, near, far = f"lapstrake-{number}", f"lsn{number}", f"lsf{number}"
    octets = f"10.{200 + number // 16384 % 50}.{number // 64 % 256}"
    near_ip, far_ip = (f"{octets}.{number % 64 * 4 + host}" for host in (1, 2))
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", name)
        inside = ("ip", "netns", "exec", name)
        _run("ip", "addr", "add", f"{near_ip}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run(*inside, "ip", "addr", "add", f"{far_ip}/30", "dev", far)
        _run(*inside, "ip", "link", "set", far, "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        shaping = ("rate", f"{bytes_per_s * 8}bit", "burst", "256kb", "latency", "100ms")
        _run(*inside, "tc", "qdisc", "add", "dev", far, "root", "tbf", *shaping)
        yield Link(far_ip, inside, near)
    finally:
        _run("ip", "netns", "delete", name)
