"""Settings of the content service: ``[content]``, ``LAPSTRAKE_CONTENT_*``."""

from dataclasses import dataclass
from pathlib import Path

from servicekit.secrets import Secret
from servicekit.settings import (
    DURATION,
    INTEGER,
    PATH,
    RATE,
    SECRET,
    SIZE,
    STRING,
    host_port,
    setting,
)


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
    tokens_file: Path | None = setting(
        PATH, None, "JSON file of bearer tokens: a token to the owner it is limited to, '*' for any."
    )
    admin_token: Secret | None = setting(
        SECRET, None, "A bearer token for all owners; without any token all may ask."
    )
    concurrency: int = setting(INTEGER, 4, "Requests to the store at a time, over all jobs.")
    restores: int = setting(INTEGER, 4, "Restores at a time.")
    backups: int = setting(INTEGER, 2, "Final backups at a time.")
    periodic_backups: int = setting(INTEGER, 1, "Periodic backups at a time.")
    queue_deadline_s: float = setting(DURATION, 900.0, "How long a job may wait before it is refused.")
    send_rate_bytes_s: int | None = setting(RATE, None, "Bytes per second sent to the store by this node.")
    receive_rate_bytes_s: int | None = setting(
        RATE, None, "Bytes per second received from the store by this node."
    )
    min_free_bytes: int = setting(
        SIZE, 1 << 30, "Below this much free space the node is not ready and periodic work stops."
    )
    drain_s: float = setting(DURATION, 60.0, "How long running jobs may finish after SIGTERM.")
