"""The home: the folder with everything, and the bucket with the store and the runs where one is used."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from stages.errors import SpecError
from storage import ArtifactStore, Disk, RunNotFoundError, Runs

if TYPE_CHECKING:
    from storage import Backend, RunRecord


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

        Raises `SpecError` for what is no address of a bucket, `StoreAccessError` for one that cannot be used.
        """
        root = given or cls.folder()
        home = cls(root, os.environ.get("FREESCALE_STORE") or None)
        if home.bucket is not None:
            _bucket(home.bucket, root)  # tried now, before there is work to lose
        return home

    @staticmethod
    def folder() -> Path:
        """The folder that `FREESCALE_HOME` names, else the user's data folder; it need not exist."""
        named = os.environ.get("FREESCALE_HOME")
        return Path(named) if named else Path(platformdirs.user_data_dir("freescale"))

    @property
    def backend(self) -> Backend:
        """What the store and the runs lie in."""
        if self.bucket is None:
            return Disk(self.root / "store")
        return _bucket(self.bucket, self.root)

    @property
    def store(self) -> ArtifactStore:
        """Artifacts, checkpoints and locks."""
        return ArtifactStore(self.backend)

    @property
    def runs(self) -> Runs:
        """Records of runs."""
        return Runs(self.backend)

    def record(self, run: str) -> RunRecord:
        """The record of a run. Raises `SpecError` where the home has no such run."""
        try:
            return self.runs.load(run)
        except (RunNotFoundError, ValueError) as error:
            raise SpecError(f"run: {error}") from None

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
