"""How a workspace starts, through the service: real git, a real file server."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from content.app import content_service
from content.settings import ContentSettings
from ocikit.digest import Digest
from servicekit.lifecycle import Listener, listening
from servicekit.settings import load
from tests.component.test_content_service import _finished, _post
from tests.support.trees import facts, make_tree

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
_START = "/v1/workspaces/me/w1/initializations"
_GIT_ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_ALLOW_PROTOCOL": "file",
}


def _git(at: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", at, *arguments], check=True, capture_output=True, env=_GIT_ENV, text=True
    )
    return done.stdout.strip()


def _repository(path: Path, commits: int = 3) -> list[str]:
    """The commits of a new one, oldest first; each replaces one file and changes another."""
    path.mkdir()
    _git(path, "init", "-q", "-b", "trunk")
    found = []
    for number in range(commits):
        for old in path.glob("only-*"):
            old.unlink()
        (path / f"only-{number}").write_text("x")
        (path / "file").write_text(f"version {number}\n")
        _git(path, "add", "-A")
        _git(path, "commit", "-q", "-m", f"number {number}")
        found.append(_git(path, "rev-parse", "HEAD"))
    return found


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with _service(tmp_path) as client:
        yield client


@contextlib.asynccontextmanager
async def _service(tmp_path: Path, **flags: str) -> AsyncIterator[aiohttp.ClientSession]:
    (tmp_path / "workspaces" / "me").mkdir(parents=True, exist_ok=True)
    given = {
        "store": f"file://{tmp_path}/store",
        "workspaces_root": str(tmp_path / "workspaces"),
        "state_dir": f"{tmp_path}/state",
        "source_protocols": "file,http",
        "source_hosts": "127.0.0.1",
        **flags,
    }
    settings = load(ContentSettings, "content", environ={}, flags=given)
    async with (
        content_service(settings) as (app, _),
        listening([Listener(app, "127.0.0.1", 0)], drain_s=5) as [(host, port)],
        aiohttp.ClientSession(f"http://{host}:{port}") as session,
    ):
        yield session


async def _started(client: aiohttp.ClientSession, initializer: dict, **more) -> dict:
    status, job = await _post(client, _START, {"initializer": initializer, **more})
    assert status == 202, job
    return await _finished(client, job)


def _tree(tmp_path: Path) -> Path:
    return tmp_path / "workspaces/me/w1"


async def test_an_empty_start_is_an_empty_tree_of_its_owner(tmp_path: Path, client) -> None:
    done = await _started(client, {"kind": "empty"}, uid=1234, gid=2345)
    assert (done["state"], done["result"]["source"]) == ("done", "empty")
    assert list(_tree(tmp_path).iterdir()) == []
    status = _tree(tmp_path).stat()
    assert (status.st_uid, status.st_gid) == (1234, 2345)


async def test_a_backup_always_wins(tmp_path: Path, client) -> None:
    kept = make_tree(_tree(tmp_path))
    before = facts(kept)
    _, job = await _post(client, "/v1/workspaces/me/w1/backups")
    snapshot_id = (await _finished(client, job))["result"]["snapshot_id"]
    kept.rename(tmp_path / "away")
    asked = {"kind": "git", "url": f"file://{tmp_path}/no-such-repository"}
    done = await _started(client, asked)
    assert (done["result"]["source"], done["result"]["snapshot_id"]) == ("backup", snapshot_id)
    assert facts(kept) == before


async def test_a_backup_that_does_not_exist_is_an_error_and_no_empty_workspace(
    tmp_path: Path, client
) -> None:
    done = await _started(client, {"kind": "backup"})
    assert (done["state"], done["error"]["type"]) == ("failed", "WorkspaceEmpty")
    assert list(_tree(tmp_path).parent.iterdir()) == []


async def test_a_store_that_does_not_answer_is_an_error_and_no_empty_workspace(
    tmp_path: Path, client
) -> None:
    _tree(tmp_path).mkdir()
    _, job = await _post(client, "/v1/workspaces/me/w1/backups")
    await _finished(client, job)
    _tree(tmp_path).rmdir()
    [pointer] = (tmp_path / "store").rglob("snapshots.json")
    pointer.write_bytes(b"{")
    done = await _started(client, {"kind": "empty"})
    assert (done["state"], done["error"]["type"]) == ("failed", "ObjectCorrupt")
    assert list(_tree(tmp_path).parent.iterdir()) == []


async def test_a_clone_is_at_the_default_branch_with_its_history(tmp_path: Path, client) -> None:
    commits = _repository(tmp_path / "repo")
    done = await _started(client, {"kind": "git", "url": f"file://{tmp_path}/repo"})
    assert (done["error"], done["result"]["commits"]) == (None, {"": commits[-1]})
    tree = _tree(tmp_path)
    assert (tree / "file").read_text() == "version 2\n"
    assert _git(tree, "status", "--porcelain", "--branch") == "## trunk...origin/trunk"
    assert _git(tree, "rev-list", "--count", "HEAD") == "3"
    assert not (tree / ".lapstrake-restoring").exists()
    _, job = await _post(client, "/v1/workspaces/me/w1/backups")
    assert (await _finished(client, job))["state"] == "done"


async def test_a_clone_can_be_shallow_at_a_branch_or_at_a_commit(tmp_path: Path, client) -> None:
    commits = _repository(tmp_path / "repo")
    _git(tmp_path / "repo", "branch", "side/one", commits[1])
    _git(tmp_path / "repo", "config", "uploadpack.allowAnySHA1InWant", "true")
    url = f"file://{tmp_path}/repo"
    steps = [
        {"kind": "git", "url": url, "branch": "side/one", "depth": 1, "target": "a/branch"},
        {"kind": "git", "url": url, "commit": commits[0], "target": "commit"},
        {"kind": "git", "url": url, "commit": commits[1], "depth": 1, "target": "deep"},
    ]
    done = await _started(client, {"kind": "composite", "initializers": steps})
    assert done["error"] is None
    heads = {"a/branch": commits[1], "commit": commits[0], "deep": commits[1]}
    assert done["result"]["commits"] == heads
    tree = _tree(tmp_path)
    assert [_git(tree / at, "rev-list", "--count", "HEAD") for at in heads] == ["1", "1", "1"]
    assert _git(tree / "a/branch", "branch", "--show-current") == "side/one"


async def test_submodules_are_at_the_commits_that_the_repository_names(tmp_path: Path, client) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    wanted = _repository(inner)[0]
    _repository(outer)
    _git(outer, "submodule", "--quiet", "add", "../inner", "libs/inner")
    _git(outer / "libs/inner", "checkout", "-q", wanted)
    _git(outer, "commit", "-qam", "with inner")
    done = await _started(client, {"kind": "git", "url": f"file://{outer}", "submodules": True})
    assert done["error"] is None
    tree = _tree(tmp_path)
    assert (tree / "libs/inner/file").read_text() == "version 0\n"
    assert _git(tree, "status", "--porcelain") == ""
    assert _git(tree, "submodule", "status").split()[0] == wanted


async def test_a_prebuild_is_brought_to_the_commit_and_keeps_what_was_built(tmp_path: Path, client) -> None:
    commits = _repository(tmp_path / "repo")
    url = f"file://{tmp_path}/repo"
    built = tmp_path / "workspaces/me/prebuild"
    subprocess.run(["git", "clone", "-q", tmp_path / "repo", built], check=True, env=_GIT_ENV)
    _git(built, "checkout", "-q", commits[0])
    (built / "node_modules").mkdir()
    (built / "node_modules" / "artefact").write_text("built")
    # What a tree brings along must not run here.
    mark = tmp_path / "ran"
    _git(built, "config", "core.fsmonitor", f"touch {mark}; false")
    _git(built, "config", "filter.evil.smudge", f"touch {mark}; cat")
    (built / ".git/hooks").mkdir(exist_ok=True)
    (built / ".git/hooks/post-checkout").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (built / ".git/hooks/post-checkout").chmod(0o755)
    (built / ".gitattributes").write_text("* filter=evil\n")
    mark.unlink(missing_ok=True)
    _, job = await _post(client, "/v1/workspaces/me/prebuild/backups")
    snapshot_id = (await _finished(client, job))["result"]["snapshot_id"]
    asked = {
        "kind": "prebuild",
        "snapshot": {"workspace": "me/prebuild", "snapshot_id": snapshot_id},
        "git": {"url": url, "commit": commits[2]},
    }
    done = await _started(client, asked)
    assert done["error"] is None
    tree = _tree(tmp_path)
    assert (tree / "file").read_text() == "version 2\n"
    assert (tree / "node_modules/artefact").read_text() == "built"
    assert sorted(path.name for path in tree.glob("only-*")) == ["only-2"]
    assert not mark.exists()
    assert done["result"]["snapshot_id"] == snapshot_id


@contextlib.asynccontextmanager
async def _git_server(root: Path, wanted: str, seen: list[str]) -> AsyncIterator[str]:
    """``git http-backend`` over HTTP for those who send ``wanted``; ``seen`` are the headers of all."""

    async def serve(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        if request.headers.get("Authorization", "") != wanted:
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Basic"})
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        child = await asyncio.create_subprocess_exec(
            "git", "http-backend", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=env
        )
        output, _ = await child.communicate(await request.read())
        head, _, body = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return web.Response(body=body, status=int(headers.pop("Status", "200")[:3]), headers=headers)

    app = web.Application(client_max_size=1 << 30)
    app.add_routes([web.route("*", "/{path:.*}", serve)])
    async with listening([Listener(app, "127.0.0.1", 0)], drain_s=1) as [(host, port)]:
        yield f"http://{host}:{port}"


async def test_a_private_repository_gets_its_credentials_and_nobody_else_does(tmp_path: Path, client) -> None:
    """Its submodule on the same server is private too; the one elsewhere is not shown what is not its own."""
    wanted = "Basic c2VjcmV0OnNlY3JldA=="
    mine: list[str] = []
    others: list[str] = []
    (tmp_path / "mine").mkdir()
    (tmp_path / "others").mkdir()
    commit = _repository(tmp_path / "mine/inner")[-1]
    foreign = _repository(tmp_path / "others/foreign")[-1]
    _repository(tmp_path / "mine/outer")
    async with (
        _git_server(tmp_path / "mine", wanted, mine) as url,
        _git_server(tmp_path / "others", "", others) as elsewhere,
    ):
        outer = tmp_path / "mine/outer"
        modules = [("inner", f"{url}/inner/.git", commit), ("foreign", f"{elsewhere}/foreign/.git", foreign)]
        for name, address, at in modules:
            for key, value in (("path", name), ("url", address)):
                _git(outer, "config", "-f", ".gitmodules", f"submodule.{name}.{key}", value)
            _git(outer, "update-index", "--add", "--cacheinfo", f"160000,{at},{name}")
        _git(outer, "add", ".gitmodules")
        _git(outer, "commit", "-qm", "modules")
        asked = {"kind": "git", "url": f"{url}/outer/.git", "submodules": True}
        done = await _started(client, asked)
        assert (done["state"], done["error"]["type"]) == ("failed", "SourceFailed")
        done = await _started(client, {**asked, "authorization": wanted})
    assert done["error"] is None
    assert wanted in mine
    assert set(others) == {""}
    tree = _tree(tmp_path)
    assert (tree / "inner/file").exists()
    assert wanted.split()[1] not in "".join(p.read_text(errors="replace") for p in tree.rglob("config"))


@contextlib.asynccontextmanager
async def _files(content: bytes) -> AsyncIterator[str]:
    """A server of ``/file``, and of redirects to it and elsewhere."""

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.query["to"])

    async def file(_request: web.Request) -> web.Response:
        return web.Response(body=content)

    app = web.Application()
    app.add_routes([web.get("/file", file), web.get("/redirect", redirect)])
    async with listening([Listener(app, "127.0.0.1", 0)], drain_s=1) as [(host, port)]:
        yield f"http://{host}:{port}"


async def test_downloads_are_proven_and_owned(tmp_path: Path, client) -> None:
    content = os.urandom(3_000_000)
    async with _files(content) as url:
        files = [
            {
                "url": f"{url}/redirect?to=/file",
                "path": "bin/tool",
                "digest": Digest.of(content),
                "mode": 0o755,
            }
        ]
        done = await _started(client, {"kind": "download", "files": files}, uid=1234, gid=1234)
        assert done["error"] is None
        found = _tree(tmp_path) / "bin/tool"
        assert found.read_bytes() == content
        assert (found.stat().st_mode & 0o777, found.stat().st_uid) == (0o755, 1234)
        assert (found.parent.stat().st_mode & 0o777, found.parent.stat().st_uid) == (0o755, 1234)


async def test_a_download_with_other_bytes_leaves_nothing(tmp_path: Path, client) -> None:
    async with _files(b"other") as url:
        files = [{"url": f"{url}/file", "path": "x", "digest": Digest.of(b"expected")}]
        done = await _started(client, {"kind": "download", "files": files})
    assert (done["state"], done["error"]["type"]) == ("failed", "DownloadCorrupt")
    assert list(_tree(tmp_path).parent.iterdir()) == []


@pytest.mark.parametrize(
    "to", ["http://localhost:1/file", "file:///etc/passwd", "http://[::1]/x", "http://169.254.169.254/x", ""]
)
async def test_a_redirect_does_not_lead_into_private_networks(tmp_path: Path, client, to: str) -> None:
    async with _files(b"") as url:
        files = [{"url": f"{url}/redirect?to={to}", "path": "x", "digest": Digest.of(b"")}]
        done = await _started(client, {"kind": "download", "files": files})
    assert done["state"] == "failed"
    assert done["error"]["type"] in {"SourceRefused", "SourceFailed"}


@pytest.mark.parametrize(
    "url", ["http://localhost/repo", "http://10.0.0.1/repo", "http://[::ffff:127.0.0.1]/x"]
)
async def test_git_does_not_reach_private_networks(tmp_path: Path, client, url: str) -> None:
    done = await _started(client, {"kind": "git", "url": url})
    assert (done["state"], done["error"]["type"]) == ("failed", "SourceRefused")


async def test_an_initializer_that_cannot_be_is_refused_at_once(client) -> None:
    status, problem = await _post(client, _START, {"initializer": {"kind": "git", "url": "-x"}})
    assert (status, problem["title"]) == (400, "InvalidRequest")


async def test_a_clone_is_cancelled_with_its_job_and_leaves_nothing(tmp_path: Path) -> None:
    """git waits for a server that accepts and says nothing."""
    accepted = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with _service(tmp_path) as client, server:
        asked = {"initializer": {"kind": "git", "url": f"http://127.0.0.1:{port}/repo"}}
        _, job = await _post(client, _START, asked)
        async with asyncio.timeout(30):
            await accepted.wait()
        async with client.delete(f"/v1/jobs/{job['id']}") as response:
            assert response.status == 202
        assert (await _finished(client, job))["state"] == "cancelled"
        assert list(_tree(tmp_path).parent.iterdir()) == []


async def test_a_token_starts_from_its_owners_snapshots_only(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"token-of-me-0123456789": "me"}')
    snapshot = {"kind": "snapshot", "snapshot_id": "20260101T000000.000Z-00000000", "workspace": "you/w"}
    nested = {"kind": "composite", "initializers": [{"kind": "empty"}, snapshot]}
    async with _service(tmp_path, tokens_file=str(tokens)) as client:
        for initializer in (snapshot, nested):
            headers = {"Authorization": "Bearer token-of-me-0123456789"}
            status, _ = await _post(client, _START, {"initializer": initializer}, **headers)
            assert status == 403
