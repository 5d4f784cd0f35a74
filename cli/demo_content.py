"""The content half of the demo: back up a real tree, change it, back up again, restore both, compare."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.demo_run import DemoRun, agent_job
from cli.tree_compare import tree_differences
from servicekit.units import format_size

_WORKSPACE = "demo/venv"
_API = f"/v1/workspaces/{_WORKSPACE}"


def run_content(run: DemoRun) -> None:
    """The first round through the node's service, as an agent asks; the second by hand. Raises DemoFailed."""
    root, store = run.work / "workspaces", f"file://{run.work}/store"
    tree = root / _WORKSPACE
    tree.parent.mkdir(parents=True)
    run.command("cp", "-a", sys.prefix, tree)
    serve = ("content", "serve", "--listen", "127.0.0.1:0", "--store", store, "--workspaces-root", root)
    with run.serving(*serve) as origin:
        first = _backup_by_agent(run, origin)
        _restore_by_agent(run, origin, first, tree)
    _change(tree)
    second = _backup(run, "back up again, changed", tree, store)
    _restore(run, "restore the second", second, tree, store)
    _unpack_with_tar(run, second, tree)


def _backup_by_agent(run: DemoRun, origin: str) -> str:
    run.output.say(f"> POST {_API}/backups")
    return _backed_up(run, "back up", *agent_job(origin, f"{_API}/backups", {}))


def _restore_by_agent(run: DemoRun, origin: str, snapshot_id: str, tree: Path) -> None:
    run.output.say(f"> POST {_API}/restores")
    body = {"snapshot_id": snapshot_id, "path": "demo/restored"}
    result, seconds = agent_job(origin, f"{_API}/restores", body)
    _restored(run, "restore the first", result, seconds, tree, tree.with_name("restored"))


def _backup(run: DemoRun, step: str, tree: Path, store: str) -> str:
    return _backed_up(run, step, *run.lapstrake("backup", tree, "--workspace", _WORKSPACE, "--store", store))


def _backed_up(run: DemoRun, step: str, result: Mapping[str, Any], seconds: float) -> str:
    run.check(holds=not result["left_out"], otherwise=f"{step}: left out {result['left_out']}")
    run.add(
        step,
        result["tar_bytes"],
        seconds,
        f"{result['entries']} entries, {result['files_read']} files read, "
        f"{format_size(result['sent_bytes'])} sent, {format_size(result['copied_bytes'])} by the store",
    )
    return str(result["snapshot_id"])


def _restore(run: DemoRun, step: str, snapshot_id: str, tree: Path, store: str) -> None:
    target = run.work / "restored"
    result, seconds = run.lapstrake(
        "restore", target, "--workspace", _WORKSPACE, "--store", store, "--snapshot", snapshot_id
    )
    _restored(run, step, result, seconds, tree, target)


def _restored(
    run: DemoRun, step: str, result: Mapping[str, Any], seconds: float, tree: Path, target: Path
) -> None:
    """Compares while ``tree`` still is what was backed up."""
    _require_same(run, step, tree, target)
    run.add(
        step,
        result["bytes"],
        seconds,
        f"{result['entries']} entries; names, modes, owners, times (ns), links, contents equal",
    )


def _require_same(run: DemoRun, step: str, expected: Path, actual: Path) -> None:
    differences = tree_differences(expected, actual)
    run.check(holds=not differences, otherwise=f"{step}: the trees differ:\n" + "\n".join(differences))


def _change(tree: Path) -> None:
    """What a person does in an afternoon: edits, new files, deletions, a rename, a link, a mode."""
    sources = sorted(path for path in tree.rglob("*.py") if path.is_file() and not path.is_symlink())
    for path in sources[:: max(1, len(sources) // 50)]:
        path.write_bytes(path.read_bytes() + b"\n# edited\n")
    sources[1].unlink()
    sources[2].rename(sources[2].with_name("renamed.py"))
    sources[3].chmod(0o700)
    added = tree / "notes"
    added.mkdir()
    (added / "todo.md").write_text("- nothing is lost\n", encoding="utf-8")
    (added / "latest").symlink_to("todo.md")
    os.utime(added / "todo.md", ns=(0, 1_234_567_890_123_456_789))


def _unpack_with_tar(run: DemoRun, snapshot_id: str, tree: Path) -> None:
    """The object is a plain tar: GNU tar alone brings the tree back."""
    objects = [path for path in (run.work / "store").rglob("*.tar") if snapshot_id in path.name]
    run.check(
        holds=len(objects) == 1, otherwise=f"no single tar object for snapshot {snapshot_id}: {objects}"
    )
    target = run.work / "untarred"
    target.mkdir()
    _, seconds = run.command("tar", "-xpf", objects[0], "-C", target)
    _require_same(run, "unpack with GNU tar", tree, target)
    run.add("unpack with GNU tar", objects[0].stat().st_size, seconds, "the same tree, without lapstrake")
