"""``python -m content.processes.extractor FD``: writes windows of a tar into a tree until the socket FD ends.

Its parent (`content.extractors`) sends a `Setup`, then windows, with where each lies in the shared memory;
each is answered with None, or the error that it met. A final None is answered with what is left to do. When
the parent is gone, so is the socket, and this process ends.
"""

import gc
import mmap
import signal
import sys
from multiprocessing.connection import Connection
from typing import cast

from content.archive.extract import TreeWriter
from content.errors import ContentError
from content.selection import Window
from content.windows import Setup, write_window


def main(parent: "Connection[object, object]") -> None:
    gc.disable()  # what is made here is freed by its counts; looking for cycles takes a twentieth of the time
    setup = cast("Setup", parent.recv())
    tree = TreeWriter(setup.root, setup.limits, where=setup.where, ids=setup.ids)
    try:
        with mmap.mmap(setup.memory, 0) as memory, memoryview(memory) as view:
            while isinstance(question := parent.recv(), tuple):
                room, window = cast("tuple[int, Window]", question)
                with view[room : room + window.span.length] as data:
                    parent.send(_written(data, window, tree, setup.archive))
            parent.send(tree.hand_over())
    except (EOFError, ConnectionError):
        return
    finally:
        tree.close()


def _written(data: memoryview, window: Window, tree: TreeWriter, archive: str) -> ContentError | None:
    try:
        write_window(data, window, tree, archive)
    except ContentError as error:
        return error
    return None


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides; its end is ours
    main(Connection(int(sys.argv[1])))
