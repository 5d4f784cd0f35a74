"""Real clients and real registries around the facade, run as the command itself."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ocikit.distribution.client import RegistryClient, RegistryHost
from ocikit.distribution.credentials import Credentials, StaticCredentials
from ocikit.distribution.repository import RegistryRepository
from ocikit.distribution.transport import Transport
from ocikit.layout import LayoutRepository
from ocikit.repository import Repository
from registry_facade.hosts import Mirror, undo, write
from servicekit.secrets import Secret
from tests.support.containerd import Containerd
from tests.support.docker_registry import DockerRegistry, DockerRegistryFactory
from tests.support.facade import facade_process, metric_value
from tests.support.images import BUSYBOX, image_documents, made_layer, push_image
from tests.support.scripted_registry import scripted_registry

SHARED = made_layer({"usr/share/large": os.urandom(2 << 20)})
ONE = made_layer({"opt/one": os.urandom(1 << 20)})
TWO = made_layer({"opt/two": os.urandom(1 << 20)})


def busybox_layer():
    binary = BUSYBOX.read_bytes()
    return made_layer({"bin/busybox": binary, "bin/cat": binary, "etc/greeting": b"hello from the image\n"})


def skopeo(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["skopeo", *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def opened(url: str) -> http.client.HTTPResponse:
    answer: http.client.HTTPResponse = urllib.request.urlopen(url)  # noqa: S310 (our own http URL)
    return answer


def received(url: str) -> float:
    with opened(f"{url}/metrics") as answer:
        return metric_value(answer.read().decode(), "facade_received_bytes_total", source="upstream")


async def push_two(repository: Repository) -> None:
    await push_image(repository, "one", [SHARED, ONE])
    await push_image(repository, "two", [SHARED, TWO])


async def push_to(registry: DockerRegistry, name: str, *images: tuple[str, list]) -> None:
    async with Transport() as transport:
        client = RegistryClient(RegistryHost(registry.address, registry.origin), transport)
        for tag, layers in images:
            await push_image(RegistryRepository(client, name), tag, layers)


@pytest.mark.component("skopeo", "docker-registry")
async def test_second_of_two_overlapping_images_fetches_only_what_the_first_lacked(
    docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    await push_to(docker_registry, "team/app", ("one", [SHARED, ONE]), ("two", [SHARED, TWO]))

    def pulls() -> None:
        with facade_process(tmp_path, "--upstream", f"hub.test={docker_registry.origin}") as facade:
            source = f"docker://{facade.address}/hub.test/team/app"
            skopeo("copy", "--src-tls-verify=false", f"{source}:one", f"oci:{tmp_path}/got:one")
            first = received(facade.url)
            assert len(SHARED.blob) + len(ONE.blob) <= first <= len(SHARED.blob) + len(ONE.blob) + 4096
            skopeo("copy", "--src-tls-verify=false", f"{source}:two", f"oci:{tmp_path}/fresh:two")
            second = received(facade.url) - first
            assert len(TWO.blob) <= second <= len(TWO.blob) + 4096
            skopeo("copy", "--src-tls-verify=false", f"{source}:two", f"oci:{tmp_path}/warm:two")
            assert received(facade.url) == first + second

    await asyncio.to_thread(pulls)
    pulled = await LayoutRepository(tmp_path / "warm").manifest("two")
    async with Transport() as transport:
        client = RegistryClient(RegistryHost(docker_registry.address, docker_registry.origin), transport)
        assert pulled.digest == (await client.manifest("team/app", "two")).digest


@pytest.mark.component("skopeo", "umoci")
async def test_composed_image_unpacks_with_the_added_file(tmp_path: Path) -> None:
    await push_two(LayoutRepository(tmp_path / "layout", create=True))
    specs = tmp_path / "specs"
    specs.mkdir()
    (tmp_path / "motd").write_text("welcome")
    spec = {
        "base": "images/app:one",
        "layers": ["images/app:two", {"file": str(tmp_path / "motd"), "at": "/etc/motd"}],
    }
    (specs / "ws-1.json").write_text(json.dumps(spec))

    def pull() -> None:
        upstream = f"images=oci:{tmp_path}/layout"
        with facade_process(tmp_path / "facade", "--upstream", upstream, "--image-specs", specs) as facade:
            skopeo(
                "copy",
                "--src-tls-verify=false",
                f"docker://{facade.address}/workspaces/ws-1:latest",
                f"oci:{tmp_path}/got:ws",
            )

    await asyncio.to_thread(pull)
    argv = ["umoci", "unpack", "--rootless", "--image", f"{tmp_path}/got:ws", str(tmp_path / "bundle")]
    await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, timeout=60)
    root = tmp_path / "bundle" / "rootfs"
    assert (root / "etc/motd").read_text() == "welcome"
    assert {path.name for path in (root / "opt").iterdir()} == {"one", "two"}


@pytest.mark.component("containerd", "runc", "docker-registry", "busybox")
async def test_containerd_pulls_through_hosts_toml_and_runs_cat(
    containerd: Containerd, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    await push_to(docker_registry, "team/box", ("v1", [busybox_layer()]))

    def pull_and_run() -> None:
        with facade_process(tmp_path, "--upstream", f"hub.test={docker_registry.origin}") as facade:
            write("containerd", Mirror("hub.test", facade.url), containerd.certs_d)
            containerd.pull("hub.test/team/box:v1")
            said = containerd.run("hub.test/team/box:v1", "greeter", "/bin/cat", "/etc/greeting")
            assert said == "hello from the image\n"
            assert received(facade.url) > 0

    await asyncio.to_thread(pull_and_run)


@pytest.mark.component("containerd", "docker-registry", "busybox")
async def test_containerd_falls_back_to_the_registry_when_the_facade_is_down(
    containerd: Containerd, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    await push_to(docker_registry, "team/box", ("v1", [busybox_layer()]))

    def pull() -> None:
        with facade_process(
            tmp_path, "--upstream", f"{docker_registry.address}={docker_registry.origin}"
        ) as facade:
            write("containerd", Mirror(docker_registry.address, facade.url), containerd.certs_d)
        containerd.pull(f"{docker_registry.address}/team/box:v1", "--plain-http")

    await asyncio.to_thread(pull)


@pytest.mark.component("docker-registry")
async def test_many_clients_cost_the_registry_one_request_per_blob(
    docker_registry_factory: DockerRegistryFactory, tmp_path: Path
) -> None:
    blob = made_layer({"big": os.urandom(8 << 20)})
    with docker_registry_factory() as registry:
        await push_to(registry, "team/app", ("v1", [blob]))

        def pull(url: str) -> None:
            with opened(f"{url}/v2/team/app/blobs/{blob.layer.descriptor.digest}") as answer:
                assert answer.read() == blob.blob

        with facade_process(tmp_path, "--upstream", f"hub.test={registry.origin}") as facade:
            threads = [threading.Thread(target=pull, args=(facade.url,)) for _ in range(12)]
            for thread in threads:
                thread.start()
            await asyncio.to_thread(lambda: [thread.join() for thread in threads])
            assert received(facade.url) == len(blob.blob)


@pytest.mark.component("skopeo")
async def test_kill_in_mid_download_leaves_nothing_that_is_served_wrongly(tmp_path: Path) -> None:
    """SIGKILL while a pull runs, again and again; the pull after each is right."""
    layout = LayoutRepository(tmp_path / "layout", create=True)
    large = made_layer({"big": os.urandom(24 << 20)})
    await push_image(layout, "v1", [large])
    digest = large.layer.descriptor.digest

    def rounds() -> None:
        for stop_after in (1 << 16, 1 << 20, 8 << 20):
            with (
                facade_process(tmp_path / "facade", "--upstream", f"images=oci:{tmp_path}/layout") as facade,
                opened(f"{facade.url}/v2/x/blobs/{digest}") as answer,
            ):
                answer.read(stop_after)
                facade.process.kill()
        with facade_process(tmp_path / "facade", "--upstream", f"images=oci:{tmp_path}/layout") as facade:
            with opened(f"{facade.url}/v2/x/blobs/{digest}") as answer:
                assert answer.read() == large.blob
            skopeo(
                "copy", "--src-tls-verify=false", f"docker://{facade.address}/x:v1", f"oci:{tmp_path}/got:v1"
            )

    await asyncio.to_thread(rounds)


async def test_sigterm_lets_a_running_pull_end(tmp_path: Path) -> None:
    layout = LayoutRepository(tmp_path / "layout", create=True)
    large = made_layer({"big": os.urandom(16 << 20)})
    await push_image(layout, "v1", [large])

    def pull() -> None:
        with facade_process(tmp_path / "facade", "--upstream", f"images=oci:{tmp_path}/layout") as facade:
            path = f"/v2/x/blobs/{large.layer.descriptor.digest}"
            with opened(f"{facade.url}{path}") as answer:
                start = answer.read(1000)
                facade.process.signal(signal.SIGTERM)
                assert start + answer.read() == large.blob
            assert facade.process.wait(15) == 0

    await asyncio.to_thread(pull)


def test_unwritable_cache_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a directory")
    argv = ["facade", "serve", "--listen", "127.0.0.1:0", "--cache-dir", str(tmp_path / "cache")]
    done = command(*argv, "--upstream", "a.test=oci:/nowhere")
    assert done.returncode == 11
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/cache/catalog.sqlite: ")
    assert "Traceback" not in done.stderr


def test_all_problems_of_the_settings_are_told_at_once() -> None:
    done = command(
        "facade", "serve", "--listen", "host:x", "--cache-max-bytes", "much", "--upstream", "a=ftp://b"
    )
    assert done.returncode == 4
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 2
    done = command("facade", "serve", "--upstream", "a=ftp://b", "--workers", "0")
    assert done.returncode == 4
    assert "facade.workers" in done.stderr
    assert "facade.upstreams" in done.stderr


def test_hosts_command_writes_and_takes_back(tmp_path: Path) -> None:
    fixed = ("facade", "hosts", "--registry", "docker.io", "--facade", "http://127.0.0.1:5000")
    out = ("--out", str(tmp_path))
    path = tmp_path / "docker.io" / "hosts.toml"
    assert json.loads(command(*fixed, *out, "--json").stdout) == {"written": str(path)}
    assert command(*fixed, *out, "--client", "cri-o").returncode == 0
    assert (tmp_path / "lapstrake-docker.io.conf").exists()
    daemon = ("--client", "docker", "--out", str(tmp_path / "daemon.json"))
    assert command(*fixed, *daemon).returncode == 0
    for client in (out, (*out, "--client", "skopeo"), daemon):
        assert json.loads(command(*fixed, *client, "--undo", "--json").stdout) == {"removed": True}
    assert list(tmp_path.iterdir()) == []
    assert command(*fixed[:4], *out).returncode == 2


def test_hosts_command_says_what_it_cannot_change(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_text("{")
    done = command(
        *("facade", "hosts", "--registry", "docker.io", "--facade", "http://127.0.0.1:5000"),
        *("--client", "docker", "--out", str(tmp_path / "daemon.json")),
    )
    assert done.returncode == 4
    assert f"{tmp_path}/daemon.json: not JSON" in done.stderr


@pytest.mark.component("docker-registry")
@pytest.mark.parametrize(
    "client",
    [
        pytest.param("skopeo", marks=pytest.mark.component("skopeo")),
        pytest.param("podman", marks=pytest.mark.component("podman", "busybox")),
    ],
)
async def test_registries_conf_sends_a_client_through_the_facade_and_past_it(
    client: str, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    """By the registry's own name: through the facade while it runs, from the registry when it does not."""
    await push_to(docker_registry, "team/box", ("v1", [busybox_layer()]), ("v2", [busybox_layer(), ONE]))
    drop_ins = tmp_path / ".config/containers/registries.conf.d"
    image = f"{docker_registry.address}/team/box"

    def pulls() -> None:
        with facade_process(
            tmp_path / "facade", "--upstream", f"{docker_registry.address}={docker_registry.origin}"
        ) as facade:
            write("podman", Mirror(docker_registry.address, facade.url), drop_ins)
            pull_at_home(client, f"{image}:v1", tmp_path)
            assert received(facade.url) > 0
        pull_at_home(client, f"{image}:v2", tmp_path)
        assert undo("podman", docker_registry.address, drop_ins)

    await asyncio.to_thread(pulls)


@pytest.mark.component("docker-registry", "crane")
async def test_crane_pulls_and_validates_through_the_facade(
    docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    """It demands length and digest of every HEAD, and hashes config and layers, compressed and not."""
    await push_to(docker_registry, "team/app", ("one", [SHARED, ONE]))

    def pulls() -> None:
        with facade_process(tmp_path, "--upstream", f"hub.test={docker_registry.origin}") as facade:
            image = f"{facade.address}/hub.test/team/app:one"

            def crane(*arguments: str) -> str:
                argv = ["crane", *arguments, "--insecure"]
                done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, done.stderr
                return done.stdout.strip()

            original = crane("digest", f"{docker_registry.address}/team/app:one")
            assert crane("digest", image) == original
            crane("validate", "--remote", image)
            crane("pull", "--format=oci", image, str(tmp_path / "pulled"))
            assert original in (tmp_path / "pulled" / "index.json").read_text()
            assert crane("ls", f"{facade.address}/hub.test/team/app") == "one"

    await asyncio.to_thread(pulls)


# bcrypt of secret-of-alice and secret-of-bob, at its lowest cost
ALICE = "alice:$2b$05$abcdefghijklmnopqrstuu1Uu84v11glUzUIYqnv1xIIPMk8cfLlK\n"
BOB = "bob:$2b$05$abcdefghijklmnopqrstuulNbVcQ.fGMp0r/EKBz3VCJyG3dmHNda\n"


@pytest.mark.component("docker-registry", "skopeo", "containerd")
async def test_a_registrys_own_users_pull_their_images_through_a_shared_cache(
    docker_registry_factory: DockerRegistryFactory, containerd: Containerd, tmp_path: Path
) -> None:
    """Two registries with a user each, one facade that knows no password, skopeo and containerd."""
    with docker_registry_factory(htpasswd=ALICE) as hers, docker_registry_factory(htpasswd=BOB) as his:
        await push_as("alice", hers, ("v1", [busybox_layer(), ONE]))
        await push_as("bob", his, ("v1", [busybox_layer(), TWO]))
        upstreams = ("--upstream", f"hers.test={hers.origin}", "--upstream", f"his.test={his.origin}")
        delegated = {
            "LAPSTRAKE_FACADE_ACCESS_MODE": "delegated",
            "LAPSTRAKE_FACADE_ADMIN_TOKEN": "of the operator",
        }

        def pulls() -> None:
            with facade_process(tmp_path, *upstreams, env=delegated) as facade:

                def copies(user: str, registry: str) -> bool:
                    login = ("--src-creds", f"{user}:secret-of-{user}") if user else ("--src-no-creds",)
                    source = f"docker://{facade.address}/{registry}/team/app:v1"
                    target = f"oci:{tmp_path}/{user}-{registry}:x"
                    done = skopeo("copy", "--src-tls-verify=false", *login, source, target, check=False)
                    return done.returncode == 0

                assert copies("alice", "hers.test")
                assert copies("bob", "his.test")
                assert not copies("bob", "hers.test")
                assert not copies("", "hers.test")
                asked = "facade_received_bytes_total"
                before = metric_value(opened(f"{facade.url}/metrics").read().decode(), asked)
                write("containerd", Mirror("hers.test", facade.url), containerd.certs_d)
                containerd.pull("hers.test/team/app:v1", "--user", "alice:secret-of-alice")
                assert metric_value(opened(f"{facade.url}/metrics").read().decode(), asked) == before
                assert containerd.pull("hers.test/team/app:v1", "--user", "bob:x", check=False).returncode

        await asyncio.to_thread(pulls)


async def push_as(user: str, registry: DockerRegistry, *images: tuple[str, list]) -> None:
    login = Credentials(user, Secret(f"secret-of-{user}"))
    async with Transport() as transport:
        host = RegistryHost(registry.address, registry.origin)
        client = RegistryClient(host, transport, StaticCredentials({registry.address: login}))
        for tag, layers in images:
            await push_image(RegistryRepository(client, "team/app"), tag, layers)


def pull_at_home(client: str, image: str, home: Path) -> None:
    """With ``home`` for the client's settings; podman takes no run root of more than 50 characters."""
    with tempfile.TemporaryDirectory(prefix="podman-") as short:
        stores = ("--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver", "vfs")
        argv = ["skopeo", "copy", f"docker://{image}", f"oci:{home}/pulled:x"]
        if client == "podman":
            argv = ["podman", *stores, "pull", "--quiet", image]
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CONFIG_HOME": f"{home}/.config"}
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60, env=env)
        assert done.returncode == 0, done.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    import sys

    argv = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


async def test_each_pull_is_one_event_with_its_bytes_by_source(tmp_path: Path) -> None:
    """A cold pull, then a warm one of an image that shares a layer: two clients, two events."""
    await push_two(LayoutRepository(tmp_path / "layout", create=True))

    def pulls() -> list[dict]:
        with facade_process(tmp_path, "--upstream", f"images=oci:{tmp_path}/layout") as facade:
            for name, tag in (("cold", "one"), ("warm", "two")):
                path = f"{facade.url}/v2/team/{name}"
                manifest = json.loads(opened(f"{path}/manifests/{tag}").read())
                for item in (manifest["config"], *manifest["layers"]):
                    opened(f"{path}/blobs/{item['digest']}").read()
            facade.process.signal(signal.SIGTERM)
            assert facade.process.wait(15) == 0
            return [json.loads(line) for line in facade.process.log_text().splitlines() if '"pull"' in line]

    cold, warm = await asyncio.to_thread(pulls)
    assert (cold["image"], cold["references"], cold["requests"], cold["blobs"]) == (
        "images/team/cold",
        ["one"],
        4,
        3,
    )
    layers = len(SHARED.blob) + len(ONE.blob)
    assert layers <= sum(cold["sent_bytes"].values()) <= layers + 4096
    assert cold["received_bytes"] == {"upstream": sum(cold["sent_bytes"].values())}
    assert warm["sent_bytes"]["disk"] >= len(SHARED.blob)
    assert len(TWO.blob) <= warm["received_bytes"]["upstream"] <= len(TWO.blob) + 4096
    assert not cold["stale"]
    assert 0 < cold["waited_s"] <= cold["duration_s"]


async def test_purge_reaches_every_worker(tmp_path: Path) -> None:
    """Each holds the tag in memory, fresh for a day; one of them is told."""
    async with scripted_registry() as upstream:
        first = upstream.add_manifest(image_documents([ONE])[0], "v1")
        arguments = ("--upstream", f"hub.test={upstream.origin}", "--workers", "3")
        env = {"LAPSTRAKE_FACADE_TAG_FRESH_S": "86400"}

        def digests(url: str) -> set[str]:
            """From a connection each, which the kernel spreads over the workers."""
            answers = [opened(f"{url}/v2/x/manifests/v1") for _ in range(40)]
            return {answer.headers["Docker-Content-Digest"] for answer in answers}

        def purge(url: str) -> None:
            name = "/facade/v1/image?name=hub.test/x:v1"
            request = urllib.request.Request(f"{url}{name}", method="DELETE")  # noqa: S310 (our own http URL)
            with urllib.request.urlopen(request) as answer:  # noqa: S310 (our own http URL)
                assert json.loads(answer.read())["tag_forgotten"]

        with facade_process(tmp_path, *arguments, env=env) as facade:
            assert await asyncio.to_thread(digests, facade.url) == {first}
            moved = upstream.add_manifest(image_documents([TWO])[0], "v1")
            assert await asyncio.to_thread(digests, facade.url) == {first}
            await asyncio.to_thread(purge, facade.url)
            async with asyncio.timeout(20):
                while await asyncio.to_thread(digests, facade.url) != {moved}:
                    await asyncio.sleep(0.1)


async def test_explain_and_pin_beside_a_running_facade(tmp_path: Path) -> None:
    await push_image(LayoutRepository(tmp_path / "layout", create=True), "one", [ONE])
    digest = ONE.layer.descriptor.digest

    def ask() -> None:
        with facade_process(tmp_path, "--upstream", f"images=oci:{tmp_path}/layout") as facade:
            opened(f"{facade.url}/v2/app/manifests/one").read()
            opened(f"{facade.url}/v2/app/blobs/{digest}").read()
        fixed = (digest, "--cache-dir", str(tmp_path / "cache"))
        assert command("facade", "pin", *fixed).returncode == 0
        found = json.loads(command("facade", "explain", *fixed, "--json").stdout)
        assert (found["state"], found["source"], found["pinned"]) == ("stored", "upstream", 1)
        assert found["size"] == len(ONE.blob)
        assert found["seen_in"] == ["images/app"]
        assert found["referred_to_by"][0].startswith("images/app@sha256:")
        assert found["tags"] == ["images/app:one"]
        lines = command("facade", "explain", *fixed).stdout.splitlines()
        assert "tags: ['images/app:one']" in lines
        assert any(line.startswith("verified: 20") and line.endswith(" UTC") for line in lines)
        assert command("facade", "pin", "sha256:" + "0" * 64, *fixed[1:]).returncode == 5

    await asyncio.to_thread(ask)
