"""The agent's API over real sockets."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from content.app import content_service
from content.io_limits.limiter import CgroupLimiter, IoLimits
from content.settings import ContentSettings
from content.staging import Staging
from servicekit.lifecycle import Listener, listening
from servicekit.settings import SettingsInvalid, load
from tests.support.trees import facts, make_tree, wait_past_racy_window

_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def _settings(tmp_path: Path, **flags: str) -> ContentSettings:
    root = tmp_path / "workspaces"
    (root / "me").mkdir(parents=True, exist_ok=True)
    given = {
        "store": f"file://{tmp_path}/store",
        "workspaces_root": str(root),
        "state_dir": f"{tmp_path}/state",
        **flags,
    }
    return load(ContentSettings, "content", environ={}, flags=given)


@contextlib.asynccontextmanager
async def _running(
    settings: ContentSettings, token: str | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        content_service(settings) as (app, _),
        listening([Listener(app, "127.0.0.1", 0)], drain_s=5) as [(host, port)],
        aiohttp.ClientSession(f"http://{host}:{port}", headers=headers) as client,
    ):
        yield client


async def _finished(client: aiohttp.ClientSession, job: dict) -> dict:
    """The job in its final state, from its event stream."""
    async with client.get(f"/v1/jobs/{job['id']}/events") as response:
        text = await response.text()
    last = text.strip().split("\n\n")[-1]
    assert last.startswith("event: end\n")
    return json.loads(last.partition("data: ")[2])


async def _post(
    client: aiohttp.ClientSession, path: str, body: dict | None = None, **headers: str
) -> tuple[int, dict]:
    async with client.post(path, json=body or {}, headers=headers) as response:
        return response.status, await response.json()


async def test_a_workspace_is_backed_up_and_restored_on_request(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    tree = make_tree(settings.workspaces_root / "me" / "w1")
    async with _running(settings) as client:
        status, job = await _post(client, "/v1/workspaces/me/w1/backups")
        assert status == 202
        done = await _finished(client, job)
        assert (done["state"], done["error"]) == ("done", None)
        snapshot_id = done["result"]["snapshot_id"]
        asked = {"path": "copy", "snapshot_id": snapshot_id}
        _, job = await _post(client, "/v1/workspaces/me/w1/restores", asked)
        assert (await _finished(client, job))["state"] == "done"
        assert facts(settings.workspaces_root / "copy") == facts(tree)
        async with client.get("/v1/workspaces/me/w1/snapshots") as response:
            assert [row["id"] for row in (await response.json())["snapshots"]] == [snapshot_id]
        async with client.delete(f"/v1/workspaces/me/w1/snapshots/{snapshot_id}") as response:
            assert response.status == 204
        async with client.get("/metrics") as response:
            assert "content_job_seconds" in await response.text()


async def test_a_tree_may_be_deleted_only_while_a_snapshot_holds_it(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    tree = make_tree(settings.workspaces_root / "me" / "w1")
    wait_past_racy_window(tree)

    async def asked() -> tuple[bool, str]:
        async with client.get("/v1/workspaces/me/w1/safety") as response:
            answer = await response.json()
            return answer["safe_to_delete"], answer["reason"]

    async with _running(settings) as client:
        assert await asked() == (False, "there is no snapshot")
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        await _finished(client, job)
        assert await asked() == (True, "")
        (tree / "new").touch()
        assert await asked() == (False, "the tree has changed since")
        (tree / "new").unlink()
        tar = next((tmp_path / "store").rglob("*.tar"))
        tar.write_bytes(tar.read_bytes()[:-1])
        assert (await asked())[0] is False


@pytest.mark.parametrize("path", ["..", "../x", "/etc", ".", "link/x"])
async def test_paths_do_not_leave_the_workspaces_root(tmp_path: Path, path: str) -> None:
    settings = _settings(tmp_path)
    (settings.workspaces_root / "link").symlink_to("/etc")
    async with _running(settings) as client:
        status, problem = await _post(client, "/v1/workspaces/me/w1/restores", {"path": path})
    assert (status, problem["title"]) == (400, "PathOutsideRoot")


async def test_a_restore_of_a_backup_that_does_not_exist_fails_and_makes_nothing(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/none/restores")
        done = await _finished(client, job)
    assert (done["state"], done["error"]["type"]) == ("failed", "WorkspaceEmpty")
    assert list((settings.workspaces_root / "me").iterdir()) == []


async def test_tokens_are_limited_to_their_owner(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"token-of-me-0123456789": "me"}))
    settings = _settings(tmp_path, tokens_file=str(tokens))
    (settings.workspaces_root / "me" / "w1").mkdir()
    async with _running(settings) as client:
        assert (await _post(client, "/v1/workspaces/me/w1/backups"))[0] == 401
        async with client.get("/livez") as response:
            assert response.status == 200
    async with _running(settings, "token-of-me-0123456789") as client:
        assert (await _post(client, "/v1/workspaces/you/w1/backups"))[0] == 403
        status, job = await _post(client, "/v1/workspaces/me/w1/backups")
        assert (status, (await _finished(client, job))["state"]) == (202, "done")
        async with client.patch("/v1/limits", json={"send_bytes_s": 5}) as response:
            assert response.status == 403


async def test_a_repeated_request_gets_the_first_ones_job(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    (settings.workspaces_root / "me" / "w1").mkdir()
    async with _running(settings) as client:
        key = {"Idempotency-Key": "stop-17"}
        _, first = await _post(client, "/v1/workspaces/me/w1/backups", **key)
        await _finished(client, first)
        _, again = await _post(client, "/v1/workspaces/me/w1/backups", **key)
        assert again["id"] == first["id"]
        status, problem = await _post(client, "/v1/workspaces/me/w1/backups", {"kind": "periodic"}, **key)
        assert (status, problem["title"]) == (400, "IdempotencyMismatch")


async def test_a_running_job_keeps_others_off_its_workspace_and_can_be_cancelled(tmp_path: Path) -> None:
    settings = _settings(tmp_path, send_rate_bytes_s="1MiB/s")
    tree = settings.workspaces_root / "me" / "w1"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(40 << 20))
    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        status, problem = await _post(client, "/v1/workspaces/me/w1/backups")
        assert (status, problem["title"]) == (409, "WorkspaceBusy")
        async with client.delete(f"/v1/jobs/{job['id']}") as response:
            assert response.status == 202
        assert (await _finished(client, job))["state"] == "cancelled"
        async with client.get("/v1/workspaces/me/w1/snapshots") as response:
            assert (await response.json())["snapshots"] == []
    assert list((tmp_path / "store").glob("uploads/*")) == []


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():
            await asyncio.sleep(0.01)


@pytest.fixture
def blkio():
    """A directory for groups in the real v1 hierarchy."""
    parent = Path("/sys/fs/cgroup/blkio")
    if not (parent / "blkio.throttle.read_bps_device").exists() or not os.access(parent, os.W_OK):
        pytest.skip("no cgroup v1 blkio controller to write to")
    groups = parent / f"lapstrake-test-{os.getpid()}"
    yield groups
    groups.rmdir()


async def test_a_job_runs_in_a_cgroup_of_its_own_with_limits_that_the_kernel_took(
    tmp_path: Path, blkio: Path
) -> None:
    given = {"job.cgroup": str(blkio), "job.io_read_bytes_s": "30MiB/s", "job.send_rate_bytes_s": "64KiB/s"}
    settings = _settings(tmp_path, **given)
    tree = settings.workspaces_root / "me" / "w1"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(40 << 20))
    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        group = blkio / f"job-{job['id']}"
        await _until(lambda: group.exists() and (group / "cgroup.procs").read_text() != "")
        [process_id] = map(int, (group / "cgroup.procs").read_text().split())
        assert b"content.processes.child" in Path(f"/proc/{process_id}/cmdline").read_bytes()
        assert list(CgroupLimiter(group).show().values()) == [IoLimits(read_bytes_s=30 << 20)]
        async with client.get("/metrics") as response:
            assert "content_io_limits_in_force 1.0" in await response.text()
        async with client.delete(f"/v1/jobs/{job['id']}") as response:
            assert response.status == 202
        assert (await _finished(client, job))["state"] == "cancelled"
        assert list(blkio.glob("job-*")) == []
        assert not Path(f"/proc/{process_id}").exists()


async def test_a_job_whose_process_is_killed_fails_alone(tmp_path: Path, blkio: Path) -> None:
    settings = _settings(tmp_path, **{"job.cgroup": str(blkio), "job.read_rate_bytes_s": "64KiB/s"})
    tree = settings.workspaces_root / "me" / "w1"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(40 << 20))
    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        procs = blkio / f"job-{job['id']}" / "cgroup.procs"
        await _until(lambda: procs.exists() and procs.read_text() != "")
        os.kill(int(procs.read_text()), signal.SIGKILL)
        done = await _finished(client, job)
        assert (done["state"], done["error"]["type"]) == ("failed", "JobProcessDied")
        (tree / "large").unlink()
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        assert (await _finished(client, job))["state"] == "done"


async def test_what_a_killed_job_had_sent_is_not_sent_again(tmp_path: Path, blkio: Path) -> None:
    settings = _settings(tmp_path, **{"job.cgroup": str(blkio), "job.send_rate_bytes_s": "16MiB/s"})
    tree = settings.workspaces_root / "me" / "w1"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(40 << 20))

    def parts() -> list[int]:
        return [path.read_bytes().count(b"\n") for path in tmp_path.glob("store/uploads/*/parts")]

    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        await _until(lambda: sum(parts()) > 1)  # the first one is noted before the second is answered
        procs = blkio / f"job-{job['id']}" / "cgroup.procs"
        os.kill(int(procs.read_text()), signal.SIGKILL)
        assert (await _finished(client, job))["state"] == "failed"
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        result = (await _finished(client, job))["result"]
    assert result["resumed_bytes"] >= 8 << 20
    assert result["sent_bytes"] < result["tar_bytes"] - (8 << 20) + 10_000
    assert not parts()


async def test_a_workspaces_own_cgroup_is_limited_and_lifted_by_request(tmp_path: Path, blkio: Path) -> None:
    blkio.mkdir()
    (blkio / "w1").mkdir()
    path, limits = "/v1/workspaces/me/w1/io-limits", IoLimits(read_bytes_s=7 << 20, write_operations_s=9)
    asked = {"cgroup": "w1", "read_bytes_s": 7 << 20, "write_operations_s": 9}
    async with _running(_settings(tmp_path, workspace_cgroups=str(blkio))) as client:
        async with client.put(path, json=asked) as response:
            assert response.status == 200
        assert list(CgroupLimiter(blkio / "w1").show().values()) == [limits]
        async with client.get(path) as response:
            assert (await response.json())["read_bytes_s"] == 7 << 20
        async with client.delete(path) as response:
            assert response.status == 204
        assert CgroupLimiter(blkio / "w1").show() == {}
        for cgroup, status in (("../..", 400), ("w1/..", 400), ("none", 507)):
            async with client.put(path, json={**asked, "cgroup": cgroup}) as response:
                assert response.status == status
        async with client.get(path) as response:
            assert response.status == 404
    (blkio / "w1").rmdir()


async def test_what_a_killed_restore_left_is_swept_while_others_run(tmp_path: Path, blkio: Path) -> None:
    settings = _settings(tmp_path, **{"job.cgroup": str(blkio)})
    tree = settings.workspaces_root / "me" / "w1"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(30 << 20))
    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        await _finished(client, job)
        async with client.patch("/v1/limits", json={"write_bytes_s": 1000}) as response:
            assert response.status == 200
        jobs = []
        for name in ("killed", "running"):
            _, job = await _post(client, "/v1/workspaces/me/w1/restores", {"path": f"me/{name}"})
            jobs.append(job)
            if name == "killed":
                staging = settings.workspaces_root / "me"
                await _until(lambda staging=staging: any(staging.glob(".lapstrake-staging-killed-*")))
                procs = blkio / f"job-{job['id']}" / "cgroup.procs"
                os.kill(int(procs.read_text()), signal.SIGKILL)
                assert (await _finished(client, job))["state"] == "failed"
                assert list(staging.glob(".lapstrake-staging-*")) == []
        async with client.patch("/v1/limits", json={"write_bytes_s": None}) as response:
            assert response.status == 200
        assert (await _finished(client, jobs[1]))["state"] == "done"


@pytest.mark.parametrize("way", ["read", "write", "send", "receive"])
async def test_a_jobs_rate_holds_and_can_be_changed_while_it_runs(tmp_path: Path, way: str) -> None:
    settings = _settings(tmp_path)
    tree = settings.workspaces_root / "me" / "w1"
    tree.mkdir()
    for number in range(5):
        (tree / f"large-{number}").write_bytes(bytes(16 << 20))
    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        assert (await _finished(client, job))["state"] == "done"
    held = _settings(tmp_path, **{f"job.{way}_rate_bytes_s": "1KiB/s"})
    async with _running(held) as client:
        what = "backups" if way in {"read", "send"} else "restores"
        if what == "backups":
            (tree / "large-0").write_bytes(os.urandom(16 << 20))
        else:
            shutil.rmtree(tree)
        _, job = await _post(client, f"/v1/workspaces/me/w1/{what}")
        path = f"/v1/jobs/{job['id']}/limits"
        async with client.get(path) as response:
            assert (await response.json())[f"{way}_bytes_s"] == 1024
        async with client.patch(path, json={f"{way}_bytes_s": 0}) as response:
            assert response.status == 400
        async with client.patch(path, json={f"{way}_bytes_s": None}) as response:
            assert (await response.json())[f"{way}_bytes_s"] is None
        assert (await asyncio.wait_for(_finished(client, job), 60))["state"] == "done"


async def test_a_backup_steps_back_while_a_neighbour_waits_for_the_disk_and_goes_on(tmp_path: Path) -> None:
    """With the file written in place of the kernel."""
    file = tmp_path / "io.pressure"

    async def wait_for_the_disk() -> None:
        total_us = 0
        while True:
            file.write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\n")
            total_us += 1_000_000
            await asyncio.sleep(0.01)

    async def held(client: aiohttp.ClientSession) -> float | None:
        async with client.get("/v1/node") as response:
            return (await response.json())["disk_held_to_share"]

    settings = _settings(tmp_path, **{"pressure.files": str(file), "pressure.floor_share": "0.5"})
    make_tree(settings.workspaces_root / "me" / "w1")
    neighbour = asyncio.create_task(wait_for_the_disk())
    async with _running(settings) as client, asyncio.timeout(60):
        while await held(client) != 0.5:
            await asyncio.sleep(0.05)
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        assert (await _finished(client, job))["state"] == "done"
        neighbour.cancel()
        while await held(client) is not None:
            await asyncio.sleep(0.05)


async def test_a_running_workspace_is_backed_up_by_itself_until_its_final_backup(tmp_path: Path) -> None:
    """Over a restart, each time with what changed, and without a new snapshot when nothing did."""
    settings = _settings(tmp_path, **{"periodic.keep_last": "1"})
    tree = make_tree(settings.workspaces_root / "me" / "w1")
    wait_past_racy_window(tree)
    path = "/v1/workspaces/me/w1/schedule"

    async def periodic(client: aiohttp.ClientSession, number: int) -> dict:
        """The result of periodic backup ``number``, from 0."""
        async with asyncio.timeout(60):
            while True:
                async with client.get("/v1/jobs") as response:
                    jobs = (await response.json())["jobs"]
                found = [job for job in jobs if job["kind"] == "periodic_backup"]
                if len(found) > number and found[number]["state"] not in {"queued", "running"}:
                    assert found[number]["error"] is None
                    return found[number]["result"]
                await asyncio.sleep(0.1)

    async with _running(settings) as client:
        async with client.get(path) as response:
            assert response.status == 404
        async with client.put(path, json={"every_s": 1}) as response:
            assert (response.status, (await response.json())["every_s"]) == (200, 1)
        first = await periodic(client, 0)
    async with _running(settings) as client:
        async with client.get("/v1/schedules") as response:
            assert [row["workspace"] for row in (await response.json())["schedules"]] == ["me/w1"]
        again = await periodic(client, 0)
        assert (again["snapshot_id"], again["note"][:7]) == (first["snapshot_id"], "nothing")
        (tree / "new").write_text("new")
        assert (await periodic(client, 1))["snapshot_id"] > first["snapshot_id"]
        async with client.get("/v1/workspaces/me/w1/snapshots") as response:
            assert len((await response.json())["snapshots"]) == 1
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        assert (await _finished(client, job))["state"] == "done"
        async with client.get(path) as response:
            assert response.status == 404


@pytest.mark.parametrize("waits", [True, False], ids=["queued", "running"])
async def test_a_periodic_backup_makes_way_for_one_that_was_asked_for(tmp_path: Path, *, waits: bool) -> None:
    """One that waits is cancelled; one that runs ends first, no longer held to its rate."""
    settings = _settings(tmp_path, **{"job.read_rate_bytes_s": "1KiB/s"})
    for name in ("other", "w1"):
        (settings.workspaces_root / "me" / name).mkdir()
        (settings.workspaces_root / "me" / name / "large").write_bytes(os.urandom(40 << 20))
    async with _running(settings) as client:
        if waits:
            _, other = await _post(client, "/v1/workspaces/me/other/backups", {"kind": "periodic"})
        _, periodic = await _post(client, "/v1/workspaces/me/w1/backups", {"kind": "periodic"})
        if not waits:
            await _sending(client, periodic)
        status, final = await _post(client, "/v1/workspaces/me/w1/backups")
        assert status == 202
        _, problem = await _post(client, "/v1/workspaces/me/w1/backups")
        assert problem["title"] == "WorkspaceBusy"
        lifted = {"read_bytes_s": None}
        for job in (periodic, final):
            async with client.patch(f"/v1/jobs/{job['id']}/limits", json=lifted) as response:
                assert response.status == 200
        assert (await _finished(client, periodic))["state"] == ("cancelled" if waits else "done")
        assert (await _finished(client, final))["state"] == "done"
        if waits:
            async with client.delete(f"/v1/jobs/{other['id']}") as response:
                assert response.status == 202
            await _finished(client, other)


async def _sending(client: aiohttp.ClientSession, job: dict) -> None:
    async with asyncio.timeout(30):
        while True:
            async with client.get(f"/v1/jobs/{job['id']}") as response:
                if (await response.json())["phase"] == "sending":
                    return
            await asyncio.sleep(0.05)


async def test_limits_change_while_a_job_runs(tmp_path: Path) -> None:
    settings = _settings(tmp_path, send_rate_bytes_s="64KiB/s")
    tree = settings.workspaces_root / "me" / "w1"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(30 << 20))
    async with _running(settings) as client:
        _, job = await _post(client, "/v1/workspaces/me/w1/backups")
        async with client.patch("/v1/limits", json={"send_bytes_s": None}) as response:
            assert (await response.json())["send_bytes_s"] is None
        assert (await asyncio.wait_for(_finished(client, job), 60))["state"] == "done"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"store": "nowhere"}, "content.store"),
        ({"workspaces_root": "/does/not/exist"}, "content.workspaces_root"),
        ({"listen": "0.0.0.0:0"}, "content.listen"),
        ({"backups": "0"}, "content.backups"),
        ({"pressure.floor_share": "1.5"}, "content.pressure.floor_share"),
    ],
    ids=["store", "root", "open-to-all", "no-slots", "more-than-all"],
)
async def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, flags: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsInvalid, match=named):
        async with content_service(_settings(tmp_path, **flags)):
            pass


async def test_what_a_crashed_restore_left_is_swept_and_what_runs_is_not(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    left = settings.workspaces_root / ".lapstrake-staging-w1-0000"
    left.mkdir()
    (left / ".lapstrake-restoring").touch()
    async with Staging(settings.workspaces_root / "w2", replace=False) as running, _running(settings):
        assert not left.exists()
        await running.commit()
    assert (settings.workspaces_root / "w2").is_dir()


async def test_a_node_short_of_space_says_so_and_stops_periodic_work_only(tmp_path: Path) -> None:
    settings = _settings(tmp_path, min_free_bytes="900000T")
    (settings.workspaces_root / "me" / "w1").mkdir()
    async with _running(settings) as client:
        async with client.get("/readyz") as response:
            assert (response.status, "disk" in (await response.json())["reasons"]) == (503, True)
        async with client.get("/v1/node") as response:
            node = await response.json()
            assert (node["ready"], list(node["reasons"])) == (False, ["disk"])
        async with client.get("/metrics") as response:
            assert "content_disk_short 1.0" in await response.text()
        async with client.put("/v1/workspaces/me/w1/schedule", json={"every_s": 1}) as response:
            assert response.status == 200
        status, problem = await _post(client, "/v1/workspaces/me/w1/backups", {"kind": "periodic"})
        assert (status, "disk is short" in problem["detail"]) == (503, True)
        status, job = await _post(client, "/v1/workspaces/me/w1/backups")
        assert (status, (await _finished(client, job))["state"]) == (202, "done")


async def test_the_api_is_what_its_description_says(tmp_path: Path) -> None:
    """Generated requests for every operation: no server errors, only documented statuses and bodies."""
    settings = _settings(tmp_path, source_protocols="")  # nothing out there is asked
    async with _running(settings) as client:
        async with client.get("/openapi.json") as response:
            described = await response.json()
        base = str(client._base_url).rstrip("/")
        await asyncio.to_thread(_exercise, described, base)


def _exercise(described: dict, base: str) -> None:
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=base)
    for operation in schema.get_all_operations():
        _call(operation.ok().as_strategy())


def _call(strategy) -> None:
    @given(strategy)
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def call(case) -> None:
        case.call_and_validate(checks=_CHECKS)

    call()
