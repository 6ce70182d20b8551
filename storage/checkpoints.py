"""Checkpoints inside a stage: after a crash the stage goes on from the newest one that is intact.

    steps/<key>/<uuid>/          the tensors, as in an artifact
    steps/<key>/step-000012.json refers to them, written last

Saving a step again replaces its record in one instant, so that the old or the new one can always be read. Two steps
are kept: if the newest is damaged, the one before it serves. A key has one writer, which holds the key's lease. It has
two if one was stopped, lost the lease and goes on: both save the same tensors, and neither deletes what a later one may
be filling, only what was there when it began or what it made.
"""

from __future__ import annotations

import logging
import re
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.contents import Draft, read_tensors
from storage.errors import DamagedArtifactError, StorageError, UnsupportedFormatError
from storage.fingerprint import checked_key
from storage.manifest import StepRecord
from storage.trash import move_to_trash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from storage.store import ArtifactStore

log = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2
RECORD = re.compile(r"step-(\d{6,})\.json")


class Checkpoint(NamedTuple):
    """The state of a stage after `step`: its tensors, and what else it saved as JSON."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of the stage call `key` in `store`."""

    def __init__(self, store: ArtifactStore, key: str) -> None:
        self.store, self.key = store, checked_key(key)
        self.backend, self.name = store.backend, f"steps/{key}"
        self.folder = store.root / self.name
        found = (*self.folder.glob("*"), *(Path(entry.name) for entry in self.backend.entries(f"{self.name}/*")))
        self._known = {path.name for path in found if not RECORD.fullmatch(path.name)}  # deleted unless in use

    def leftovers(self) -> list[str]:
        """Return the names of what lay in the folder beside the records when this began, sorted."""
        return sorted(self._known)

    def claim(self) -> str:
        """Return a fresh name in the folder for something that is deleted with the checkpoints."""
        name = uuid.uuid4().hex
        self._known.add(name)
        return name

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
        """Keep the state after `step`; `meta` holds what JSON can. If this raises, earlier checkpoints are intact."""
        record = StepRecord(
            key=self.key, step=step, meta=dict(meta or {}), data=self.claim(), created=datetime.now(UTC)
        )
        draft = Draft(self.folder / record.data)
        try:
            for name, tensor in tensors.items():
                draft.put(name, tensor)
            record = draft.complete(record)
            self.backend.keep(self._data(record))
            self.backend.put(self._record(step), record.to_bytes())
        except BaseException:
            if record.data not in self._data_in_use():
                draft.discard()
                with suppress(StorageError):
                    self.backend.discard(self._data(record))
            raise
        self._drop_leftovers()

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None; damaged ones that are newer are moved to `trash/`."""
        for step in self.steps():
            parts = [self._record(step)]
            try:
                record = self._load(step)
                parts.append(self._data(record))
                tensors = read_tensors(self.backend.fetch(parts[-1], record.files), record)
                return Checkpoint(step, tensors, record.meta)
            except UnsupportedFormatError as error:
                log.warning("%s is skipped: %s", self.backend.where(parts[0]), error)
            except DamagedArtifactError as damage:
                move_to_trash(self.backend, f"{self.key}-step-{step:06d}", str(damage), *parts)
        return None

    def steps(self) -> list[int]:
        """Return the steps that have a record, newest first."""
        found = self.backend.names(f"{self.name}/step-*.json")
        names = (RECORD.fullmatch(name.rpartition("/")[2]) for name in found)
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def clear(self) -> None:
        """Delete all checkpoints of this call, for example because its artifact is committed."""
        self._known |= self._data_in_use()
        for step in self.steps():
            self.backend.delete(self._record(step))  # first: no record may refer to half a folder
        self._drop_leftovers()
        with suppress(OSError):
            self.folder.rmdir()  # if it is empty

    def _record(self, step: int) -> str:
        return f"{self.name}/step-{step:06d}.json"

    def _data(self, record: StepRecord) -> str:
        return f"{self.name}/{record.data}"

    def _load(self, step: int) -> StepRecord:
        where = self.backend.where(self._record(step))
        try:
            record = StepRecord.from_bytes(self.backend.get(self._record(step)))
        except (ValueError, FileNotFoundError) as error:
            raise DamagedArtifactError(f"{where} cannot be read: {error}.") from error
        if (record.key, record.step) != (self.key, step):
            raise DamagedArtifactError(f"{where} is the record of another checkpoint.")
        return record

    def _data_in_use(self) -> set[str]:
        """Return the data folders that the records refer to."""
        used = set()
        for step in self.steps():
            with suppress(DamagedArtifactError, UnsupportedFormatError):
                used.add(self._load(step).data)
        return used

    def _drop_leftovers(self) -> None:
        """Delete all but the newest checkpoints, and what crashes left, as far as that is possible."""
        with suppress(StorageError, OSError):
            for step in self.steps()[CHECKPOINTS_KEPT:]:
                self.backend.delete(self._record(step))
            for name in sorted(self._known - self._data_in_use()):
                path = f"{self.name}/{name}"
                self.backend.delete(path) if name.endswith(".partial") else self.backend.discard(path)
                self._known.remove(name)
