"""Settings of the content service: ``[content]``, ``LAPSTRAKE_CONTENT_*``."""

from dataclasses import dataclass, field
from pathlib import Path

from servicekit.secrets import Secret
from servicekit.settings import (
    DURATION,
    FLOAT,
    INTEGER,
    PATH,
    RATE,
    SECRET,
    SIZE,
    STRING,
    STRINGS,
    host_port,
    setting,
)


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What each job is held to; the rates can be changed while it runs."""

    send_rate_bytes_s: int | None = setting(RATE, None, "Bytes per second that a job sends to the store.")
    receive_rate_bytes_s: int | None = setting(
        RATE, None, "Bytes per second that a job receives from the store."
    )
    read_rate_bytes_s: int | None = setting(RATE, None, "Bytes per second that a job reads from its tree.")
    write_rate_bytes_s: int | None = setting(RATE, None, "Bytes per second that a job writes to its tree.")
    cgroup: Path | None = setting(
        PATH, None, "Directory (v1: below blkio; v2: delegated with io) where each job gets a cgroup."
    )
    io_read_bytes_s: int | None = setting(RATE, None, "The cgroup's limit on bytes read per second.")
    io_write_bytes_s: int | None = setting(RATE, None, "The cgroup's limit on bytes written per second.")
    io_read_iops: int | None = setting(INTEGER, None, "The cgroup's limit on reads per second.")
    io_write_iops: int | None = setting(INTEGER, None, "The cgroup's limit on writes per second.")
    io_weight: int | None = setting(INTEGER, None, "The cgroup's weight; neighbours have 100.")


@dataclass(frozen=True, slots=True)
class PeriodicSettings:
    """Backups of running workspaces; the ``keep`` rules are as those of `snapshots prune`."""

    every_s: float = setting(DURATION, 300.0, "How often, where the workspace's schedule does not say.")
    keep_last: int = setting(
        INTEGER, 0, "Newest snapshots that stay after a periodic backup; without any rule all stay."
    )
    keep_hourly: int = setting(INTEGER, 0, "Hours of which the newest snapshot stays.")
    keep_daily: int = setting(INTEGER, 0, "Days of which the newest snapshot stays.")
    keep_weekly: int = setting(INTEGER, 0, "Weeks of which the newest snapshot stays.")


@dataclass(frozen=True, slots=True)
class PressureSettings:
    """When the disk work of this node steps back for its neighbours."""

    files: tuple[str, ...] = setting(
        STRINGS, (), "Patterns of the neighbours' io.pressure files; without any, nothing is followed."
    )
    target: float = setting(FLOAT, 0.1, "The share of time that a neighbour may wait for the disk, 0 to 1.")
    floor_share: float = setting(
        FLOAT, 0.1, "Reading always gets this share of the disk's time, 0 to 1: a backup must end."
    )
    floor_bytes_s: int = setting(RATE, 8 << 20, "Below this, writing is not slowed: a restore must end.")


@dataclass(frozen=True, slots=True)
class ContentSettings:
    """What `lapstrake content serve` runs by."""

    listen: tuple[str, int] = setting(
        host_port(default_port=8090), ("127.0.0.1", 8090), "Where the API listens."
    )
    store: str = setting(STRING, "", "Where snapshots go: s3://bucket/prefix or file:///dir.")
    s3_endpoint: str = setting(STRING, "", "URL of an S3 server that is not Amazon's.")
    workspaces_root: Path = setting(
        PATH, Path("/var/lib/lapstrake/workspaces"), "The directory below which all workspaces are."
    )
    state_dir: Path = setting(
        PATH,
        Path("~/.cache/lapstrake/content").expanduser(),
        "Where schedules are, and how far each upload is, so that a restart goes on with both.",
    )
    tokens_file: Path | None = setting(
        PATH, None, "JSON file of bearer tokens: a token to the owner it is limited to, '*' for any."
    )
    admin_token: Secret | None = setting(
        SECRET, None, "A bearer token for all owners; without any token all may ask."
    )
    tls_certificate: Path | None = setting(
        PATH, None, "PEM file with the API's certificate and its chain; read again when it changes."
    )
    tls_key: Path | None = setting(PATH, None, "PEM file with the key of tls_certificate.")
    tls_client_ca: Path | None = setting(
        PATH, None, "PEM file with the CA whose client certificates may come instead of a token."
    )
    certificates_file: Path | None = setting(
        PATH, None, "JSON file: CN:name, DNS:name or URI:name of a client certificate to its owner, or '*'."
    )
    concurrency: int = setting(INTEGER, 4, "Requests to the store at a time, by each job.")
    restores: int = setting(INTEGER, 4, "Restores at a time.")
    backups: int = setting(INTEGER, 2, "Final backups at a time.")
    periodic_backups: int = setting(INTEGER, 1, "Periodic backups at a time.")
    jobs: int = setting(INTEGER, 6, "Jobs at a time, of all kinds together.")
    queue_deadline_s: float = setting(DURATION, 900.0, "How long a job may wait before it is refused.")
    send_rate_bytes_s: int | None = setting(RATE, None, "Bytes per second sent to the store by this node.")
    receive_rate_bytes_s: int | None = setting(
        RATE, None, "Bytes per second received from the store by this node."
    )
    read_rate_bytes_s: int | None = setting(RATE, None, "Bytes per second read from trees by this node.")
    write_rate_bytes_s: int | None = setting(RATE, None, "Bytes per second written to trees by this node.")
    job: JobSettings = field(default_factory=JobSettings)
    periodic: PeriodicSettings = field(default_factory=PeriodicSettings)
    pressure: PressureSettings = field(default_factory=PressureSettings)
    source_protocols: tuple[str, ...] = setting(
        STRINGS, ("https",), "Protocols that initializers may use: https, http, and for git also ssh and git."
    )
    source_hosts: tuple[str, ...] = setting(
        STRINGS, (), "Hosts on private networks that initializers may fetch from; all others must be public."
    )
    workspace_cgroups: Path | None = setting(
        PATH, None, "Directory below which the workspaces' own cgroups are, which the API may then limit."
    )
    min_free_bytes: int = setting(
        SIZE, 1 << 30, "Below this much free space the node is not ready and periodic work stops."
    )
    drain_s: float = setting(DURATION, 60.0, "How long running jobs may finish after SIGTERM.")
