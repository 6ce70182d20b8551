"""A bucket of an S3-compatible object store as a store's backend, with working copies in a local folder.

The bucket has the layout of a folder, so that any program can read its arrays as Zarr. Data folders never change once
they are kept, so a local copy whose bytes match the manifest is as good as the bucket's. When the copies take too much
space, those that were used longest ago are deleted. A record is put in one request: readers see the old or the new one.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import translate
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from storage.backend import Entry
from storage.bucket_lease import Sighting, bucket_lease
from storage.durable import file_digest
from storage.errors import StoreAccessError, explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from storage.manifest import FileRecord

URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?")
COPIES_BYTES = 20 << 30  # of local copies; beyond it, those that were used longest ago are deleted
IN_USE_SECONDS = 86_400.0  # a copy that was used so recently stays: somebody may be reading it chunk by chunk
PARALLEL_REQUESTS = 8  # at a time
DOWNLOAD_CHUNK_BYTES = 8 << 20  # of a download, held in memory


class Bucket:
    """`s3://bucket/prefix`, with credentials and endpoint from the environment (`AWS_…`), copied to and from `root`."""

    def __init__(self, url: str, root: Path, machine: Path | None = None, *, copies_bytes: int = COPIES_BYTES) -> None:
        """Open the address `url`; nothing is sent yet. Raises `ValueError` for what is no such address."""
        if not URL.fullmatch(url):
            raise ValueError(f"{url!r} is not s3://BUCKET or s3://BUCKET/PREFIX")
        self.url, self.root, self.machine, self.copies_bytes = url.rstrip("/"), root, machine or root, copies_bytes
        parts, endpoint = urlsplit(self.url), os.environ.get("AWS_ENDPOINT_URL", "")
        self._store = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options={"allow_http": endpoint.startswith("http://"), "connect_timeout": timedelta(seconds=5)},
            retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)},
        )
        self.sightings: dict[str, Sighting] = {}  # leases of others, and since when they have not changed

    def probe(self) -> None:
        """Write, read and delete a small object; check that conditional requests work. Raises `StoreAccessError`."""
        name, word = f"probe/{uuid.uuid4().hex}", b"freescale"
        try:
            self.put(name, word, exclusive=True)
            found, tag = self.get_tagged(name)
            twice, stale = self.replace(name, word, None), self.replace(name, word, f'"{"0" * 32}"')
            self.delete(name)
        except FileNotFoundError:
            raise StoreAccessError(f"there is no bucket at {self.url}.") from None
        if found != word:
            raise StoreAccessError(f"{self.url} does not give back what was put there.")
        if twice is not None or stale is not None:
            raise StoreAccessError(f"{self.url} ignores If-None-Match and If-Match ({tag}); a store needs both.")

    def where(self, name: str) -> str:
        """Return the address of the object."""
        return f"{self.url}/{name}"

    def get(self, name: str) -> bytes:
        """Return the bytes of the object. Raises `FileNotFoundError`."""
        return self.get_tagged(name)[0]

    def get_tagged(self, name: str) -> tuple[bytes, str]:
        """Return the bytes of the object and the tag of this version. Raises `FileNotFoundError`."""
        with self._explained(name):
            found = obstore.get(self._store, name)
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def put(self, name: str, data: bytes, *, exclusive: bool = False) -> None:
        """Put the object in one request, which the service does wholly or not at all."""
        with self._explained(name):
            obstore.put(self._store, name, data, mode="create" if exclusive else "overwrite", use_multipart=False)

    def replace(self, name: str, data: bytes, tag: str | None) -> str | None:
        """Put `data` if the object is still the version `tag` (None: if there is none). Return the new tag, or None."""
        mode: Any = "create" if tag is None else {"e_tag": tag}
        try:
            with self._explained(name):
                return str(obstore.put(self._store, name, data, mode=mode, use_multipart=False)["e_tag"])
        except (FileExistsError, FileNotFoundError):
            return None

    def delete(self, name: str) -> None:
        """Delete the object, if it exists."""
        with self._explained(name):
            obstore.delete(self._store, name)

    def names(self, pattern: str) -> list[str]:
        """Return the names of the objects that match."""
        matches = _matcher(pattern)
        return sorted(str(one["path"]) for one in self._listed(pattern) if matches(str(one["path"])))

    def keep(self, folder: str, files: Iterable[str] | None = None) -> None:
        """Upload all files of a local folder, or those of `files`; the folder stays as a copy."""
        local = self.root / folder
        paths = [p for p in local.rglob("*") if p.is_file()] if files is None else [local / name for name in files]

        def upload(path: Path) -> None:
            name = path.relative_to(self.root).as_posix()
            with self._explained(name):
                obstore.put(self._store, name, path)

        with ThreadPoolExecutor(PARALLEL_REQUESTS) as executor:
            list(executor.map(upload, paths))
        self._use(local)
        self._bound()

    def fetch(self, folder: str, files: Mapping[str, FileRecord]) -> Path:
        """Return the local copy, after downloading the files that are missing in it or differ."""
        local = self.root / folder

        def download(item: tuple[str, FileRecord]) -> bool:
            name, record = item
            with explained(local / name):
                try:
                    is_there = file_digest(local / name) == (record.size, record.blake2b)
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    is_there = False
                if not is_there:
                    self._download(f"{folder}/{name}", local / name)
            return not is_there

        with ThreadPoolExecutor(PARALLEL_REQUESTS) as executor:
            is_new = any(list(executor.map(download, files.items())))
        self._use(local)
        if is_new:
            self._bound()
        return local

    def discard(self, folder: str) -> None:
        """Delete every object below `folder`, and the local copy."""
        for name in self._below(folder):
            self.delete(name)
        shutil.rmtree(self.root / folder, ignore_errors=True)

    def move(self, name: str, folder: str) -> None:
        """Copy and delete object by object; the local copy is deleted."""
        last = name.rpartition("/")[2]
        for one in self._below(name) or [name]:
            try:
                with self._explained(one):
                    obstore.copy(self._store, one, f"{folder}/{last}{one.removeprefix(name)}")
            except FileNotFoundError:
                continue
            self.delete(one)
        shutil.rmtree(self.root / name, ignore_errors=True)

    def entries(self, pattern: str) -> list[Entry]:
        """Return the objects that match, gathered by the first parts of their names."""
        depth, matches = pattern.count("/") + 1, _matcher(pattern)
        found: dict[str, Entry] = {}
        for one in self._listed(pattern):
            name = "/".join(str(one["path"]).split("/")[:depth])
            if matches(name):
                known = found.get(name, Entry(name, 0, one["last_modified"]))
                found[name] = Entry(name, known.bytes + one["size"], max(known.changed, one["last_modified"]))
        return [found[name] for name in sorted(found)]

    def lease(
        self, name: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
    ) -> AbstractContextManager[None]:
        """Hold an object with a heartbeat: its holder deletes it, and it is taken over when that gives no sign."""
        return bucket_lease(self, f"locks/{name}.json", on_wait=on_wait, timeout=timeout)

    def _listed(self, pattern: str) -> Iterator[Any]:
        """Return all objects below the part of a pattern that has no wildcard."""
        fixed = re.split(r"[*?]", pattern)[0].rpartition("/")[0]
        with self._explained(fixed):
            for batch in obstore.list(self._store, fixed or None):
                yield from batch

    def _below(self, folder: str) -> list[str]:
        with self._explained(folder):
            return [str(one["path"]) for batch in obstore.list(self._store, folder) for one in batch]

    def _download(self, name: str, path: Path) -> None:
        """Write a file under a fresh name and rename it to `path`. What the bucket does not have is left missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with self._explained(name), partial.open("xb") as file:
                for piece in obstore.get(self._store, name).stream(DOWNLOAD_CHUNK_BYTES):
                    file.write(bytes(piece))
            partial.replace(path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        finally:
            partial.unlink(missing_ok=True)

    def _use(self, copy: Path) -> None:
        """Mark a copy as used now."""
        with explained(copy):
            if copy.is_dir():
                os.utime(copy)

    def _bound(self) -> None:
        """Delete the copies that were used longest ago while all together take too much space."""
        copies = []
        for path in (self.root / "data").glob("*"):
            try:
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                copies.append((path.stat().st_mtime, size, path))
            except FileNotFoundError:
                continue
        excess = sum(size for _, size, _ in copies) - self.copies_bytes
        for touched, size, path in sorted(copies):
            if excess <= 0 or time.time() - touched < IN_USE_SECONDS:
                return
            shutil.rmtree(path, ignore_errors=True)
            excess -= size

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn the errors of the object store into builtins and ours."""
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(self.where(name)) from error
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(self.where(name)) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreAccessError(f"{self.url} refuses access to {name or 'its list'}.") from error
        except BaseError as error:
            reason = str(error).strip().splitlines()[0]
            raise StoreAccessError(f"{self.url} cannot be reached or used ({name or 'its list'}): {reason}.") from error


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return a test of names by `fnmatch`, in which no wildcard matches a slash."""
    parts = [re.compile(translate(part)) for part in pattern.split("/")]

    def matches(name: str) -> bool:
        given = name.split("/")
        return len(given) == len(parts) and all(p.match(g) for p, g in zip(parts, given, strict=True))

    return matches
