"""The registry client against a server that lies, breaks off and refuses, over real sockets."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ocikit.blobs import read_blob
from ocikit.digest import Digest
from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.credentials import Credentials, StaticCredentials
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Deadlines, Transport
from ocikit.errors import (
    ConnectFailed,
    Denied,
    IntegrityError,
    OciError,
    RateLimited,
    RegistryError,
    TimedOut,
    TransportError,
    Unauthorized,
)
from ocikit.ranges import ByteRange
from ocikit.testing import faults as f
from ocikit.testing.conformance import read_all
from ocikit.testing.images import ImageBlobs, push_image, random_image
from ocikit.testing.registry import RunningRegistry, TokenAuth, running_registry
from ocikit.verify import verified
from servicekit.backoff import Backoff
from servicekit.secrets import Secret
from tests.support.processes import free_port

_FAST = Backoff(attempts=3, first_s=0.001, cap_s=0.005)


@pytest.fixture
async def registry() -> AsyncIterator[RunningRegistry]:
    async with running_registry() as running:
        yield running


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(Deadlines(connect_s=5, first_byte_s=5, idle_s=0.2)) as opened:
        yield opened


@pytest.fixture
def repository(registry: RunningRegistry, transport: Transport) -> RegistryRepository:
    return RegistryRepository(
        RegistryClient(RegistryHost.of(registry.address), transport, backoff=_FAST), "team/image"
    )


@pytest.fixture
async def image(repository: RegistryRepository, registry: RunningRegistry) -> ImageBlobs:
    image = random_image(1, layers=1)
    await push_image(repository, image, "v1")
    registry.requests.clear()
    return image


@pytest.mark.parametrize(
    "fault",
    [f.ShortBody(100), f.ResetBody(100), f.StallBody(100), f.ShortBody(0)],
    ids=["short", "reset", "stall", "none"],
)
async def test_a_broken_read_goes_on_where_it_broke_off(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs, fault: f.Fault
) -> None:
    layer = image.manifest.layers[0]
    registry.faults.on("GET", "/blobs/", fault, fault)
    assert await read_blob(repository.blobs, layer) == image.layers[0].data
    assert registry.faults.is_spent
    assert len(registry.asked("GET", "/blobs/")) == 3


async def test_a_resume_whose_range_is_ignored_gives_no_byte_twice(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs
) -> None:
    registry.faults.on("GET", "/blobs/", f.ShortBody(500), f.IgnoreRange())
    assert await read_blob(repository.blobs, image.manifest.layers[0]) == image.layers[0].data


async def test_a_range_that_is_ignored_is_cut_out(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs
) -> None:
    registry.faults.on("GET", "/blobs/", f.IgnoreRange())
    digest = image.manifest.layers[0].digest
    assert await read_all(repository.blobs, digest, ByteRange(7, 19)) == image.layers[0].data[7:19]


async def test_reads_without_progress_give_up(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs
) -> None:
    registry.faults.on("GET", "/blobs/", *[f.ShortBody(0)] * 50)
    with pytest.raises(TransportError):
        await read_all(repository.blobs, image.manifest.layers[0].digest)
    assert len(registry.asked("GET", "/blobs/")) < 10


@pytest.mark.parametrize("fault", [f.WrongBytes(3), f.CutBody(), f.LongBody()], ids=["flip", "cut", "extend"])
async def test_a_lie_about_content_is_an_integrity_error(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs, fault: f.Fault
) -> None:
    registry.faults.on("GET", "/blobs/", fault)
    with pytest.raises(IntegrityError):
        await read_blob(repository.blobs, image.manifest.layers[0])
    registry.faults.on("GET", "/manifests/", fault)
    with pytest.raises(OciError):
        await repository.manifest(image.raw.digest)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_failure_is_tried_again_as_often_as_the_backoff_says(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs, status: int
) -> None:
    registry.faults.on("GET", "/manifests/", f.Status(status), f.Status(status))
    assert await repository.manifest("v1") == image.raw
    registry.requests.clear()
    registry.faults.on("GET", "/manifests/", *[f.Status(status)] * 20)
    with pytest.raises(RegistryError):
        await repository.manifest("v1")
    assert len(registry.requests) == 3


@pytest.mark.parametrize(
    ("value", "expected_s"), [("7", 7.0), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("²", None)]
)
async def test_retry_after_is_read_or_ignored(
    repository: RegistryRepository,
    registry: RunningRegistry,
    image: ImageBlobs,
    value: str,
    expected_s: float | None,
) -> None:
    registry.faults.on("GET", "/manifests/", *[f.Status(429, {"Retry-After": value})] * 3)
    with pytest.raises(RateLimited) as caught:
        await repository.manifest("v1")
    assert caught.value.retry_after_s == expected_s


@pytest.mark.parametrize(("status", "error"), [(401, Unauthorized), (403, Denied), (400, RegistryError)])
async def test_a_final_answer_is_not_tried_again(
    repository: RegistryRepository,
    registry: RunningRegistry,
    image: ImageBlobs,
    status: int,
    error: type[OciError],
) -> None:
    registry.faults.on("GET", "/manifests/", f.Status(status), f.Status(status))
    with pytest.raises(error):
        await repository.manifest("v1")
    assert len(registry.requests) == 1


@pytest.mark.parametrize("location", ["", "http://[::1"], ids=["none", "unclosed address"])
async def test_a_redirect_to_nowhere_is_an_error_of_the_registry(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs, location: str
) -> None:
    registry.faults.on("GET", "/blobs/", f.Redirect(location))
    with pytest.raises(RegistryError, match="redirects to nowhere"):
        await read_all(repository.blobs, image.manifest.layers[0].digest)


async def test_endless_redirects_end(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs
) -> None:
    path = f"{registry.origin}/v2/team/image/blobs/{image.manifest.layers[0].digest}"
    registry.faults.on("GET", "/blobs/", *[f.Redirect(path)] * 50)
    with pytest.raises(RegistryError, match="too many redirects"):
        await read_all(repository.blobs, image.manifest.layers[0].digest)


async def test_a_silent_registry_times_out(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs
) -> None:
    registry.faults.on("GET", "/manifests/", *[f.StallBody(1)] * 3)
    with pytest.raises(TimedOut, match="between two pieces"):
        await repository.manifest("v1")


async def test_nobody_listening_is_named(transport: Transport) -> None:
    address = f"127.0.0.1:{free_port()}"
    client = RegistryClient(RegistryHost.of(address), transport, backoff=_FAST)
    with pytest.raises(ConnectFailed, match=f"cannot reach {address}"):
        await client.manifest("a", "b")


async def test_tags_come_from_every_page(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs
) -> None:
    registry.tags_per_page = 2
    for number in range(5):
        await repository.put_manifest(image.raw, f"t{number}")
    assert list(await repository.tags()) == ["t0", "t1", "t2", "t3", "t4", "v1"]


_AUTH = TokenAuth("user", "s3cret", public=frozenset({"open/image"}))


def _client(registry: RunningRegistry, transport: Transport, password: str | None) -> RegistryClient:
    known = {} if password is None else {registry.address: Credentials("user", Secret(password))}
    return RegistryClient(
        RegistryHost.of(registry.address), transport, StaticCredentials(known), backoff=_FAST
    )


async def test_a_token_is_fetched_once_per_scope_and_used_again(transport: Transport) -> None:
    async with running_registry(auth=_AUTH) as registry:
        repository = RegistryRepository(_client(registry, transport, "s3cret"), "team/image")
        await push_image(repository, random_image(1), "v1")
        for _ in range(3):
            await repository.manifest("v1")
        assert len(registry.asked("GET", "/token")) == 2, "one to pull, one to push"


async def test_an_expired_token_is_replaced(transport: Transport) -> None:
    async with running_registry(auth=_AUTH) as registry:
        repository = RegistryRepository(_client(registry, transport, "s3cret"), "team/image")
        await push_image(repository, random_image(1), "v1")
        registry.tokens.clear()
        assert await repository.manifest("v1") == random_image(1).raw


@pytest.mark.parametrize("password", [None, "wrong"], ids=["none", "wrong"])
async def test_without_good_credentials_access_is_refused_without_showing_them(
    transport: Transport, password: str | None
) -> None:
    async with running_registry(auth=_AUTH) as registry:
        with pytest.raises(Unauthorized, match="wants credentials for team/image") as caught:
            await _client(registry, transport, password).manifest("team/image", "v1")
        assert "wrong" not in str(caught.value)


async def test_a_stream_ends_normally_only_when_it_is_what_was_named() -> None:
    async def stream(data: bytes) -> AsyncIterator[bytes]:
        yield data

    digest = Digest.of(b"data")
    assert b"".join([piece async for piece in verified(stream(b"data"), digest, 4, "here")]) == b"data"
    for wrong in (b"dat", b"dataa", b"daty"):
        with pytest.raises(IntegrityError):
            [piece async for piece in verified(stream(wrong), digest, 4, "here")]


async def test_a_blob_that_several_push_at_once_is_uploaded_once(
    repository: RegistryRepository, registry: RunningRegistry
) -> None:
    data = b"the same" * 1000
    digest = Digest.of(data)

    async def push() -> None:
        async with repository.blobs.ingest(digest, len(data)) as writer:
            await writer.write(data)
            await writer.commit()

    await asyncio.gather(*(push() for _ in range(5)))
    assert len(registry.asked("POST", "/blobs/uploads/")) == 1


async def test_a_manifests_push_is_repeated(
    repository: RegistryRepository, registry: RunningRegistry, image: ImageBlobs
) -> None:
    raw = await repository.manifest("v1")
    registry.faults.on("PUT", "/manifests/", f.Status(503), f.Status(502))
    await repository.put_manifest(raw, "v2")
    assert (await repository.resolve("v2")).digest == raw.digest
