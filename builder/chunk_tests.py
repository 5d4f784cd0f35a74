"""Running the tests of chunks against an image: the bytes that ship, each distinct case once.

A pass is remembered under the content it was seen on (layers and what of the config a process can see) and
the test itself; failures are not remembered.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.assertions import AssertionInvalid
from builder.platforms import is_runnable
from builder.project import ChunkTest
from builder.sandbox import Command, Outcome, Sandbox
from ocikit.digest import chain_id
from ocikit.image_config import ImageConfig
from ocikit.manifest import canonical_json
from ocikit.repository import Image, Repository
from servicekit.threads import in_thread

_SHOWN_OUTPUT = 2000
_FORMAT_VERSION = 1
_SEEN_BY_PROCESSES = ("Env", "User", "WorkingDir", "Entrypoint")


@dataclass(frozen=True, slots=True)
class TestCase:
    """One test of one chunk on one image; ``image`` is its name for people."""

    __test__ = False  # pytest collects classes by this name

    image: str
    chunk: str
    test: ChunkTest


@dataclass(frozen=True, slots=True)
class TestResult:
    """``failure`` is empty for a pass and for a test that did not run, for the reason ``not_run``."""

    __test__ = False  # pytest collects classes by this name

    case: TestCase
    failure: str = ""
    is_cached: bool = False
    duration_s: float = 0.0
    not_run: str = ""

    @property
    def is_passed(self) -> bool:
        return not self.failure and not self.not_run


class PassedTests:
    """Which (content, test) pairs have passed. Blocking; several processes may share ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, key: str) -> bool:
        return (self._root / key).exists()

    def add(self, key: str) -> None:
        (self._root / key).touch()


def test_key(config: ImageConfig, test: ChunkTest) -> str:
    """What a result depends on, as 64 hexadecimal digits."""
    document = {
        "format_version": _FORMAT_VERSION,
        "layers": chain_id(config.diff_ids) if config.diff_ids else "",
        "config": {name: config.execution.get(name) for name in _SEEN_BY_PROCESSES},
        "command": test.command,
        "entrypoint": test.entrypoint,
        "env": dict(test.env),
        "user": test.user,
        "assert": [assertion.text for assertion in test.assertions],
    }
    return hashlib.sha256(canonical_json(document)).hexdigest()


class TestRunner:
    """Runs at most ``jobs`` tests at a time. ``results`` are what its users found worth a report."""

    __test__ = False  # pytest collects classes by this name

    def __init__(self, sandbox: Sandbox, passed: PassedTests, *, jobs: int, timeout_s: float) -> None:
        self._sandbox = sandbox
        self._passed = passed
        self._slots = asyncio.Semaphore(jobs)
        self._timeout_s = timeout_s
        self.results: list[TestResult] = []
        self._under_way: dict[str, asyncio.Lock] = {}

    async def run(
        self, image: Image, repository: Repository, cases: Sequence[TestCase]
    ) -> Sequence[TestResult]:
        """A result for each case, in order; a failing test is a result, not an exception."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._case(image, repository, case)) for case in cases]
        return [task.result() for task in tasks]

    async def _case(self, image: Image, repository: Repository, case: TestCase) -> TestResult:
        if case.test.skip:
            return TestResult(case, not_run="skipped by the project")
        if not await in_thread(is_runnable, image.config.platform):
            return TestResult(case, not_run=f"this host cannot run {image.config.platform}")
        key = test_key(image.config, case.test)
        async with self._under_way.setdefault(key, asyncio.Lock()), self._slots:
            if await in_thread(self._passed.has, key):
                return TestResult(case, is_cached=True)
            started_s = time.monotonic()
            failure = await self._failure(image, repository, case.test)
            if not failure:
                await in_thread(self._passed.add, key)
            return TestResult(case, failure, duration_s=time.monotonic() - started_s)

    async def _failure(self, image: Image, repository: Repository, test: ChunkTest) -> str:
        command = Command(test.command, test.entrypoint, test.env, test.user, test.entrypoint is not None)
        try:
            outcome = await self._sandbox.run(image, repository, command, timeout_s=self._timeout_s)
        except TimeoutError:
            return f"still running after {self._timeout_s:g} s; killed"
        return await asyncio.to_thread(judge, test, outcome)


def judge(test: ChunkTest, outcome: Outcome) -> str:
    """Why ``outcome`` fails ``test``: the first assertion that does not hold, with the output; or ""."""
    for assertion in test.assertions:
        try:
            if assertion.holds(status=outcome.status, stdout=outcome.stdout, stderr=outcome.stderr):
                continue
            reason = f"does not hold: {assertion.text}"
        except AssertionInvalid as error:
            reason = str(error)
        parts = [reason, f"status {outcome.status}"]
        parts += [
            f"{name}: {text.strip()[-_SHOWN_OUTPUT:]}"
            for name, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr))
            if text.strip()
        ]
        return "\n".join(parts)
    return ""


def describe_failure(result: TestResult) -> str:
    """For people: image, chunk, test, then the cause, indented."""
    case = result.case
    cause = result.failure.replace("\n", "\n    ")
    return f"{case.image}: test of {case.chunk} failed: {case.test.description}\n    {cause}"


def cases_of(image: str, chunks: Mapping[str, Sequence[ChunkTest]]) -> Sequence[TestCase]:
    return [TestCase(image, name, test) for name, tests in chunks.items() for test in tests]
