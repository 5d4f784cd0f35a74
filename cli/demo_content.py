"""The content half of the demo: back up a real tree, change it, back up again, restore both, compare."""

import os
import sys
from pathlib import Path

from cli.demo_run import DemoRun
from cli.tree_compare import tree_differences
from servicekit.units import format_size

_WORKSPACE = "demo/venv"


def run_content(run: DemoRun) -> None:
    """Adds a row per step. Raises DemoFailed."""
    tree, store = run.work / "workspaces" / "venv", f"file://{run.work}/store"
    tree.parent.mkdir()
    run.command("cp", "-a", sys.prefix, tree)
    first = _backup(run, "back up", tree, store)
    _restore_and_compare(run, "restore the first", first, tree, store)
    _change(tree)
    second = _backup(run, "back up again, changed", tree, store)
    _restore_and_compare(run, "restore the second", second, tree, store)
    _unpack_with_tar(run, second, tree)


def _backup(run: DemoRun, step: str, tree: Path, store: str) -> str:
    result, seconds = run.lapstrake("backup", tree, "--workspace", _WORKSPACE, "--store", store)
    run.check(holds=not result["left_out"], otherwise=f"{step}: left out {result['left_out']}")
    run.add(
        step,
        result["tar_bytes"],
        seconds,
        f"{result['entries']} entries, {result['files_read']} files read, "
        f"{format_size(result['sent_bytes'])} sent, {format_size(result['copied_bytes'])} by the store",
    )
    return str(result["snapshot_id"])


def _restore_and_compare(run: DemoRun, step: str, snapshot_id: str, tree: Path, store: str) -> None:
    """Right after the backup, while ``tree`` still is what was backed up."""
    target = run.work / "restored" / snapshot_id
    target.parent.mkdir(exist_ok=True)
    result, seconds = run.lapstrake(
        "restore", target, "--workspace", _WORKSPACE, "--store", store, "--snapshot", snapshot_id
    )
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
