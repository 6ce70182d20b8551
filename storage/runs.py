"""Runs: what someone asked for, the plan frozen from it and how far it came; a `runs/<run>/run.json` each."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from storage.durable import make_folder, put_in_place
from storage.errors import (
    DamagedRunError,
    InvalidNameError,
    RunExistsError,
    RunNotFoundError,
    StorageError,
    explained,
)
from storage.locks import lease
from storage.manifest import RUN_NAME, RunRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)


def checked_run(name: str) -> str:
    """Return `name` if it may name a run: one plain path component."""
    if not isinstance(name, str) or not re.fullmatch(RUN_NAME, name):
        raise InvalidNameError(
            f"a run is named by lower-case letters, digits and `._-`, starting with one of the first two and "
            f"at most 121 long, not {name!r}."
        )
    return name


class Runs:
    """The runs under `root`, which may be the root of an artifact store."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root) / "runs"

    def folder(self, run: str) -> Path:
        """Return the folder of a run; previews and exports may lie there beside its record."""
        return self.root / checked_run(run)

    def create(self, record: RunRecord) -> None:
        """Save the record of a new run; of two that create the same name one gets `RunExistsError`."""
        path = self._path(record.run)
        with explained(path):
            make_folder(path.parent)
            try:
                put_in_place(path, record.to_bytes(), exclusive=True)
            except FileExistsError as error:
                raise RunExistsError(f"run {record.run} exists already in {self.root}.") from error

    def save(self, record: RunRecord) -> None:
        """Replace the record of a run in one instant. The last of several writers wins."""
        path = self._path(record.run)
        with explained(path):
            make_folder(path.parent)
            put_in_place(path, record.to_bytes())

    def load(self, run: str) -> RunRecord:
        """Return the record of a run, checked."""
        path = self._path(run)
        try:
            with explained(path):
                record = RunRecord.from_bytes(path.read_bytes())
        except FileNotFoundError as error:
            raise RunNotFoundError(f"no run {run} in {self.root}.") from error
        except ValueError as error:
            raise DamagedRunError(f"{path} cannot be read: {error}.") from error
        if record.run != run:
            raise DamagedRunError(f"{path} is the record of run {record.run}.")
        return record

    @contextmanager
    def claim(self, run: str, timeout: float = 0.0) -> Iterator[None]:
        """Be the only one to work on a run for the body of the `with`, or raise `LeaseTimeoutError` after `timeout`."""
        with lease(self.root.parent / "locks" / f"run-{checked_run(run)}.lock", timeout=timeout):
            yield

    def list(self) -> tuple[RunRecord, ...]:
        """Return the records of all runs, oldest first; those that cannot be read are named in the log."""
        records = []
        for path in self.root.glob("*/run.json"):
            if re.fullmatch(RUN_NAME, path.parent.name):
                try:
                    records.append(self.load(path.parent.name))
                except StorageError as error:
                    log.warning("%s", error)
        return tuple(sorted(records, key=lambda record: (record.created, record.run)))

    def _path(self, run: str) -> Path:
        return self.folder(run) / "run.json"
