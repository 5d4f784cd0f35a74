"""Pre-pulling: into the cache, behind every real pull, reporting what was fetched and what was there."""

import asyncio
import json
import random

import pytest
from click.testing import CliRunner

from cli.facade import warm as cli_warm
from ocikit.descriptor import Platform
from ocikit.errors import Denied
from ocikit.layout import LayoutRepository
from registry_facade.settings import WarmSettings
from registry_facade.warming.handlers import PATH
from tests.support.facade import facade_process, running_facade
from tests.support.images import AMD64, image_documents, made_layer, push_image, push_index
from tests.support.scripted_registry import scripted_registry

LAYERS = [made_layer({f"file{number}": random.Random(number).randbytes(400_000)}) for number in range(3)]
MANIFEST, CONFIG = image_documents(LAYERS)
BYTES = sum(len(layer.blob) for layer in LAYERS) + len(CONFIG)


@pytest.fixture
async def upstream():
    async with scripted_registry() as registry:
        for made in LAYERS:
            registry.add_blob(made.blob)
        registry.add_blob(CONFIG)
        registry.add_manifest(MANIFEST, "v1")
        yield registry


async def warmed(facade, **asked):
    async with asyncio.timeout(30), facade.session.post(PATH, json=asked) as response:
        assert response.status == 200
        return [json.loads(line) async for line in response.content]


async def test_an_image_is_fetched_once_and_there_the_next_time(tmp_path, upstream):
    async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}) as facade:
        (first,) = await warmed(facade, images=["hub.test/team/app:v1"])
        assert (first["error"], first["fetched_blobs"], first["there_blobs"]) == ("", 4, 0)
        assert first["fetched_bytes"] == BYTES
        (again,) = await warmed(facade, images=["team/app:v1"])
        assert (again["fetched_blobs"], again["there_blobs"], again["there_bytes"]) == (0, 4, BYTES)
        assert await facade.metric("facade_warmed_bytes_total") == BYTES
        asked = upstream.count("GET", "/blobs/")
        for made in LAYERS:
            digest = made.layer.descriptor.digest
            assert (await facade.get(f"/v2/team/app/blobs/{digest}"))[2] == made.blob
        assert upstream.count("GET", "/blobs/") == asked == 4


async def test_one_image_that_fails_does_not_keep_the_others_from_coming(tmp_path, upstream):
    async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}) as facade:
        names = ["hub.test/team/app:gone", "elsewhere.test/x:1", "hub.test/team/app:v1"]
        results = await warmed(facade, images=names)
        assert [item["image"] for item in results] == names
        assert "not found" in results[0]["error"]
        assert [bool(item["error"]) for item in results] == [True, True, False]
        assert await facade.metric("facade_warmed_images_total", outcome="failed") == 2


async def test_a_rate_is_kept_until_somebody_pulls_for_real(tmp_path, upstream):
    async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}) as facade:
        slow = asyncio.create_task(warmed(facade, images=["hub.test/team/app:v1"], limit_rate="1K"))
        while not upstream.count("GET", LAYERS[0].layer.descriptor.digest):
            await asyncio.sleep(0.01)
        assert not slow.done()
        digest = LAYERS[0].layer.descriptor.digest
        async with asyncio.timeout(20):
            assert (await facade.get(f"/v2/team/app/blobs/{digest}"))[2] == LAYERS[0].blob
        assert not slow.done()
        assert upstream.count("GET", digest) == 1
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_it_waits_while_a_client_waits(tmp_path, upstream):
    other = upstream.add_blob(random.Random(9).randbytes(2 << 20))
    async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}) as facade:
        upstream.gate = asyncio.Event()
        pulling = asyncio.create_task(facade.get(f"/v2/team/app/blobs/{other}"))
        while not upstream.count("GET", other):
            await asyncio.sleep(0.01)
        warming = asyncio.create_task(warmed(facade, images=["hub.test/team/app:v1"]))
        while not upstream.count("GET", "manifests"):
            await asyncio.sleep(0.01)
        await asyncio.wait({warming}, timeout=0.3)
        assert sum(upstream.sent_bytes[made.layer.descriptor.digest] for made in LAYERS) < len(LAYERS[0].blob)
        upstream.gate.set()
        assert (await pulling)[0] == 200
        assert not (await warming)[0]["error"]


async def test_a_composed_image_is_warmed_by_its_name(tmp_path, upstream):
    (tmp_path / "specs").mkdir()
    spec = {"base": "hub.test/team/app:v1", "layers": [{"files": {"/etc/motd": {"text": "hi"}}}]}
    (tmp_path / "specs" / "ws.json").write_text(json.dumps(spec))
    settings = {"upstreams": {"hub.test": upstream.origin}, "image_specs": tmp_path / "specs"}
    async with running_facade(tmp_path / "cache", **settings) as facade:
        (result,) = await warmed(facade, images=["workspaces/ws"])
        assert (result["error"], result["fetched_blobs"], result["there_blobs"]) == ("", 3, 2)


async def test_the_platform_is_chosen(tmp_path):
    layout = LayoutRepository(tmp_path / "layout", create=True)
    arm = Platform("linux", "arm64")
    entries = [
        (platform, await push_image(layout, None, [made], platform=platform))
        for platform, made in zip((AMD64, arm), LAYERS, strict=False)
    ]
    await push_index(layout, "multi", entries)
    async with running_facade(tmp_path / "cache", upstreams={"x": f"oci:{layout.directory}"}) as facade:
        (result,) = await warmed(facade, images=["x/any:multi"], platform="linux/arm64")
        assert (result["error"], result["digest"]) == ("", entries[1][1].digest)
        (result,) = await warmed(facade, images=["x/any:multi"], platform="linux/s390x")
        assert "linux/s390x" in result["error"]


async def test_a_list_in_the_settings_is_warm_at_the_start(tmp_path, upstream):
    warm = WarmSettings(images=("hub.test/team/app:v1",), every_s=3600)
    async with running_facade(tmp_path, upstreams={"hub.test": upstream.origin}, warm=warm) as facade:
        async with asyncio.timeout(30):
            while not await facade.metric("facade_warmed_images_total", outcome="fetched"):
                await asyncio.sleep(0.02)
        assert await facade.metric("facade_warmed_blobs_total", outcome="fetched") == 4


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"images": []}', b'{"images": "x"}', b'{"images": ["x"], "platform": "amd64"}',
     b'{"images": ["x"], "limit_rate": "fast"}', b'{"images": ["x"], "limit_rate": "0"}',
     b'{"images": ["x"], "more": 1}'],
)  # fmt: skip
async def test_a_malformed_request_is_refused(tmp_path, body):
    async with running_facade(tmp_path) as facade, facade.session.post(PATH, data=body) as response:
        assert response.status == 400


async def test_it_is_not_offered_to_other_machines_on_the_address_for_pulls(tmp_path):
    everywhere = ("0.0.0.0", 0)  # noqa: S104 (what is tested)
    async with (
        running_facade(tmp_path, listen=everywhere) as facade,
        facade.session.post(PATH, json={"images": ["x"]}) as response,
    ):
        assert response.status == 404


async def test_the_command_reports_and_its_status_tells(tmp_path, upstream):
    with facade_process(tmp_path / "facade", "--upstream", f"hub.test={upstream.origin}") as facade:

        def run(*images):
            arguments = [*images, "--facade", facade.url, "--json", "--limit-rate", "1G/s"]
            result = CliRunner().invoke(cli_warm, arguments, standalone_mode=False)
            return result.return_value, json.loads(result.stdout)

        status, found = await asyncio.to_thread(run, "hub.test/team/app:v1")
        assert (status, found["failed"], found["images"][0]["fetched_blobs"]) == (0, 0, 4)
        status, found = await asyncio.to_thread(run, "hub.test/team/app:v1", "hub.test/team/app:gone")
        assert (status, found["failed"], found["images"][0]["there_blobs"]) == (3, 1, 4)


async def test_the_command_shows_the_token_of_the_settings(tmp_path, upstream, monkeypatch):
    token = "sesame"
    env = {"LAPSTRAKE_FACADE_ADMIN_TOKEN": token}
    arguments = ("--upstream", f"hub.test={upstream.origin}")
    with facade_process(tmp_path / "facade", *arguments, env=env) as facade:
        asked = ["hub.test/team/app:v1", "--facade", facade.url, "--json"]

        def run():
            return CliRunner().invoke(cli_warm, asked, standalone_mode=False)

        refused = await asyncio.to_thread(run)
        assert isinstance(refused.exception, Denied)
        monkeypatch.setenv(*env.popitem())
        assert (await asyncio.to_thread(run)).return_value == 0
