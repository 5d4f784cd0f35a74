"""Writes limits into a cgroup's files and reads them back.

v1: ``blkio.throttle.{read,write}_{bps,iops}_device``, one line per device and file, 0 lifts; buffered writes
are not limited there (they are issued by the kernel's own threads). v2: ``io.max``, one line per device,
``max`` lifts. A limit that the kernel did not take is an error for the caller to count, never to crash on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from content.errors import ContentError, LocalDiskError
from content.io_limits.devices import Device

_V1_FILES = {
    "read_bytes_s": "blkio.throttle.read_bps_device",
    "write_bytes_s": "blkio.throttle.write_bps_device",
    "read_operations_s": "blkio.throttle.read_iops_device",
    "write_operations_s": "blkio.throttle.write_iops_device",
}
_V2_KEYS = {
    "read_bytes_s": "rbps",
    "write_bytes_s": "wbps",
    "read_operations_s": "riops",
    "write_operations_s": "wiops",
}


class LimitNotInForce(ContentError):
    def __init__(self, cgroup: Path, wanted: object, found: object) -> None:
        super().__init__(f"{cgroup}: the kernel keeps {found} instead of {wanted}")


@dataclass(frozen=True, slots=True)
class IoLimits:
    """Per second and device; None means unlimited."""

    read_bytes_s: int | None = None
    write_bytes_s: int | None = None
    read_operations_s: int | None = None
    write_operations_s: int | None = None


UNLIMITED = IoLimits()


class CgroupLimiter:
    """Limits of one cgroup directory, of either version; blocking. Raises LocalDiskError."""

    def __init__(self, cgroup: Path) -> None:
        self._cgroup = cgroup
        if (cgroup / "io.max").exists():
            self._version = 2
        elif (cgroup / _V1_FILES["read_bytes_s"]).exists():
            self._version = 1
        else:
            raise LocalDiskError(str(cgroup), "is no cgroup with an io (v2) or blkio (v1) controller")

    def apply(self, device: Device, limits: IoLimits) -> None:
        """Replaces what is in force for ``device``. Raises LimitNotInForce when reading back differs."""
        wanted = {field.name: getattr(limits, field.name) for field in fields(limits)}
        if self._version == 2:
            values = " ".join(f"{_V2_KEYS[name]}={_v2(value)}" for name, value in wanted.items())
            self._write("io.max", f"{device} {values}")
        else:
            for name, value in wanted.items():
                self._write(_V1_FILES[name], f"{device} {value or 0}")
        found = self.show().get(device, UNLIMITED)
        if found != limits:
            raise LimitNotInForce(self._cgroup, limits, found)

    def clear(self) -> list[Device]:
        """Lifts all limits; to be done before anything in the cgroup is killed, or it may hang in its I/O."""
        devices = sorted(self.show())
        for device in devices:
            self.apply(device, UNLIMITED)
        return devices

    def show(self) -> Mapping[Device, IoLimits]:
        """What is in force, by device."""
        found: dict[Device, dict[str, int]] = {}
        if self._version == 2:
            for line in self._read("io.max"):
                device, *pairs = line.split()
                values = dict(pair.split("=") for pair in pairs)
                limits = {
                    name: values[key] for name, key in _V2_KEYS.items() if values.get(key, "max") != "max"
                }
                found[_device(device)] = {name: int(value) for name, value in limits.items()}
        else:
            for name, file in _V1_FILES.items():
                for line in self._read(file):
                    device, value = line.split()
                    found.setdefault(_device(device), {})[name] = int(value)
        return {device: IoLimits(**values) for device, values in found.items() if values}

    def _write(self, name: str, line: str) -> None:
        try:
            (self._cgroup / name).write_text(line + "\n")
        except OSError as error:
            raise LocalDiskError.from_os(f"{self._cgroup / name} ({line})", error) from error

    def _read(self, name: str) -> list[str]:
        try:
            return (self._cgroup / name).read_text().splitlines()
        except OSError as error:
            raise LocalDiskError.from_os(str(self._cgroup / name), error) from error


def _v2(value: int | None) -> str:
    return "max" if value is None else str(value)


def _device(text: str) -> Device:
    major, minor = text.split(":")
    return Device(int(major), int(minor))
