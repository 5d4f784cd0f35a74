"""Image specs by gitpod's gRPC protocol, from a real gRPC server."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocikit.digest import Digest
from ocikit.layout import LayoutRepository
from ocikit.manifest import Manifest
from registry_facade.errors import ImageSpecInvalid
from registry_facade.image_spec import InlineTar, TarLayer
from registry_facade.settings import SpecServiceSettings
from registry_facade.specs.gitpod import decode_response, encode_request, fields
from tests.support.certificates import make_certificate
from tests.support.facade import running_facade
from tests.support.images import made_layer, push_image

grpc = pytest.importorskip("grpc")
aio = pytest.importorskip("grpc.aio")

UPSTREAMS = {"images"}


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def message(*items: tuple[int, bytes | str | int]) -> bytes:
    """By the specification of the wire format: key, then a number or length and bytes."""
    out = b""
    for number, value in items:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


SPEC = message(
    (1, "images/x:base"),
    (7, "images/x:layer"),
    (2, "images/x:ide"),
    (5, "images/x:supervisor"),
    (3, message((2, message((1, b"a tar"))))),
    (99, "of tomorrow"),
)


def test_layers_come_in_gitpods_order_and_unknown_fields_are_skipped() -> None:
    spec = decode_response(message((1, SPEC)), "ws", UPSTREAMS)
    assert [image.text for image in spec.images] == [
        "images/x:base",
        "images/x:ide",
        "images/x:supervisor",
        "images/x:layer",
    ]
    assert spec.layers[-1] == InlineTar(b"a tar")
    assert spec.gitpod_compatible


def test_remote_layer_without_a_diff_id_is_not_compressed() -> None:
    digest = Digest.of(b"x")
    remote = message((1, "https://a.test/x.tar"), (2, digest), (5, 300))
    spec = decode_response(message((1, message((1, "images/x"), (3, message((1, remote)))))), "ws", UPSTREAMS)
    (layer,) = spec.layers
    assert isinstance(layer, TarLayer)
    assert (layer.digest, layer.diff_id, layer.size) == (digest, digest, 300)


BAD = {
    "empty": b"",
    "no base": message((1, message((2, "images/x:ide")))),
    "unknown upstream": message((1, message((1, "evil.test/x")))),
    "directory": message((1, message((1, "oci:/var/lib/x:y")))),
    "plain http": message((1, message((1, "images/x"), (3, message((1, message((1, "http://a.test/x")))))))),
    "no content": message((1, message((1, "images/x"), (3, b"")))),
    "not a message": b"\xff\xff\xff",
    "cut": message((1, SPEC))[:-3],
    "not text": message((1, message((1, b"\xff\xfe")))),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_message_that_is_no_spec_is_refused(data: bytes) -> None:
    with pytest.raises(ImageSpecInvalid):
        decode_response(data, "ws", UPSTREAMS)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_invalid(data: bytes) -> None:
    with contextlib.suppress(ImageSpecInvalid):
        decode_response(data, "ws", UPSTREAMS)


@given(st.lists(st.tuples(st.integers(1, 2**28), st.integers(0, 2**64 - 1) | st.binary(max_size=300))))
def test_fields_read_back_as_they_were_written(items: list[tuple[int, int | bytes]]) -> None:
    assert list(fields(message(*items))) == items


@given(st.text(max_size=300))
def test_request_carries_the_id(image_id: str) -> None:
    assert list(fields(encode_request(image_id))) == [(1, image_id.encode())]


@contextlib.asynccontextmanager
async def grpc_server(specs: dict[str, bytes], credentials: Any = None) -> AsyncIterator[int]:
    async def answer(request: bytes, context: Any) -> bytes:
        ((_, image_id),) = fields(request)
        if image_id == b"broken":
            await context.abort(grpc.StatusCode.INTERNAL, "of no use")
        if image_id.decode() not in specs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such instance")
        return message((1, specs[image_id.decode()]))

    server = aio.server()
    handlers = {"GetImageSpec": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("registryfacade.SpecProvider", handlers),)
    )
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@pytest.fixture
async def upstreams(tmp_path: Path) -> dict[str, str]:
    repository = LayoutRepository(tmp_path / "layout", create=True)
    layer = made_layer({"ide/code": b"an editor"})
    await push_image(repository, "base", [made_layer({"bin/sh": b"a shell"})], {"Env": ["PATH=/bin"]})
    await push_image(repository, "ide", [layer], {"Env": ["GITPOD_ENV_APPEND_PATH=/ide:"]})
    return {"images": f"oci:{tmp_path}/layout"}


async def test_image_of_a_grpc_service_is_composed_with_gitpods_meaning(
    upstreams: dict[str, str], tmp_path: Path
) -> None:
    direct = message((3, message((2, message((1, b"\0" * 1024))))))
    specs = {"ws": message((1, "images/x:base"), (2, "images/x:ide")) + direct}
    async with grpc_server(specs) as port:
        own = SpecServiceSettings(url=f"grpc://127.0.0.1:{port}")
        async with running_facade(tmp_path / "cache", upstreams=upstreams, spec_service=own) as facade:
            status, _, body = await facade.get("/v2/workspaces/ws/manifests/latest")
            assert status == 200, body
            manifest = Manifest.parse(body)
            _, _, config = await facade.get(f"/v2/workspaces/ws/blobs/{manifest.config.digest}")
            assert json.loads(config)["config"]["Env"] == ["PATH=/ide:/bin"]
            _, _, last = await facade.get(f"/v2/workspaces/ws/blobs/{manifest.layers[-1].digest}")
            assert last == b"\0" * 1024
            assert (await facade.get("/v2/workspaces/nope/manifests/latest"))[0] == 404
            assert (await facade.get("/v2/workspaces/broken/manifests/latest"))[0] == 503


@pytest.mark.component("openssl")
async def test_grpc_service_is_shown_a_certificate(upstreams: dict[str, str], tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    own_certificate, own_key = make_certificate(tmp_path, "facade")
    pair = ((key.read_bytes(), certificate.read_bytes()),)
    credentials = grpc.ssl_server_credentials(pair, own_certificate.read_bytes(), require_client_auth=True)
    async with grpc_server({"ws": message((1, "images/x:base"))}, credentials) as port:
        url = f"grpcs://localhost:{port}"
        shown = SpecServiceSettings(url=url, ca=certificate, certificate=own_certificate, key=own_key)
        async with running_facade(tmp_path / "one", upstreams=upstreams, spec_service=shown) as facade:
            assert (await facade.get("/v2/workspaces/ws/manifests/latest"))[0] == 200
        bare = SpecServiceSettings(url=url, ca=certificate, timeout_s=2.0)
        async with running_facade(tmp_path / "two", upstreams=upstreams, spec_service=bare) as facade:
            assert (await facade.get("/v2/workspaces/ws/manifests/latest"))[0] == 503
