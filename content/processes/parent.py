"""Starts the processes of jobs, one each, and answers them."""

import asyncio
import contextlib
import dataclasses
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import structlog

from content.errors import ContentError
from content.io_limits.groups import JobGroup, JobGroups
from content.jobs import Job
from content.metrics import StoreMetrics
from content.objects.base import StoreProperties
from content.processes.channel import Channel

_END_S = 30.0
"""How long a cancelled job may take to put things in order before its process is killed."""
_log = structlog.get_logger(__name__)


class JobFailed(ContentError):
    """What went wrong in a job's process; ``kind`` is the class of the error there."""

    def __init__(self, kind: str, detail: str, *, retryable: bool) -> None:
        super().__init__(detail)
        self.kind = kind
        self.retryable = retryable


class JobProcessDied(ContentError):
    retryable = True

    def __init__(self, status: int | None) -> None:
        super().__init__(
            f"the process of the job ended with status {status} before its work did; the log may say more"
        )


@dataclass(frozen=True, slots=True)
class StoreSetup:
    """How a job's process opens the store and where it notes uploads; credentials are in the environment."""

    store: str
    s3_endpoint: str | None
    concurrency: int
    properties: StoreProperties
    state_dir: str


@dataclass(frozen=True, slots=True)
class _Running:
    process: asyncio.subprocess.Process
    channel: Channel

    @classmethod
    async def start(cls) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ("-P", "-m", "content.processes.child", str(theirs.fileno()))
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return cls(process, await Channel.over(ours))

    async def end(self) -> None:
        """Kills what is still there."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        await self.channel.close()


class JobProcesses:
    """An async context manager that keeps one process warm, so that a job need not wait for its start."""

    def __init__(self, setup: StoreSetup, metrics: StoreMetrics, groups: JobGroups | None = None) -> None:
        self._setup = dataclasses.asdict(setup)
        self._metrics = metrics
        self._groups = groups
        self._spare: asyncio.Task[_Running] | None = None

    async def __aenter__(self) -> Self:
        self._warm()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._spare is not None:
            await (await self._spare).end()

    def _warm(self) -> None:
        self._spare = asyncio.create_task(_Running.start(), name="warm-process")

    async def _take(self) -> _Running:
        spare, self._spare = self._spare, None
        self._warm()
        if spare is not None:
            running = await spare
            if running.process.returncode is None:
                return running
            await running.end()
        return await _Running.start()

    async def run(self, job: Job, task: Mapping[str, Any]) -> Mapping[str, Any]:
        """The task's result. Raises JobFailed, JobProcessDied; a cancellation is passed on to the process."""
        async with self._group(job) as group:
            running = await self._take()
            conversation = _Conversation(job, running.channel, self._metrics)
            try:
                if group is not None:
                    await group.take(running.process.pid)
                running.channel.send("task", task=task, setup=self._setup)
                return await conversation.result(running.process)
            except asyncio.CancelledError:
                if group is not None:
                    await group.lift()
                running.channel.send("cancel")
                with contextlib.suppress(TimeoutError, ContentError):
                    async with asyncio.timeout(_END_S):
                        await conversation.result(running.process)
                raise
            finally:
                conversation.close()
                if group is not None:
                    await group.lift()
                await running.end()

    @contextlib.asynccontextmanager
    async def _group(self, job: Job) -> AsyncIterator[JobGroup | None]:
        if self._groups is None:
            yield None
        else:
            async with self._groups.group(job.id) as group:
                yield group


class _Conversation:
    """What the process of one job says, and the answers."""

    def __init__(self, job: Job, channel: Channel, metrics: StoreMetrics) -> None:
        self._job = job
        self._channel = channel
        self._metrics = metrics
        self._asked: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        for task in self._asked:
            task.cancel()

    async def result(self, process: asyncio.subprocess.Process) -> Mapping[str, Any]:
        """Until the last message. Raises JobFailed, JobProcessDied."""
        while (message := await self._channel.receive()) is not None:
            match message["kind"]:
                case "progress":
                    self._progress(message)
                case "ask" | "waited":
                    self._start_answer(message)
                case "metric":
                    self._count(message)
                case "done":
                    result: Mapping[str, Any] = message["result"]
                    return result
                case _:
                    raise JobFailed(message["type"], message["detail"], retryable=message["retryable"])
        raise JobProcessDied(await process.wait())

    def _progress(self, message: Mapping[str, Any]) -> None:
        for field in dataclasses.fields(self._job.progress):
            setattr(self._job.progress, field.name, message[field.name])

    def _start_answer(self, message: Mapping[str, Any]) -> None:
        task = asyncio.create_task(self._answer(message))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, message: Mapping[str, Any]) -> None:
        buckets = self._job.buckets
        if message["kind"] == "ask":
            await buckets[message["way"]].acquire(message["bytes"])
        else:
            await buckets.disk.acquire(message["us"])
        needed = buckets.held.share is not None
        self._channel.send("grant", number=message["number"], disk_is_needed=needed)

    def _count(self, message: Mapping[str, Any]) -> None:
        if message["name"] == "seconds":
            self._metrics.seconds.labels(*message["labels"]).observe(message["value"])
        else:
            self._metrics.bytes.labels(*message["labels"]).inc(message["value"])
