"""Leases in a bucket: an object that its holder rewrites every few seconds.

No kernel knows which holder is alive. A holder gives a sign by a new version of the object. A process that waits and
sees no new version for two heartbeats, by its own clock, takes the lease over; of several exactly one does. A holder
that was only slow notices that with its next sign. Two that work at once make the same bytes, so only time is lost.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from storage.errors import StorageError
from storage.locks import HEARTBEAT_SECONDS, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class Sighting(NamedTuple):
    """The version of a lease that was seen last, and when it was first seen, on this process's clock."""

    tag: str
    since: float


class TaggedObjects(Protocol):
    """The part of `storage.bucket.Bucket` that a lease uses: objects whose every version has a tag of its own."""

    sightings: dict[str, Sighting]

    def where(self, name: str) -> str:
        """Return the address of the object `name`."""

    def get_tagged(self, name: str) -> tuple[bytes, str]:
        """Return the object's bytes and the tag of this version. Raises `FileNotFoundError`."""

    def replace(self, name: str, data: bytes, tag: str | None) -> str | None:
        """Put `data` if the object is still the version `tag` (None: if there is none). Return the new tag, or None."""

    def delete(self, name: str) -> None:
        """Delete the object, if it exists."""


@contextmanager
def bucket_lease(
    bucket: TaggedObjects, name: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold the lease `name` for the body of the `with`; arguments and errors as for `storage.locks.file_lock`."""
    owner, over = uuid.uuid4().hex, threading.Event()
    held = f"{bucket.where(name)} is still held"
    tag = wait_for(lambda: _taken(bucket, name, owner), held, POLL_SECONDS, on_wait, timeout)
    beat = _Beat(bucket, name, owner, tag, over)
    beat.start()
    try:
        yield
    finally:
        over.set()
        beat.join()
        beat.release()


def _taken(bucket: TaggedObjects, name: str, owner: str) -> str | None:
    """Return the tag of the lease that is ours now, or None where another holds it and gave a sign lately."""
    tag = bucket.replace(name, _sign(owner, 0), None)
    if tag is not None:
        return tag
    try:
        _, seen = bucket.get_tagged(name)
    except FileNotFoundError:
        return None  # just released: the next try may have it
    known = bucket.sightings.get(name)
    if known is None or known.tag != seen:
        bucket.sightings[name] = Sighting(seen, time.monotonic())
        return None
    if time.monotonic() - known.since < 2 * HEARTBEAT_SECONDS:
        return None
    log.warning("%s: no sign of its holder for %.0f s; taken over", bucket.where(name), 2 * HEARTBEAT_SECONDS)
    return bucket.replace(name, _sign(owner, 0), seen)


class _Beat(threading.Thread):
    """A thread that gives signs until the lease is released or lost."""

    def __init__(self, bucket: TaggedObjects, name: str, owner: str, tag: str, over: threading.Event) -> None:
        super().__init__(name=f"lease {name}", daemon=True)
        self.bucket, self.lease, self.owner, self.over = bucket, name, owner, over
        self.tag: str | None = tag

    def run(self) -> None:
        count = 0
        while not self.over.wait(HEARTBEAT_SECONDS) and self.tag is not None:
            count += 1
            try:
                self.tag = self.bucket.replace(self.lease, _sign(self.owner, count), self.tag)
            except StorageError as error:  # another sign may get through
                log.warning("%s", error)
            if self.tag is None and not self._still(count):
                log.warning("%s was taken over by another process.", self.bucket.where(self.lease))

    def _still(self, count: int) -> bool:
        """Return whether the last sign was put and only the answer to it was lost."""
        try:
            found, tag = self.bucket.get_tagged(self.lease)
        except (FileNotFoundError, StorageError):
            return False
        self.tag = tag if found == _sign(self.owner, count) else None
        return self.tag is not None

    def release(self) -> None:
        """Delete the lease if it is still ours; one that cannot be deleted is taken over in time."""
        try:
            if self.tag is not None and self.bucket.get_tagged(self.lease)[1] == self.tag:
                self.bucket.delete(self.lease)
        except (FileNotFoundError, StorageError) as error:
            log.warning("%s is left to be taken over: %s", self.bucket.where(self.lease), error)


def _sign(owner: str, count: int) -> bytes:
    """Return the bytes of one sign: who holds the lease, and a number, so that no two versions are equal."""
    told = {"owner": owner, "host": socket.gethostname(), "process": os.getpid(), "sign": count}
    return json.dumps(told, indent=1).encode()
