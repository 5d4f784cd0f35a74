"""Has the kernel read small files before a walk comes to them, where they are not in its cache.

A thread goes through the same tree some files ahead of the reader and asks for their beginnings, so that the
disk has many requests at a time instead of one. It looks at a few files of each stretch first: when those
needed no reading, it leaves the rest alone, and a warm cache costs next to nothing. It rests while neighbours
need the disk, whose queue it would fill. Nothing depends on what it finds.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from content.archive.excludes import Excludes
from content.archive.walk import Found, open_directory
from content.disk_time import inputs

_AHEAD = 1024
_STRETCH = 256
_SAMPLE = 8
_REPORT_EVERY = 128
_BYTES = 128 << 10
"""Of each file; with `_AHEAD` a bound of 128 MiB. Beyond it the kernel's own read-ahead serves."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Readahead:
    """A context manager around the walk of ``root``; the thread ends with it, and rests while ``is_held``."""

    def __init__(self, root: str, excludes: Excludes, *, is_held: Callable[[], bool] = lambda: False) -> None:
        self._root = root
        self._excludes = excludes
        self._is_held = is_held
        self._thread = threading.Thread(target=self._run, name="readahead", daemon=True)
        self._moved = threading.Event()
        self._stopped = False
        self._reader = 0
        self._seen = 0
        self._files = 0
        self._inputs = 0
        self._is_cold = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._moved.set()
        self._thread.join()

    def following(self, walk: Iterable[Found]) -> Iterator[Found]:
        """The walk, whose progress the thread keeps pace with."""
        for number, found in enumerate(walk):
            if number % _REPORT_EVERY == 0:
                self._reader = number
                self._moved.set()
            yield found

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            device = os.fstat(descriptor).st_dev
            stack = [("", descriptor, self._entries(descriptor))]
            try:
                while stack and not self._stopped:
                    self._step(stack, device)
            finally:
                for _, directory, _ in stack:
                    os.close(directory)

    def _step(self, stack: list[tuple[str, int, Iterator[os.DirEntry[str]]]], device: int) -> None:
        """On to the next directory, or up."""
        prefix, directory, entries = stack[-1]
        for entry in entries:
            if self._stopped:
                return
            self._seen += 1
            if entry.is_file(follow_symlinks=False):
                self._file(entry.name, directory)
            elif entry.is_dir(follow_symlinks=False):
                path = prefix + entry.name
                if self._excludes.patterns and self._excludes.match(path, is_directory=True):
                    continue
                with contextlib.suppress(OSError):
                    below = open_directory(entry.name, directory)
                    if os.fstat(below).st_dev == device:
                        stack.append((path + "/", below, self._entries(below)))
                        return
                    os.close(below)
        stack.pop()
        os.close(directory)

    @staticmethod
    def _entries(descriptor: int) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(descriptor) as entries:
                return iter(sorted(entries, key=lambda entry: entry.name))
        except OSError:
            return iter(())

    def _file(self, name: str, directory: int) -> None:
        place = self._files % _STRETCH
        self._files += 1
        if place == 0:
            self._inputs = inputs()
        elif place == _SAMPLE:
            self._is_cold = inputs() != self._inputs
        if place >= _SAMPLE and not self._is_cold:
            return
        while (self._seen > self._reader + _AHEAD or self._is_held()) and not self._stopped:
            self._moved.wait()
            self._moved.clear()
        if self._seen < self._reader:
            return  # overtaken
        with contextlib.suppress(OSError):
            descriptor = os.open(name, _OPEN, dir_fd=directory)
            try:
                os.posix_fadvise(descriptor, 0, _BYTES, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
