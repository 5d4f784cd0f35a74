"""Work that outlives the request that asked for it: queued by priority, bounded, watched, cancelled.

`content.turns` says who may run. A job that has waited too long is refused, never run beyond the limit. One
job per workspace at a time; only a periodic backup makes way: one that waits is cancelled for a job that
somebody asked for, and one that runs is waited for, because what it has sent need not be sent again.
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import structlog

from content.errors import ContentError, InvalidInput, JobNotFound, WorkspaceBusy
from content.keys import Workspace
from content.metrics import JobMetrics
from content.progress import Progress
from content.rates import Buckets
from content.turns import Pool, Turns
from servicekit.clock import Clock, SystemClock

State = Literal["queued", "running", "done", "failed", "cancelled"]
_KEPT = 1000
_log = structlog.get_logger(__name__)


class QueueDeadlineExceeded(ContentError):
    """The job waited longer than it may; nothing was done."""

    retryable = True

    def __init__(self, job_id: str, waited_s: float) -> None:
        super().__init__(
            f"job {job_id} waited {waited_s:.0f} s for its turn and was given up: the node is busy"
        )


class IdempotencyMismatch(InvalidInput):
    def __init__(self, key: str) -> None:
        super().__init__(f"idempotency key {key!r} was used for a different request")


@dataclass(slots=True)
class Job:
    """What a client sees; changed by the runner only. ``finished`` is set in every final state."""

    id: str
    pool: Pool
    workspace: Workspace
    created_s: float
    progress: Progress = field(default_factory=Progress)
    buckets: Buckets = field(default_factory=Buckets)
    state: State = "queued"
    started_s: float | None = None
    ended_s: float | None = None
    result: Mapping[str, Any] | None = None
    error: ContentError | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def document(self, now_s: float) -> dict[str, Any]:
        """For JSON; ``rate_bytes_s`` and ``eta_s`` are from the start of the job."""
        progress, elapsed_s = self.progress, 0.0
        if self.started_s is not None:
            elapsed_s = (self.ended_s or now_s) - self.started_s
        rate = progress.bytes / elapsed_s if elapsed_s > 0 else 0.0
        left = (progress.total_bytes or 0) - progress.bytes
        return {
            "id": self.id,
            "kind": self.pool,
            "workspace": str(self.workspace),
            "state": self.state,
            "phase": progress.phase,
            "bytes": progress.bytes,
            "total_bytes": progress.total_bytes,
            "entries": progress.entries,
            "total_entries": progress.total_entries,
            "rate_bytes_s": round(rate),
            "eta_s": round(left / rate, 1) if rate and progress.total_bytes and left >= 0 else None,
            "created_s": self.created_s,
            "started_s": self.started_s,
            "ended_s": self.ended_s,
            "result": self.result,
            "error": None
            if self.error is None
            else {"type": getattr(self.error, "kind", type(self.error).__name__), "detail": str(self.error)},
        }


Work = Callable[[Job], Awaitable[Mapping[str, Any]]]


class JobRunner:
    """Runs jobs; an async context manager whose end cancels what `drain` did not wait for."""

    def __init__(
        self,
        turns: Turns,
        metrics: JobMetrics,
        *,
        queue_deadline_s: float,
        clock: Clock = SystemClock(),
    ) -> None:
        self._turns = turns
        self._metrics = metrics
        self._queue_deadline_s = queue_deadline_s
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._busy: dict[Workspace, Job] = {}
        self._keys: dict[tuple[str, str], tuple[str, Job]] = {}
        self._ended: deque[str] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def drain(self, timeout_s: float) -> None:
        """Waits until no job is queued or running, at most ``timeout_s``."""
        if self._tasks:
            await asyncio.wait(set(self._tasks.values()), timeout=timeout_s)

    def jobs(self) -> list[Job]:
        """All that are remembered, oldest first."""
        return list(self._jobs.values())

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFound(job_id) from None

    def repeated(self, workspace: Workspace, key: str | None, request: Any) -> Job | None:
        """The job that this idempotency key started. Raises IdempotencyMismatch for another request."""
        if key is None or (known := self._keys.get((str(workspace), key))) is None:
            return None
        if known[0] != _digest(request):
            raise IdempotencyMismatch(key)
        return known[1]

    def start(
        self,
        pool: Pool,
        workspace: Workspace,
        work: Work,
        *,
        key: str | None = None,
        request: Any = None,
        buckets: Buckets | None = None,
    ) -> Job:
        """Queues ``work``, held to ``buckets``. Raises WorkspaceBusy while the workspace has a job that does
        not make way.
        """
        before = self._busy.get(workspace)
        if before is not None:
            if pool == "periodic_backup" or before.pool != "periodic_backup":
                raise WorkspaceBusy(str(workspace), f"job {before.id} ({before.pool}) is {before.state}")
            if before.state == "queued":
                self.cancel(before.id)
            elif buckets is not None:
                before.buckets.change(buckets.rates)  # somebody waits for it now
        job = Job(secrets.token_hex(8), pool, workspace, self._clock.time(), buckets=buckets or Buckets())
        self._jobs[job.id] = self._busy[workspace] = job
        if key is not None:
            self._keys[str(workspace), key] = (_digest(request), job)
        self._tasks[job.id] = asyncio.create_task(self._run(job, work, before), name=f"job-{job.id}")
        return job

    def cancel(self, job_id: str) -> Job:
        """Asks the job to end; it is over when its state says so. Raises JobNotFound."""
        job = self.get(job_id)
        if (task := self._tasks.get(job_id)) is not None:
            task.cancel()
        return job

    async def _run(self, job: Job, work: Work, before: Job | None) -> None:
        try:
            async with self._turn(job, before):
                job.state, job.started_s = "running", self._clock.time()
                job.result = await work(job)
            job.state = "done"
        except ContentError as error:
            job.state, job.error = "failed", error
        except asyncio.CancelledError:
            job.state = "cancelled"
        except Exception as error:  # noqa: BLE001 (the boundary of a job)
            job.state, job.error = "failed", ContentError(f"unexpected {type(error).__name__}")
            _log.exception("job_crashed", job=job.id)
        finally:
            self._end(job)

    @contextlib.asynccontextmanager
    async def _turn(self, job: Job, before: Job | None) -> AsyncIterator[None]:
        """The job's turn, after the one ``before`` it. Raises QueueDeadlineExceeded."""
        async with contextlib.AsyncExitStack() as stack:
            with self._metrics.waiting.labels(job.pool).track_inprogress():
                asked_s = self._clock.monotonic()
                try:
                    if before is not None:
                        async with asyncio.timeout(self._queue_deadline_s):
                            await before.finished.wait()
                    left_s = self._queue_deadline_s - (self._clock.monotonic() - asked_s)
                    await stack.enter_async_context(self._turns.turn(job.pool, left_s))
                except TimeoutError:
                    raise QueueDeadlineExceeded(job.id, self._queue_deadline_s) from None
            with self._metrics.running.labels(job.pool).track_inprogress():
                yield

    def _end(self, job: Job) -> None:
        job.ended_s = self._clock.time()
        self._tasks.pop(job.id, None)
        if self._busy.get(job.workspace) is job:
            del self._busy[job.workspace]
        job.finished.set()
        self._metrics.seconds.labels(job.pool, job.state).observe(job.ended_s - job.created_s)
        _log.info(
            "job_ended",
            job=job.id,
            kind=job.pool,
            workspace=str(job.workspace),
            state=job.state,
            error=str(job.error) if job.error else None,
            moved_bytes=job.progress.bytes,
        )
        self._ended.append(job.id)
        while len(self._ended) > _KEPT:
            gone = self._jobs.pop(self._ended.popleft())
            self._keys = {key: known for key, known in self._keys.items() if known[1] is not gone}


def _digest(request: Any) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()
