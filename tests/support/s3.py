"""Real S3 servers: MinIO, and ``rclone serve s3`` over a directory."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config

from tests.support.components import program, require
from tests.support.processes import Process, accepts, free_port

ACCESS_KEY = "lapstrake-test"
SECRET_KEY = "lapstrake-test-secret"
KINDS = ("rclone", "minio")


@dataclass(frozen=True, slots=True)
class S3Server:
    """``bucket`` exists and is empty at the start."""

    kind: str
    endpoint: str
    bucket: str
    root: Path
    process: Process
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def create_bucket(self, name: str) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )
        with contextlib.closing(client):
            client.create_bucket(Bucket=name)


S3Factory = Callable[[str], AbstractContextManager[S3Server]]


@contextlib.contextmanager
def s3_server(kind: str, root: Path, *, bucket: str = "lapstrake") -> Iterator[S3Server]:
    """``kind`` is one of KINDS."""
    require(kind)
    data = root / "data"
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    address = f"127.0.0.1:{port}"
    argv, env = _command(kind, address, data, root)
    with Process(kind, argv, log=root / f"{kind}.log", ready=accepts(port), env=env) as process:
        server = S3Server(kind, f"http://{address}", bucket, data, process)
        server.create_bucket(bucket)
        yield server


def _command(kind: str, address: str, data: Path, root: Path) -> tuple[list[str | Path], dict[str, str]]:
    home = {"HOME": str(root)}
    if kind == "minio":
        argv = [
            program("minio"),
            "server",
            "--quiet",
            "--address",
            address,
            "--console-address",
            "127.0.0.1:0",
        ]
        credentials = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        return [*argv, data], {**home, **credentials, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
    argv = [program("rclone"), "serve", "s3", "--addr", address, "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    return [*argv, data], {**home, "RCLONE_CONFIG": str(root / "rclone.conf")}
