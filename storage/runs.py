"""Runs: what a person asked for, the plan made from it and how far it came, in one `runs/<run>/run.json` each."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.backend import backend_of
from storage.errors import (
    DamagedRunError,
    InvalidNameError,
    RunExistsError,
    RunNotFoundError,
    StorageError,
)
from storage.manifest import RUN_NAME, RunRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.backend import Backend

log = logging.getLogger(__name__)


def checked_run(name: str) -> str:
    """Return `name` if it may name a run: one plain path component. Raises `InvalidNameError`."""
    if not isinstance(name, str) or not re.fullmatch(RUN_NAME, name):
        raise InvalidNameError(
            f"a run is named by lower-case letters, digits and `._-`, starting with one of the first two and "
            f"at most 121 long, not {name!r}."
        )
    return name


class Runs:
    """The runs in a backend (or the folder at a path), which may be that of an artifact store."""

    def __init__(self, where: Path | str | Backend) -> None:
        self.backend = backend_of(where)
        self.root = self.backend.root / "runs"

    def folder(self, run: str) -> Path:
        """Return the local folder of a run."""
        return self.root / checked_run(run)

    def create(self, record: RunRecord) -> None:
        """Save the record of a new run. Of two that create the same name, one gets `RunExistsError`."""
        try:
            self.backend.put(_name(record.run), record.to_bytes(), exclusive=True)
        except FileExistsError as error:
            raise RunExistsError(f"run {record.run} exists already in {self.backend.where('runs')}.") from error

    def save(self, record: RunRecord) -> None:
        """Replace the record of a run in one instant. The last of several writers wins."""
        self.backend.put(_name(record.run), record.to_bytes())

    def load(self, run: str) -> RunRecord:
        """Return the record of a run, checked. Raises `RunNotFoundError`, `DamagedRunError`."""
        where = self.backend.where(_name(run))
        try:
            record = RunRecord.from_bytes(self.backend.get(_name(run)))
        except FileNotFoundError as error:
            raise RunNotFoundError(f"no run {run} in {self.backend.where('runs')}.") from error
        except ValueError as error:
            raise DamagedRunError(f"{where} cannot be read: {error}.") from error
        if record.run != run:
            raise DamagedRunError(f"{where} is the record of run {record.run}.")
        return record

    @contextmanager
    def claim(self, run: str, timeout: float = 0.0) -> Iterator[None]:
        """Be the only one to work on a run for the body of the `with`.

        Raises `LeaseTimeoutError` if another still does after `timeout` seconds.
        """
        with self.backend.lease(f"run-{checked_run(run)}", timeout=timeout):
            yield

    def names(self) -> list[str]:
        """Return the names of all runs, sorted, also of those whose records cannot be read."""
        found = (name.split("/")[1] for name in self.backend.names("runs/*/run.json"))
        return sorted(name for name in found if re.fullmatch(RUN_NAME, name))

    def list(self) -> tuple[RunRecord, ...]:
        """Return the records of all runs, oldest first. Those that cannot be read are named in the log."""
        records = []
        for name in self.names():
            try:
                records.append(self.load(name))
            except StorageError as error:
                log.warning("%s", error)
        return tuple(sorted(records, key=lambda record: (record.created, record.run)))


def _name(run: str) -> str:
    return f"runs/{checked_run(run)}/run.json"
