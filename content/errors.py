"""What can go wrong with snapshots, as a tree.

::

    ContentError
     * NotFound          ObjectNotFound  SnapshotNotFound  WorkspaceEmpty  PathNotInSnapshot  JobNotFound
     * InvalidInput      InvalidStore  InvalidWorkspace  FormatUnsupported  MalformedArchive
                         UnsafeArchiveEntry  TreeUnfinished  TargetNotEmpty  PathOutsideRoot  SourceRefused
     * IntegrityError    ObjectCorrupt  ArchiveCorrupt  DownloadCorrupt
     * SourceFailed      (retryable)
     * AccessError       StoreDenied
     * ObjectStoreError  StoreUnavailable (retryable)  StoreRefused
     * ConflictError     Fenced  PointerMoved  WorkspaceBusy
     * LocalDiskError    the tree or the target cannot be used

Class names are shared with `ocikit.errors` where the meaning is; exit statuses are by these names.
"""

from typing import Any, Self

from servicekit.redact import redact_url


class ContentError(Exception):
    """The root of everything `content` raises on purpose; messages are one line and name the object.

    Goes through pickle as it is, whatever its constructor takes.
    """

    retryable = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (type(self), self.args), self.__dict__


def _revived(kind: type[ContentError], args: tuple[object, ...]) -> ContentError:
    error = kind.__new__(kind)
    error.args = args
    return error


class NotFound(ContentError, LookupError):
    """Nothing of that name there; a definite answer."""


class ObjectNotFound(NotFound):
    def __init__(self, key: str, store: str) -> None:
        super().__init__(f"object {key} not found in {store}")
        self.key = key


class SnapshotNotFound(NotFound):
    def __init__(self, snapshot_id: str, workspace: str) -> None:
        super().__init__(
            f"workspace {workspace} has no snapshot {snapshot_id}: see `lapstrake snapshots list`"
        )


class WorkspaceEmpty(NotFound):
    def __init__(self, workspace: str, store: str) -> None:
        super().__init__(f"workspace {workspace} has no backup in {store}")


class PathNotInSnapshot(NotFound):
    def __init__(self, path: str, snapshot_id: str) -> None:
        super().__init__(f"snapshot {snapshot_id} has no path {path!r}")


class JobNotFound(NotFound):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} not found")


class InvalidInput(ContentError, ValueError):
    """Something that cannot be what it should be, whoever sent it."""


class InvalidStore(InvalidInput):
    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"invalid store {text!r}: {reason}; write s3://bucket/prefix or file:///dir")


class InvalidWorkspace(InvalidInput):
    def __init__(self, text: str) -> None:
        super().__init__(
            f"invalid workspace {text[:200]!r}: write OWNER/ID of letters, digits, '.', '_' and '-'"
        )


class FormatUnsupported(InvalidInput):
    def __init__(self, what: str, version: object, known: int) -> None:
        super().__init__(f"{what} has format version {version!r}; this lapstrake reads {known}: update it")


class MalformedArchive(InvalidInput):
    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} is not a usable tar: {reason}")


class UnsafeArchiveEntry(InvalidInput):
    """An archive member that would reach outside its tree, or more than it may."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"archive entry {path!r} refused: {reason}")
        self.path = path


class TreeUnfinished(InvalidInput):
    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} is not backed up: its restore did not finish; restore it again, or delete it"
        )


class TargetNotEmpty(InvalidInput):
    def __init__(self, path: str) -> None:
        super().__init__(f"{path} exists and is not empty: choose a new directory, or say --replace")


class PathOutsideRoot(InvalidInput):
    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} is not a directory below the workspaces root")


class SourceRefused(InvalidInput):
    """A URL that must not be asked, or what it led to."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{redact_url(url)} is not asked: {reason}")


class SourceFailed(ContentError):
    """A repository or file could not be fetched."""

    retryable = True

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{redact_url(url)} cannot be fetched: {reason}")


class IntegrityError(ContentError):
    """Bytes that are not what was stored. Reading them again from the same place will not help."""


class ObjectCorrupt(IntegrityError):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"object {key} is corrupt: {reason}")


class ArchiveCorrupt(IntegrityError):
    def __init__(self, path: str, where: str) -> None:
        super().__init__(f"{path!r} in {where} is corrupt: its checksum does not match")


class DownloadCorrupt(IntegrityError):
    def __init__(self, url: str, digest: str) -> None:
        super().__init__(f"what {redact_url(url)} gives is not {digest}")


class AccessError(ContentError):
    """The store knows us, or not, and says no."""


class StoreDenied(AccessError):
    def __init__(self, store: str, action: str, detail: str) -> None:
        super().__init__(f"{store} denies {action}: {detail}")


class ObjectStoreError(ContentError):
    """The object store failed."""


class StoreUnavailable(ObjectStoreError):
    """No answer, or one that may be different next time; ``retry_after_s`` where the store named a time."""

    retryable = True

    def __init__(self, store: str, action: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{store} cannot be used for {action}: {detail}")
        self.retry_after_s = retry_after_s


class StoreRefused(ObjectStoreError):
    def __init__(self, store: str, action: str, detail: str) -> None:
        super().__init__(f"{store} refused {action}: {detail}")


class UploadGone(ObjectStoreError):
    """The multipart upload does not exist: completed, aborted, or swept by the store."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the upload of {key} does not exist any more")


class ConflictError(ContentError):
    """Somebody else is at work on the same thing, or has been since."""


class PreconditionFailed(ConflictError):
    def __init__(self, key: str) -> None:
        super().__init__(f"object {key} is not in the state that was asked for")


class PointerMoved(ConflictError):
    def __init__(self, workspace: str) -> None:
        super().__init__(f"another backup of {workspace} was committed while this one ran; start again")


class Fenced(ConflictError):
    def __init__(self, workspace: str, ours: int, theirs: int) -> None:
        super().__init__(
            f"workspace {workspace} was started elsewhere since (incarnation {theirs}, ours is {ours}): "
            "this tree must not replace its backups"
        )


class WorkspaceBusy(ConflictError):
    def __init__(self, workspace: str, what: str) -> None:
        super().__init__(f"workspace {workspace} is busy: {what}")


class LocalDiskError(ContentError):
    """The tree or the target on the local disk cannot be used; the system's reason is in the message."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")

    @classmethod
    def from_os(cls, path: str, error: OSError) -> Self:
        return cls(path, error.strerror or str(error))
