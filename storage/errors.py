"""What can go wrong in a store; each error is also the builtin that a caller would expect.

    StorageError
    ├── ArtifactNotFoundError    KeyError         no manifest under this key, or no such file in the artifact
    ├── RunNotFoundError         KeyError         no run of this name
    ├── RunExistsError           FileExistsError  a run of this name was created before
    ├── DamagedArtifactError     ValueError       bytes differ from their checksums; moved to `trash/`
    ├── DamagedRunError          ValueError       `run.json` differs from its checksum; left where it is
    ├── UnsupportedFormatError   RuntimeError     sound bytes, but written by another version of this package
    ├── InvalidNameError         ValueError       a key or name that must not become part of a path
    ├── LeaseTimeoutError        TimeoutError     a lock was still held by someone else
    ├── StoreFullError           OSError          no space or no quota left
    └── StoreAccessError         OSError          permission lost, read-only, or a failing device

Every message is one sentence that names the path, key or run.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_SPACE_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
NO_ACCESS_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOLCK}


class StorageError(Exception):
    """Root of the tree. `str` is the plain message, also for those that are a `KeyError` or an `OSError`."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class ArtifactNotFoundError(StorageError, KeyError):
    """No manifest under this key, or no such file in the artifact."""


class RunNotFoundError(StorageError, KeyError):
    """No run of this name."""


class RunExistsError(StorageError, FileExistsError):
    """A run of this name was created before."""


class DamagedArtifactError(StorageError, ValueError):
    """Bytes on disk differ from what was committed."""


class DamagedRunError(StorageError, ValueError):
    """The record of a run differs from what was saved."""


class UnsupportedFormatError(StorageError, RuntimeError):
    """Intact bytes in a format that this version does not know; never moved to the trash as damaged."""


class InvalidNameError(StorageError, ValueError):
    """A key or name that must not become part of a path."""


class LeaseTimeoutError(StorageError, TimeoutError):
    """A lock was still held by someone else when the time to wait was over."""


class StoreFullError(StorageError, OSError):
    """No space or no quota left; everything committed before is intact."""


class StoreAccessError(StorageError, OSError):
    """The operating system refused to read or write."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about space and access into ours, which name `path` if those name none.

    Other errors pass unchanged: the caller decides what a missing file means.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        where = error.filename or path
        ours: StoreFullError | StoreAccessError | None = None
        if error.errno in NO_SPACE_ERRNOS:
            ours = StoreFullError(f"no space left to write {where}: {error.strerror}.")
        elif error.errno in NO_ACCESS_ERRNOS:
            ours = StoreAccessError(f"cannot read or write {where}: {error.strerror}.")
        if ours is None:
            raise
        ours.errno, ours.filename = error.errno, str(where)
        raise ours from error
