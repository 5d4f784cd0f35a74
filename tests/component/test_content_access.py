"""Who may do what with the agent's API: tokens, client certificates, links; and how that changes."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from content.app import content_service
from content.objects.opening import StoreOptions, open_store
from content.presigning import LinkSigner, presigner
from content.settings import ContentSettings
from servicekit.lifecycle import Listener, listening
from servicekit.settings import SettingsInvalid, load
from servicekit.tls import ServerTls
from tests.component.test_content_service import _finished, _post
from tests.support.certificates import make_certificate
from tests.support.processes import Process, accepts, free_port
from tests.support.s3 import S3Server
from tests.support.trees import make_tree

_ME = {"Authorization": "Bearer token-of-me-0123456789"}


def _flags(tmp_path: Path, **flags: str) -> dict[str, str]:
    (tmp_path / "workspaces" / "me").mkdir(parents=True, exist_ok=True)
    return {
        "store": f"file://{tmp_path}/store",
        "workspaces_root": str(tmp_path / "workspaces"),
        "state_dir": f"{tmp_path}/state",
        **flags,
    }


@contextlib.asynccontextmanager
async def _service(
    tmp_path: Path, tls: ServerTls | None = None, client_tls: ssl.SSLContext | None = None, **flags: str
) -> AsyncIterator[aiohttp.ClientSession]:
    settings = load(ContentSettings, "content", environ={}, flags=_flags(tmp_path, **flags))
    scheme, context = ("https", tls.context) if tls is not None else ("http", None)
    async with (
        content_service(settings) as (app, _),
        listening([Listener(app, "127.0.0.1", 0, tls=context)], drain_s=5) as [(host, port)],
        aiohttp.ClientSession(
            f"{scheme}://{host}:{port}", connector=aiohttp.TCPConnector(ssl=client_tls or True)
        ) as client,
    ):
        yield client


def _tokens(tmp_path: Path, tokens: dict[str, str]) -> str:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps(tokens))
    return str(file)


async def test_a_token_reaches_no_tree_of_another_owner(tmp_path: Path) -> None:
    """Not by a path, not by a link in a tree, not by a workspace's name."""
    file = _tokens(tmp_path, {"token-of-me-0123456789": "me"})
    other = tmp_path / "workspaces/you/secret"
    other.mkdir(parents=True)
    _flags(tmp_path)
    (tmp_path / "workspaces/me/link").symlink_to(other)
    async with _service(tmp_path, tokens_file=file) as client:
        for path in ("you/secret", "me/../you/secret", "me/link", str(other), "."):
            for what in ("backups", "restores"):
                status, problem = await _post(client, f"/v1/workspaces/me/w/{what}", {"path": path}, **_ME)
                assert (status, problem["title"]) == (400, "PathOutsideRoot"), path
        for path in ("/v1/workspaces/you/secret/snapshots", "/v1/workspaces/you/secret/schedule"):
            async with client.get(path, headers=_ME) as response:
                assert response.status == 403


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A directory with ``ca.crt``, certificates ``agent`` and ``stranger`` that it signed, and ``server``."""
    ca, key = make_certificate(tmp_path, "ca")
    make_certificate(tmp_path, "server")
    for name in ("agent", "stranger"):
        request = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        request += ["-nodes", "-subj", f"/CN={name}", "-keyout", tmp_path / f"{name}.key"]
        request += ["-out", tmp_path / f"{name}.csr"]
        subprocess.run(request, check=True, capture_output=True)
        sign = ["openssl", "x509", "-req", "-in", tmp_path / f"{name}.csr", "-CA", ca, "-CAkey", key]
        sign += ["-CAcreateserial", "-out", tmp_path / f"{name}.crt"]
        subprocess.run(sign, check=True, capture_output=True)
    return tmp_path


def _trusting(authority: Path, certificate: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority / "server.crt")
    if certificate is not None:
        context.load_cert_chain(authority / f"{certificate}.crt", authority / f"{certificate}.key")
    return context


@pytest.mark.parametrize(
    ("certificate", "mine", "yours"),
    [("agent", 200, 403), ("stranger", 401, 401), (None, 401, 401)],
    ids=["known", "signed but unknown", "none"],
)
async def test_a_client_certificate_stands_for_its_owner(
    authority: Path, certificate: str | None, mine: int, yours: int
) -> None:
    owners = authority / "certificates.json"
    owners.write_text('{"CN:agent": "me"}')
    files = (authority / "server.crt", authority / "server.key", authority / "ca.crt")
    tls = ServerTls(*files, client_optional=True)
    names = ("tls_certificate", "tls_key", "tls_client_ca")
    flags = {name: str(path) for name, path in zip(names, files, strict=True)}
    flags["certificates_file"] = str(owners)
    async with _service(authority, tls, _trusting(authority, certificate), **flags) as client:
        async with client.get("/livez") as response:
            assert response.status == 200
        for owner, expected in (("me", mine), ("you", yours)):
            async with client.get(f"/v1/workspaces/{owner}/w/snapshots") as response:
                assert response.status == expected


async def test_a_certificate_of_another_authority_does_not_get_in(authority: Path) -> None:
    other = authority / "other"
    other.mkdir()
    make_certificate(other, "agent")
    tls = ServerTls(
        authority / "server.crt", authority / "server.key", authority / "ca.crt", client_optional=True
    )
    context = _trusting(authority, None)
    context.load_cert_chain(other / "agent.crt", other / "agent.key")
    async with _service(authority, tls, context) as client:
        with pytest.raises(aiohttp.ClientError):
            async with client.get("/livez"):
                pass


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"tls_key": "/x"}, "both or none"),
        ({"tls_client_ca": "/x"}, "needs tls_certificate"),
        ({"certificates_file": "{tmp}/c.json"}, "needs tls_client_ca"),
        ({"tokens_file": "{tmp}/short.json"}, "16 characters"),
    ],
)
async def test_access_that_would_not_hold_is_refused_at_the_start(
    tmp_path: Path, flags: dict[str, str], named: str
) -> None:
    (tmp_path / "c.json").write_text("{}")
    (tmp_path / "short.json").write_text('{"short": "me"}')
    given = {name: value.format(tmp=tmp_path) for name, value in flags.items()}
    with pytest.raises(SettingsInvalid, match=named):
        async with _service(tmp_path, **given):
            pass


async def test_a_link_gives_one_tar_for_a_while_and_nothing_else(tmp_path: Path) -> None:
    _flags(tmp_path)
    make_tree(tmp_path / "workspaces/me/w")
    file = _tokens(tmp_path, {"token-of-me-0123456789": "me", "token-of-you-0123456789": "you"})
    async with _service(tmp_path, tokens_file=file) as client, aiohttp.ClientSession() as anybody:
        client.headers.update(_ME)
        _, job = await _post(client, "/v1/workspaces/me/w/backups")
        snapshot_id = (await _finished(client, job))["result"]["snapshot_id"]
        path = f"/v1/workspaces/me/w/snapshots/{snapshot_id}/download"
        yours = {"Authorization": "Bearer token-of-you-0123456789"}
        async with anybody.get(client._base_url.join(URL(path)), headers=yours) as response:
            assert response.status == 403
        async with client.get(path, params={"expires_s": "60"}) as response:
            link = await response.json()
        async with anybody.get(link["url"]) as response:
            assert response.status == 200
            data = await response.read()
        assert len(data) == link["bytes"]
        listed = subprocess.run(["tar", "-t"], input=data, capture_output=True, check=True).stdout
        assert b"symlink" in listed
        for tampered in (
            link["url"].replace("expires=", "expires=1"),
            link["url"][:-1] + ("0" if link["url"][-1] != "0" else "1"),
            link["url"].replace("/me/", "/you/"),
            link["url"].partition("?")[0],
        ):
            async with anybody.get(tampered) as response:
                assert response.status == 403, tampered
        async with client.get(path, params={"expires_s": "0"}) as response:
            assert response.status == 400


def test_a_link_ends_at_its_time() -> None:
    signer = LinkSigner(b"secret")
    query = dict(pair.split("=") for pair in signer.sign("/p", 1000).partition("?")[2].split("&"))
    signer.check("/p", query["expires"], query["signature"], 1000)
    with pytest.raises(Exception, match="not any more"):
        signer.check("/p", query["expires"], query["signature"], 1001)


async def test_s3_makes_links_itself(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    options = StoreOptions(s3_endpoint=s3_server.endpoint)
    async with open_store(f"s3://{s3_server.bucket}/links", options) as store:
        content = os.urandom(1000)
        await store.put("a/b", content)
        signer = presigner(store)
        assert signer is not None
        url = await signer.presign("a/b", expires_s=60, file_name="w.tar")
    async with aiohttp.ClientSession() as anybody:
        async with anybody.get(url) as response:
            assert (response.status, await response.read()) == (200, content)
            assert response.headers["Content-Disposition"] == 'attachment; filename="w.tar"'
        async with anybody.get(url.replace("a/b", "a/c")) as response:
            assert response.status == 403


async def test_tokens_and_rates_are_taken_over_on_a_signal_and_bad_ones_are_not(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    tokens = _tokens(tmp_path, {"token-of-me-0123456789": "*"})

    def write(extra: str) -> None:
        rows = [f'{name} = "{value}"' for name, value in _flags(tmp_path, tokens_file=tokens).items()]
        config.write_text("\n".join(["[content]", *rows, extra]))

    write('send_rate_bytes_s = "1MiB/s"')
    port = free_port()
    argv = [sys.executable, "-c", "from cli.main import main; main()", "content", "serve", "--config", config]
    argv += ["--listen", f"127.0.0.1:{port}"]
    log = tmp_path / "content.log"
    with Process("content", argv, log=log, ready=accepts(port)) as process:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            assert (await _limits(client, _ME))["send_bytes_s"] == 1 << 20
            write('send_rate_bytes_s = "none at all"')
            os.kill(process.pid, signal.SIGHUP)
            async with asyncio.timeout(30):
                while "settings_not_reloaded" not in log.read_text():
                    await asyncio.sleep(0.05)
            write('send_rate_bytes_s = "2MiB/s"')
            _tokens(tmp_path, {"another-token-0123456789": "*"})
            os.kill(process.pid, signal.SIGHUP)
            headers = {"Authorization": "Bearer another-token-0123456789"}
            async with asyncio.timeout(30):
                while (await _limits(client, headers)).get("send_bytes_s") != 2 << 20:
                    await asyncio.sleep(0.05)
            assert (await _limits(client, _ME))["status"] == 401


async def test_the_processes_of_jobs_end_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    flags = {**_flags(tmp_path), "job.read_rate_bytes_s": "1KiB/s"}
    large = tmp_path / "workspaces/me/w/large"
    large.parent.mkdir()
    large.write_bytes(bytes(40 << 20))
    port, log = free_port(), tmp_path / "content.log"
    names = {f"LAPSTRAKE_CONTENT_{name.upper().replace('.', '_')}": value for name, value in flags.items()}
    argv = [sys.executable, "-c", "from cli.main import main; main()", "content", "serve"]
    argv += ["--listen", f"127.0.0.1:{port}"]
    with Process("content", argv, log=log, ready=accepts(port), env=names) as process:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            _, job = await _post(client, "/v1/workspaces/me/w/backups")
            while job["phase"] != "sending":
                async with client.get(f"/v1/jobs/{job['id']}") as response:
                    job = await response.json()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2  # the job's, and the warm one
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
                await asyncio.sleep(0.05)


async def _limits(client: aiohttp.ClientSession, headers: dict[str, str]) -> dict:
    async with client.get("/v1/limits", headers=headers) as response:
        return await response.json()
