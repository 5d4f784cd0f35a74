"""What the exit status of ``lapstrake`` means, and which error ends with which.

====  =====================================================================
code  meaning
====  =====================================================================
0     done
1     failed for a reason none of the others names
2     the command line cannot be understood
3     done, but with something left out (named in the output)
4     a settings file, project file or other input is invalid
5     the named image, workspace, snapshot or file does not exist
6     bytes are not what their checksum says: corrupt or tampered with
7     a registry, object store or service cannot be reached
8     access denied: credentials are missing or do not suffice
9     a build failed
10    a test of a chunk or image failed
11    the local disk cannot be used: full, read-only, no permission
12    another run is at work on the same thing, or a newer one has been
130   interrupted
====  =====================================================================
"""

OK = 0
FAILED = 1
USAGE = 2
INCOMPLETE = 3
INVALID = 4
NOT_FOUND = 5
CORRUPT = 6
UNAVAILABLE = 7
DENIED = 8
BUILD_FAILED = 9
TEST_FAILED = 10
DISK = 11
CONFLICT = 12
INTERRUPTED = 130

BY_ERROR = {
    # the nearest class in the error's method resolution order decides
    "SettingsInvalid": INVALID,
    "InvalidInput": INVALID,
    "NotFound": NOT_FOUND,
    "IntegrityError": CORRUPT,
    "AccessError": DENIED,
    "CredentialHelperFailed": DENIED,
    "DockerConfigInvalid": INVALID,
    "RegistryError": UNAVAILABLE,
    "TransportError": UNAVAILABLE,
    "SourceUnavailable": UNAVAILABLE,
    "ListenFailed": UNAVAILABLE,
    "DemoFailed": FAILED,
    "StoreError": DISK,
    "ObjectStoreError": UNAVAILABLE,
    "ConflictError": CONFLICT,
    "LocalDiskError": DISK,
    "ProjectInvalid": INVALID,
    "UnknownName": NOT_FOUND,
    "ChunkMissing": NOT_FOUND,
    "InvalidLayer": CORRUPT,
    "FilesConflict": INVALID,
    "EngineUnavailable": UNAVAILABLE,
    "BuildFailed": BUILD_FAILED,
    "TestsFailed": TEST_FAILED,
    "WorkspaceError": DISK,
}
"""Class names, so that no package is imported to tell what an error means."""


def is_expected(error: BaseException) -> bool:
    """Whether ``error`` was raised on purpose and so speaks for itself."""
    return any(cls.__name__ in BY_ERROR for cls in type(error).__mro__)


def exit_code(error: BaseException) -> int:
    """The documented status for ``error``: what it says itself, else the table, else 1."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    for cls in type(error).__mro__:
        if cls.__name__ in BY_ERROR:
            return BY_ERROR[cls.__name__]
    return FAILED
