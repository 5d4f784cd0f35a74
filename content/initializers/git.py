"""Brings a directory to a commit of a repository, with git, without trusting what is there.

git is told everything by the command line and by a configuration of our own: no hooks, no prompts, no
credential helpers, an allow-list of protocols that also holds for submodules, redirects refused. The
repository's directory is always made anew, because a configuration found in a tree can make git run programs;
of an older one only the index is used, so that files which the commit does not have any more disappear.
"""

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urljoin, urlsplit

from content.archive.extract import safe_path
from content.confinement import confined
from content.errors import SourceFailed, SourceRefused
from content.initializers.policy import Owner, Policy
from content.initializers.specs import FromGit, url_problem
from ocikit.distribution.wall import is_private

_CONFIG = """\
[core]
    hooksPath = /dev/null
    fsmonitor = false
[credential]
    helper =
[http]
    followRedirects = false
[gc]
    auto = 0
[advice]
    detachedHead = false
[safe]
    directory = *
"""
_MAX_SUBMODULES, _MAX_LEVELS = 200, 5
_SHOWN_CHARS = 300


class Git:
    """git for one tree; an async context manager. ``tree`` is trusted to stay where it is."""

    def __init__(self, tree: Path, owner: Owner, policy: Policy) -> None:
        self._tree = tree
        self._owner = owner
        self._policy = policy
        self._config = tempfile.TemporaryDirectory(prefix="lapstrake-git-")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._write_config)
        return self

    def _write_config(self) -> None:
        home = Path(self._config.name)
        home.chmod(0o755)
        (home / "config").write_text(_CONFIG)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._config.cleanup)

    async def check_out(self, source: FromGit, *, level: int = 0) -> str:
        """The id of the commit that ``source.target`` then is at. Raises SourceRefused, SourceFailed."""
        target = await asyncio.to_thread(self._prepare, source.target)
        pinned = await self._judge(source.url)
        work = _Repository(self, target, source, pinned)
        commit = await work.check_out()
        if source.submodules:
            if level >= _MAX_LEVELS:
                raise SourceRefused(source.url, f"its submodules are nested more than {_MAX_LEVELS} deep")
            for submodule in await work.submodules():
                await self.check_out(submodule, level=level + 1)
        return commit

    def _prepare(self, target: str) -> Path:
        path = self._tree if not target else confined(self._tree, target)
        missing = [path, *path.parents]
        for directory in reversed(missing[: missing.index(self._tree)]):
            if not directory.is_dir():
                directory.mkdir(mode=0o755)
                os.chown(directory, self._owner.uid, self._owner.gid)
        return path

    async def _judge(self, url: str) -> Sequence[str]:
        """Refuses what leads to a private network; returns options that keep git at the addresses seen."""
        if (problem := url_problem(url, self._policy.protocols)) is not None:
            raise SourceRefused(url, f"its URL {problem}")
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "file" or host in self._policy.hosts:
            return ()
        port = parts.port or {"https": 443, "http": 80, "ssh": 22, "git": 9418}.get(parts.scheme, 0)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SourceFailed(url, f"{host}: {error.strerror or error}") from error
        addresses = sorted({str(item[4][0]) for item in found})
        if any(is_private(address) for address in addresses):
            raise SourceRefused(url, f"{host} is on a private network")
        if parts.scheme in {"http", "https"}:
            shown = ",".join(f"[{at}]" if ipaddress.ip_address(at).version == 6 else at for at in addresses)
            return ("-c", f"http.curloptResolve={host}:{port}:{shown}")
        return ()

    async def run(self, *arguments: str, cwd: Path, url: str, **more: str) -> str:
        """What git prints. Raises SourceFailed with its last words; a cancellation ends git."""
        identity = {"user": self._owner.uid, "group": self._owner.gid, "extra_groups": []}
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            cwd=cwd,
            env={**self._environment(), **more},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            **(identity if os.geteuid() == 0 else {}),  # type: ignore[arg-type]
        )
        try:
            output, words = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if process.returncode:
            lines = words.decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
            raise SourceFailed(url, lines[-1][:_SHOWN_CHARS])
        return output.decode(errors="surrogateescape")

    def _environment(self) -> Mapping[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": self._config.name,
            "LC_ALL": "C",
            "GIT_CONFIG_GLOBAL": f"{self._config.name}/config",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "SSH_ASKPASS": "/bin/false",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            "GIT_ALLOW_PROTOCOL": ":".join(sorted(self._policy.protocols)),
            "GIT_ATTR_NOSYSTEM": "1",
        }


@dataclass(frozen=True, slots=True)
class _Repository:
    """One repository at ``path``; ``pinned`` are options for whatever goes to the network."""

    git: Git
    path: Path
    source: FromGit
    pinned: Sequence[str]

    async def _run(self, *arguments: str) -> str:
        directories = ("--git-dir", str(self.path / ".git"), "--work-tree", str(self.path))
        return await self.git.run(*directories, *arguments, cwd=self.path, url=self.source.url)

    async def check_out(self) -> str:
        index = await asyncio.to_thread(self._take_away_old)
        try:
            await self._initialise()
            branch = self.source.branch
            if branch is None and self.source.commit is None:
                branch = await self._default_branch()
            commit = await self._fetch(branch)
            if index is not None:
                await asyncio.to_thread(self._give_index, index)
            await self._run("read-tree", "--reset", "-u", commit)
        finally:
            if index is not None:
                index.unlink(missing_ok=True)
        if branch is None:
            await self._run("update-ref", "--no-deref", "HEAD", commit)
        else:
            await self._run("update-ref", f"refs/heads/{branch}", commit)
            await self._run("symbolic-ref", "HEAD", f"refs/heads/{branch}")
            await self._run("config", f"branch.{branch}.remote", "origin")
            await self._run("config", f"branch.{branch}.merge", f"refs/heads/{branch}")
        return commit

    def _take_away_old(self) -> Path | None:
        """Removes a repository that is there; returns a copy of its index."""
        old = self.path / ".git"
        if not os.path.lexists(old):
            return None
        kept: Path | None = None
        with contextlib.suppress(OSError):
            directory = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                descriptor = os.open("index", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
            finally:
                os.close(directory)
            with os.fdopen(descriptor, "rb") as file, tempfile.NamedTemporaryFile(delete=False) as copy:
                kept = Path(copy.name)
                shutil.copyfileobj(file, copy)
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
        return kept

    def _give_index(self, index: Path) -> None:
        place = self.path / ".git" / "index"
        shutil.copyfile(index, place)
        owner = self.path.joinpath(".git").stat()
        os.chown(place, owner.st_uid, owner.st_gid)

    async def _ask(self, *arguments: str) -> str:
        """As `_run`, for what goes to the network. Credentials are in the environment, which others cannot
        read, and for one origin, so that submodules elsewhere do not get them.
        """
        directories = ("--git-dir", str(self.path / ".git"), "--work-tree", str(self.path))
        more = authorized(self.source)
        return await self.git.run(
            *directories, *self.pinned, *arguments, cwd=self.path, url=self.source.url, **more
        )

    async def _initialise(self) -> None:
        await self._run("init", "-q", "--template=", "--initial-branch=main")
        await self._run("config", "remote.origin.url", self.source.url)
        await self._run("config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")

    async def _default_branch(self) -> str:
        answer = await self._ask("ls-remote", "--symref", "--", self.source.url, "HEAD")
        for line in answer.splitlines():
            if line.startswith("ref: refs/heads/"):
                return line.removeprefix("ref: refs/heads/").partition("\t")[0]
        raise SourceFailed(self.source.url, "the repository has no default branch: name one")

    async def _fetch(self, branch: str | None) -> str:
        """The commit, whose history is then here as deep as asked."""
        source = self.source
        depth = (f"--depth={source.depth}",) if source.depth is not None else ()
        tracked = f"refs/remotes/origin/{branch}"
        if branch is not None:
            wanted = [f"+refs/heads/{branch}:{tracked}"] if depth else ["+refs/heads/*:refs/remotes/origin/*"]
        elif depth:
            wanted = [source.commit or "HEAD"]
        else:
            wanted = ["+refs/heads/*:refs/remotes/origin/*"]
        await self._fetch_refs(*depth, "--", "origin", *wanted)
        if source.commit is None:
            return (await self._run("rev-parse", "--verify", f"{tracked}^{{commit}}")).strip()
        try:
            await self._run("cat-file", "-e", f"{source.commit}^{{commit}}")
        except SourceFailed:  # no branch leads to it, or not within the depth
            await self._fetch_refs(*depth, "--", "origin", source.commit)
        return source.commit

    async def _fetch_refs(self, *arguments: str) -> None:
        await self._ask("fetch", "-q", "--no-recurse-submodules", "--no-auto-maintenance", *arguments)

    async def submodules(self) -> list[FromGit]:
        """Those of the commit, at the commits that it names."""
        tree = await self._run("ls-tree", "-r", "-z", "--full-tree", "HEAD")
        links = {
            path: head.split()[2]
            for head, _, path in (row.partition("\t") for row in tree.split("\0"))
            if head.startswith("160000 ")
        }
        if not links:
            return []
        if len(links) > _MAX_SUBMODULES:
            raise SourceRefused(self.source.url, f"it has more than {_MAX_SUBMODULES} submodules")
        pattern = r"^submodule\..*\.(path|url)$"
        try:
            rows = await self._run("config", "--blob", "HEAD:.gitmodules", "-z", "--get-regexp", pattern)
        except SourceFailed:  # links, but nothing that says where they lead
            return []
        places, urls = _module_map(rows)
        found: list[FromGit] = []
        for name, path in places.items():
            if path in links and name in urls:
                found.append(await self._submodule(name, path, urls[name], links[path]))
        return found

    async def _submodule(self, name: str, path: str, url: str, commit: str) -> FromGit:
        base = self.source.url
        if url.startswith(("./", "../")):
            url = urljoin(base.rstrip("/") + "/", url)
        below = os.fsdecode(safe_path(os.fsencode(path)))
        if (problem := url_problem(url, self.git._policy.protocols)) is not None:  # noqa: SLF001 (its own)
            raise SourceRefused(base, f"the URL of submodule {below!r} {problem}")
        await self._run("config", f"submodule.{name}.url", url)
        await self._run("config", f"submodule.{name}.active", "true")
        target = f"{self.source.target}/{below}" if self.source.target else below
        same = urlsplit(url)[:2] == urlsplit(base)[:2]
        authorization = self.source.authorization if same else None
        return replace(
            self.source, url=url, branch=None, commit=commit, target=target, authorization=authorization
        )


def authorized(source: FromGit) -> Mapping[str, str]:
    """Variables that make git send the authorization of ``source`` to its origin. Pure."""
    parts = urlsplit(source.url)
    if source.authorization is None or parts.scheme not in {"http", "https"}:
        return {}
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{parts.scheme}://{parts.netloc}/.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: {source.authorization.reveal()}",
    }


def _module_map(rows: str) -> tuple[dict[str, str], dict[str, str]]:
    """(path, url) of each submodule's name, from ``git config -z``."""
    places: dict[str, str] = {}
    urls: dict[str, str] = {}
    for row in rows.split("\0"):
        key, _, value = row.partition("\n")
        name, _, field = key.removeprefix("submodule.").rpartition(".")
        if name and "\n" not in name:
            (places if field == "path" else urls)[name] = value
    return places, urls
