"""Bytes on disk: what exists, what is complete, what to resume.

An `ArtifactStore` keeps the result of every stage call under the `fingerprint` of all that decides its bytes. An
artifact exists once its `Manifest` does, which lists and hashes every file and is written last. `Checkpoints` keep the
state inside a long stage, `Unfinished` the frames that a video has so far, `Runs` what was asked for and how it went.
A `Backend` is what they stand on: a folder (`Disk`) or a bucket (`storage.bucket`). After a crash at any instant
readers see the state before or after a commit, nothing in between, and no read returns a byte that was not committed.
Leases and the `device_lock` are kernel locks that end with the process that holds them; a lease also passes from a
process that is stopped to another.

Names are imported from their modules at first use, so that listing runs does not load torch and zarr.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# These two functions are named like their modules. Imported here, the function keeps the name; imported at first use,
# the module would take it as soon as another module of the package imports it.
from storage.device_lock import device_lock
from storage.fingerprint import canonical, fingerprint

if TYPE_CHECKING:
    from storage.arrays import open_dask
    from storage.backend import Backend, Disk
    from storage.checkpoints import Checkpoint, Checkpoints
    from storage.durable import whole_file
    from storage.errors import (
        ArtifactNotFoundError,
        DamagedArtifactError,
        DamagedRunError,
        InvalidNameError,
        LeaseTimeoutError,
        RunExistsError,
        RunNotFoundError,
        StorageError,
        StoreAccessError,
        StoreFullError,
        UnsupportedFormatError,
    )
    from storage.frames import Frames
    from storage.manifest import ArrayRecord, Attempt, FileRecord, Manifest, PlannedCall, RunRecord
    from storage.pieces import Pieces, Unfinished
    from storage.runs import Runs
    from storage.store import ArtifactStore, Writer

__all__ = [
    "ArrayRecord",
    "ArtifactNotFoundError",
    "ArtifactStore",
    "Attempt",
    "Backend",
    "Checkpoint",
    "Checkpoints",
    "DamagedArtifactError",
    "DamagedRunError",
    "Disk",
    "FileRecord",
    "Frames",
    "InvalidNameError",
    "LeaseTimeoutError",
    "Manifest",
    "Pieces",
    "PlannedCall",
    "RunExistsError",
    "RunNotFoundError",
    "RunRecord",
    "Runs",
    "StorageError",
    "StoreAccessError",
    "StoreFullError",
    "Unfinished",
    "UnsupportedFormatError",
    "Writer",
    "canonical",
    "device_lock",
    "fingerprint",
    "open_dask",
    "whole_file",
]

_MODULES = {
    "ArrayRecord": "manifest",
    "ArtifactNotFoundError": "errors",
    "ArtifactStore": "store",
    "Attempt": "manifest",
    "Backend": "backend",
    "Checkpoint": "checkpoints",
    "Checkpoints": "checkpoints",
    "DamagedArtifactError": "errors",
    "DamagedRunError": "errors",
    "Disk": "backend",
    "FileRecord": "manifest",
    "Frames": "frames",
    "InvalidNameError": "errors",
    "LeaseTimeoutError": "errors",
    "Manifest": "manifest",
    "Pieces": "pieces",
    "PlannedCall": "manifest",
    "RunExistsError": "errors",
    "RunNotFoundError": "errors",
    "RunRecord": "manifest",
    "Runs": "runs",
    "StorageError": "errors",
    "StoreAccessError": "errors",
    "StoreFullError": "errors",
    "Unfinished": "pieces",
    "UnsupportedFormatError": "errors",
    "Writer": "store",
    "open_dask": "arrays",
    "whole_file": "durable",
}


def __getattr__(name: str) -> Any:
    """Import a name of `__all__` from its module (PEP 562). Raises `AttributeError` for any other."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"storage.{_MODULES[name]}"), name)
    return value
