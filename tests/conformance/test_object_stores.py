"""Every object store and every wrapper keeps the contract of `content.objects.base`."""

from pathlib import Path

import pytest

from content.metrics import StoreMetrics
from content.objects.directory import DirectoryObjectStore
from content.objects.opening import StoreOptions, open_store
from content.objects.wrappers import Bounded, Metered, Retrying, Throttled, Wrapper
from content.testing.object_stores import ObjectStoreSuite
from servicekit.backoff import Backoff
from servicekit.metrics import Metrics
from servicekit.throttle import Throttle
from tests.support.s3 import S3Server


class TestDirectory(ObjectStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> DirectoryObjectStore:
        return DirectoryObjectStore(tmp_path / "store")


class TestWrapped(ObjectStoreSuite):
    @pytest.fixture(params=["wrapper", "retrying", "throttled", "bounded", "metered"])
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Wrapper:
        inner = DirectoryObjectStore(tmp_path / "store")
        return {
            "wrapper": lambda: Wrapper(inner),
            "retrying": lambda: Retrying(inner, Backoff()),
            "throttled": lambda: Throttled(inner, Throttle(1 << 30), Throttle(1 << 30)),
            "bounded": lambda: Bounded(inner, 2),
            "metered": lambda: Metered(inner, StoreMetrics.on(Metrics())),
        }[request.param]()


class TestS3(ObjectStoreSuite):
    """MinIO, and ``rclone serve s3``, which promises less."""

    @pytest.fixture
    async def store(self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
        address = f"s3://{s3_server.bucket}/some/prefix"
        async with open_store(address, StoreOptions(s3_endpoint=s3_server.endpoint)) as store:
            yield store


async def test_the_probe_sees_through_servers_that_only_pretend(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    options = StoreOptions(s3_endpoint=s3_server.endpoint)
    async with open_store(f"s3://{s3_server.bucket}", options) as store:
        honest = s3_server.kind == "minio"
        assert store.properties.conditional_put is honest
        assert store.properties.part_copy is honest
        assert store.properties.checks_crc32 is honest
        assert [info.key async for info in store.list("")] == []
        assert [upload.key async for upload in store.list_uploads("")] == []
