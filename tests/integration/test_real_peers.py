"""The peers other tests rely on do start, answer and end."""

import json
import urllib.request

import boto3
import pytest
import redis

from tests.support.containerd import Containerd
from tests.support.docker_registry import DockerRegistry, DockerRegistryFactory
from tests.support.kubo import KuboFactory
from tests.support.redis import RedisServer
from tests.support.s3 import S3Server


def _get(url: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(url, method=method)  # noqa: S310 (a loopback origin of our own)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 (as above)
        body: bytes = answer.read()
        return body


def test_docker_registry_answers_and_proxies(
    docker_registry: DockerRegistry, docker_registry_factory: DockerRegistryFactory
) -> None:
    with docker_registry_factory(proxy=docker_registry.origin) as proxy:
        assert json.loads(_get(f"{proxy.origin}/v2/")) == {}


def test_redis_forgets_when_restarted_on_the_same_address(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"
    redis_server.process.kill()
    redis_server.process.start()
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.get("key") is None


def test_kubo_nodes_exchange_blocks_once_connected(kubo_factory: KuboFactory) -> None:
    with kubo_factory() as one, kubo_factory() as two:
        (one.root / "file").write_bytes(b"over the swarm")
        cid = one.ipfs("add", "--quieter", "--cid-version=1", str(one.root / "file")).strip()
        two.connect(one)
        assert _get(f"{two.api_url}/api/v0/cat?arg={cid}", "POST") == b"over the swarm"


def test_kubo_knows_nobody_by_itself(kubo_factory: KuboFactory) -> None:
    with kubo_factory() as node:
        assert node.ipfs("swarm", "peers") == ""
        assert node.ipfs("bootstrap", "list") == ""


def test_s3_server_keeps_objects(s3_server: S3Server) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.endpoint,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
        region_name="us-east-1",
    )
    assert "Contents" not in client.list_objects_v2(Bucket=s3_server.bucket)
    client.put_object(Bucket=s3_server.bucket, Key="a/b", Body=b"content")
    assert client.get_object(Bucket=s3_server.bucket, Key="a/b")["Body"].read() == b"content"
    client.close()


@pytest.mark.component("containerd")
def test_containerd_answers_on_its_own_socket(containerd: Containerd) -> None:
    assert containerd.ctr("images", "ls", "--quiet").stdout == ""
