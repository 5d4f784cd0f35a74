"""Runs one command in a stack of unpacked layers: the first process of its own namespaces.

Started by `builder.sandbox` as ``unshare ... python -I sandbox_child.py <specification as JSON>``. Only the
standard library is at hand. What goes wrong before the command runs is written to the file descriptor that
the specification names; a command that cannot be executed ends with 255, as dazzle's runner has it.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import termios
import threading
from pathlib import Path
from typing import Any

_BIND, _NOSUID, _NODEV, _NOEXEC = 4096, 2, 4, 8
_PR_CAPBSET_DROP = 24
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_KEPT_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})
"""What a container has by default (runc, Docker): no mounting, no modules, no raw devices."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_CANNOT_EXECUTE = 255


def _mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (source.encode(), str(target).encode(), kind.encode() or None, flags, options.encode())
    if libc.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {kind or 'bind'} on {target}: {os.strerror(number)}")


def _stack(layers: list[str], scratch: Path) -> Path:
    """The layers as one writable root; what is written goes to memory and is gone afterwards."""
    _mount("tmpfs", scratch, "tmpfs", options="mode=755")
    for name in ("upper", "work", "root"):
        (scratch / name).mkdir()
    lower = ":".join(reversed(layers))  # relative to the working directory, which keeps the options short
    root = scratch / "root"
    options = f"lowerdir={lower},upperdir={scratch}/upper,workdir={scratch}/work"
    _mount("overlay", root, "overlay", options=options)
    return root


def _directory(root: Path, name: str) -> Path | None:
    """A place to mount on; None when the image has a link there, which would lead out of the root."""
    path = root / name
    if path.is_symlink():
        return None
    path.mkdir(exist_ok=True)
    return path


def _furnish(root: Path) -> None:
    if (proc := _directory(root, "proc")) is not None:
        _mount("proc", proc, "proc", _NOSUID | _NODEV | _NOEXEC)
    if (dev := _directory(root, "dev")) is not None:
        _mount("tmpfs", dev, "tmpfs", _NOSUID, "mode=755,size=64k")
        for name in _DEVICES:
            if Path("/dev", name).exists():
                (dev / name).touch()
                _mount(f"/dev/{name}", dev / name, "", _BIND)
        (dev / "shm").mkdir()
        _mount("tmpfs", dev / "shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")
        (dev / "pts").mkdir()
        _mount("devpts", dev / "pts", "devpts", _NOSUID | _NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
        (dev / "ptmx").symlink_to("pts/ptmx")
        for at, name in enumerate(("stdin", "stdout", "stderr")):
            (dev / name).symlink_to(f"/proc/self/fd/{at}")
        (dev / "fd").symlink_to("/proc/self/fd")


def _loopback_up() -> None:
    """A network of its own has nothing but a loopback, and that is down."""
    with socket.socket() as any_socket:
        request = struct.pack("16sh", b"lo", _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request.ljust(40, b"\0"))


def _drop_capabilities(last_capability: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(last_capability + 1):
        if capability not in _KEPT_CAPABILITIES:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _enter(specification: dict[str, Any]) -> None:
    last_capability = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    root = _stack(specification["layers"], Path(specification["scratch"]))
    _furnish(root)
    _loopback_up()
    os.chroot(root)
    os.chdir("/")
    directory = Path(specification["directory"])
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    os.umask(0o022)
    _drop_capabilities(last_capability)


def _terminal(uid: int) -> tuple[int, int]:
    """Both ends of a terminal of the sandbox's own, which has a name there and belongs to ``uid``."""
    ours, theirs = os.openpty()
    os.fchown(theirs, uid, -1)
    return ours, theirs


def _discard(terminal: int) -> None:
    """What is written to a terminal that nobody looks at; unread, it would stop who writes."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


def _become(specification: dict[str, Any], terminal: int | None) -> None:
    """The process that the command will be: as Python found the signals, alone in its session."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    os.setsid()
    if terminal is not None:
        os.dup2(terminal, 0)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.setgroups(specification["groups"])
    os.setgid(specification["gid"])
    os.setuid(specification["uid"])


def _wait_for(command: int) -> int:
    """Its status as a shell has it; whoever else is left to the first process is reaped on the way."""
    while True:
        ended, status = os.wait()
        if ended == command:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def main() -> None:
    specification = json.loads(sys.argv[1])
    report = specification["report_fd"]
    os.set_inheritable(report, False)
    try:
        _enter(specification)
        ours, theirs = _terminal(specification["uid"]) if specification["terminal"] else (None, None)
        if (command := os.fork()) != 0:
            os.close(report)
            if ours is not None and theirs is not None:
                os.close(theirs)
                threading.Thread(target=_discard, args=(ours,), daemon=True).start()
            os._exit(_wait_for(command))
        _become(specification, theirs)
    except OSError as error:
        os.write(report, str(error.strerror or error).encode())
        os._exit(_CANNOT_EXECUTE)
    try:
        os.execvpe(specification["argv"][0], specification["argv"], specification["env"])  # noqa: S606 (argv list)
    except OSError as error:
        sys.stderr.write(f"{specification['argv'][0]}: {error.strerror}\n")
        sys.exit(_CANNOT_EXECUTE)


if __name__ == "__main__":
    main()
