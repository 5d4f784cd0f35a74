"""A SQLite file that several processes share."""

import asyncio
import multiprocessing
import sqlite3
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from servicekit.sqlite import Database

SCHEMA = "CREATE TABLE IF NOT EXISTS seen (number INTEGER)"
PROCESSES = 6
ROUNDS = 25
_SPAWN = multiprocessing.get_context("forkserver")


async def note(path: Path, number: int) -> None:
    async with Database(path, SCHEMA) as database:
        await database.do(lambda connection: connection.execute("INSERT INTO seen VALUES (?)", (number,)))


def note_in_each(directory: Path, number: int, barrier: Barrier) -> None:
    for round_number in range(ROUNDS):
        barrier.wait(60)
        asyncio.run(note(directory / f"{round_number}.sqlite", number))


async def seen(path: Path) -> list[int]:
    async with Database(path, SCHEMA) as database:
        return [number for (number,) in await database.rows("SELECT number FROM seen ORDER BY number")]


async def test_processes_that_open_a_new_file_at_the_same_moment_all_use_it(tmp_path: Path) -> None:
    barrier = _SPAWN.Barrier(PROCESSES)
    processes = [_SPAWN.Process(target=note_in_each, args=(tmp_path, n, barrier)) for n in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    for round_number in range(ROUNDS):
        assert await seen(tmp_path / f"{round_number}.sqlite") == list(range(PROCESSES))


async def test_reader_waits_for_no_writer(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    await note(path, 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert await seen(path) == [1]
    other.close()


async def test_failed_work_leaves_no_trace(tmp_path: Path) -> None:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO seen VALUES (1)")
        raise ArithmeticError

    async with Database(tmp_path / "x.sqlite", SCHEMA) as database:
        with pytest.raises(ArithmeticError):
            await database.do(work)
        assert await database.rows("SELECT * FROM seen") == []


async def test_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    async with Database(tmp_path / "x.sqlite", SCHEMA, version=2) as database:
        await database.rows("SELECT * FROM seen")
    async with Database(tmp_path / "x.sqlite", SCHEMA) as database:
        with pytest.raises(sqlite3.DatabaseError, match="newer version"):
            await database.rows("SELECT * FROM seen")
