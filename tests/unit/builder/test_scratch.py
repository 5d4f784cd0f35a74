"""Scratch directories of processes that work side by side, and of some that were killed."""

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

from builder.scratch import Scratch

ROUNDS = 150


def _work(root: Path) -> None:
    for _ in range(ROUNDS):
        with Scratch(root).directory() as path:
            (path / "mine").write_text("x")
            assert (path / "mine").read_text() == "x"


def _hold_until_killed(root: Path, is_held: Event) -> None:
    with Scratch(root).directory() as path:
        (path / "forgotten").write_text("x")
        is_held.set()
        signal.pause()


def test_no_process_takes_anothers_directory_for_a_forgotten_one(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_a_killed_process_had_is_removed_by_the_next(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    is_held = context.Event()
    holder = context.Process(target=_hold_until_killed, args=(tmp_path, is_held))
    holder.start()
    assert is_held.wait(30)
    with Scratch(tmp_path).directory() as path:
        assert {one for one in tmp_path.iterdir() if one.is_dir()} > {path}
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Scratch(tmp_path).directory() as path:
        assert [one for one in tmp_path.iterdir() if one.is_dir()] == [path]
