"""Fixtures that start real peers, and the ``component`` marker."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import containerd as _containerd
from tests.support import docker_registry as _docker_registry
from tests.support import kubo as _kubo
from tests.support import redis as _redis
from tests.support import s3 as _s3
from tests.support.components import header, require
from tests.support.processes import take_logs

_buckets = itertools.count(1)

hypothesis.settings.register_profile("untimed", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("untimed")


def pytest_report_header() -> list[str]:
    return header()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("component"):
        require(*marker.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "teardown" or report.failed:
        logs = take_logs()
        if report.failed:
            report.sections += logs
    return report


@pytest.fixture(scope="session", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands note between runs stays out of the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAPSTRAKE_CONTENT_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def docker_registry_factory(tmp_path: Path) -> _docker_registry.DockerRegistryFactory:
    """Starts registries: ``with docker_registry_factory(proxy=None, htpasswd=None) as registry``."""
    numbers = itertools.count()

    def start(
        *, proxy: str | None = None, htpasswd: str | None = None
    ) -> contextlib.AbstractContextManager[_docker_registry.DockerRegistry]:
        root = tmp_path / f"docker-registry-{next(numbers)}"
        return _docker_registry.docker_registry(root, proxy=proxy, htpasswd=htpasswd)

    return start


@pytest.fixture
def docker_registry(
    docker_registry_factory: _docker_registry.DockerRegistryFactory,
) -> Iterator[_docker_registry.DockerRegistry]:
    """An empty registry that takes pushes; ``.address``, ``.origin``, ``.root``, ``.process``."""
    with docker_registry_factory() as registry:
        yield registry


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[_redis.RedisServer]:
    """An empty Redis; ``.url``, ``.process``."""
    with _redis.redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def kubo_factory(tmp_path: Path) -> _kubo.KuboFactory:
    """Starts nodes of one private swarm: ``with kubo_factory() as node``."""
    numbers = itertools.count()
    key = _kubo.new_swarm_key()
    return lambda: _kubo.kubo_node(tmp_path / f"kubo-{next(numbers)}", swarm_key=key)


@pytest.fixture
def kubo_node(kubo_factory: _kubo.KuboFactory) -> Iterator[_kubo.KuboNode]:
    """An empty node; ``.api_url``, ``.gateway_url``, ``.peer_id``, ``.process``, ``.connect(other)``."""
    with kubo_factory() as node:
        yield node


@pytest.fixture
def s3_factory(tmp_path: Path) -> _s3.S3Factory:
    """Starts servers a test may stop and kill: ``with s3_factory("minio") as server``."""
    numbers = itertools.count()
    return lambda kind: _s3.s3_server(kind, tmp_path / f"s3-{next(numbers)}")


@pytest.fixture(scope="session", params=_s3.KINDS)
def _shared_s3_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_s3.S3Server]:
    with _s3.s3_server(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def s3_server(_shared_s3_server: _s3.S3Server, request: pytest.FixtureRequest) -> _s3.S3Server:
    """A server of each kind, shared by the session, with an empty bucket of this test's own."""
    number = next(_buckets)
    name = re.sub(r"[^a-z0-9]+", "-", request.node.originalname.lower())[:40].strip("-")
    bucket = f"{name}-{number}"
    _shared_s3_server.create_bucket(bucket)
    return dataclasses.replace(_shared_s3_server, bucket=bucket)


@pytest.fixture
def containerd() -> Iterator[_containerd.Containerd]:
    """A containerd of this test's own; ``.ctr(*args)``, ``.pull``, ``.run``, ``.certs_d``, ``.process``."""
    with _containerd.containerd() as daemon:
        yield daemon
