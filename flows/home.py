"""The home: the folder with everything, and the bucket with the store and the runs where one is used."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from stages.errors import SpecError, cause, not_one_of

if TYPE_CHECKING:
    from storage import ArtifactStore, Backend, RunRecord, Runs


ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # also where a path made one slash of two; C:/ is a path
MOST_BYTES = 255  # of a file's name


def user_path(text: str | Path, what: str = "path") -> Path:
    """The path that a person wrote, with `~` as the home folder of the user.

    Raises `SpecError`, which calls it `what`, for `~NAME` where nobody on this machine has that name, for an address,
    and for a name that no file can have.
    """
    path = os.path.expanduser(text)
    if ADDRESS.match(path):
        raise SpecError(f"{what}: {path!r} is an address; name a file or a folder of this machine")
    if "\0" in path:
        raise SpecError(f"{what}: {path!r} holds a null character, which no file's name has")
    if too_long := [name for name in Path(path).parts if len(os.fsencode(name)) > MOST_BYTES]:
        raise SpecError(f"{what}: {too_long[0][:40]!r}... is too long for a file's name; take 200 letters or less")
    if path.startswith("~"):
        raise SpecError(f"{what}: {path!r} names no user of this machine; write ./{path} for a folder of that name")
    return Path(path)


def check_folder(what: str, folder: Path) -> None:
    """Raise `SpecError` where a folder that will be written to, or one that it lies in, is a file."""
    found = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), folder)
    if os.path.lexists(found) and not os.path.isdir(found):
        raise SpecError(f"{what}: {str(found)!r} is not a folder; name one, which need not exist")


@dataclass(frozen=True)
class Home:
    """The folder everything lives in: `store/`, `models/`, `cache/`. `FREESCALE_HOME`, or the user's data folder.

    With `bucket`, an address `s3://…`, artifacts, checkpoints and runs lie there, and the folder has copies.
    """

    root: Path
    bucket: str | None = None

    @classmethod
    def find(cls, given: Path | None = None) -> Home:
        """The folder given, else the environment's, else the platform's place for user data; `FREESCALE_STORE`.

        Raises `SpecError` for a file in place of a folder and for what is no address of a bucket,
        `StoreAccessError` for one that cannot be used.
        """
        root = cls.folder() if given is None else user_path(given)
        check_folder("home" if given is not None else "FREESCALE_HOME", root)
        home = cls(root, os.environ.get("FREESCALE_STORE") or None)
        if home.bucket is not None:
            _bucket(home.bucket, root)  # tried now, before there is work to lose
        return home

    @staticmethod
    def folder() -> Path:
        """The folder that `FREESCALE_HOME` names, else the user's data folder; it need not exist."""
        named = os.environ.get("FREESCALE_HOME")
        return user_path(named) if named else Path(platformdirs.user_data_dir("freescale"))

    @property
    def backend(self) -> Backend:
        """What the store and the runs lie in."""
        from storage import Disk  # here and below: pydantic's models of records take longer than all of `--help`

        if self.bucket is None:
            return Disk(self.root / "store")
        return _bucket(self.bucket, self.root)

    @property
    def store(self) -> ArtifactStore:
        """Artifacts, checkpoints and locks."""
        from storage import ArtifactStore

        return ArtifactStore(self.backend)

    @property
    def runs(self) -> Runs:
        """Records of runs."""
        from storage import Runs

        return Runs(self.backend)

    def make(self) -> None:
        """Make the folder. Raises `SpecError` where that cannot be, or where it cannot be written to."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise SpecError(f"home: {str(self.root)!r} cannot be written to ({cause(error)}); name another") from None

    def record(self, run: str) -> RunRecord:
        """The record of a run, named in full or by the beginning of its name, where one run alone begins so.

        Raises `SpecError` where the home has no such run, or several.
        """
        from storage import RunNotFoundError

        try:
            return self.runs.load(run)
        except (RunNotFoundError, ValueError):
            runs = self.runs.names()
        found = [name for name in runs if run and name.startswith(run)]
        if not found:
            raise SpecError(f"run: {not_one_of(run, runs, listed_by='freescale runs')}") from None
        if len(found) > 1:
            raise SpecError(f"run: {run!r} is the beginning of {len(found)} names, such as {found[0]} and {found[1]}")
        return self.runs.load(found[0])

    def outputs(self, run: str) -> Path:
        """Where the pictures of a run's levels appear as they are made."""
        return self.root / "runs" / run


@functools.cache
def _bucket(url: str, root: Path) -> Backend:
    """One connection for the process, tried once."""
    from storage.bucket import Bucket  # nobody else needs its library

    try:
        bucket = Bucket(url, root / "cache" / "bucket", root / "store")
    except ValueError as error:
        raise SpecError(f"store: {error}") from None
    bucket.probe()
    return bucket
