"""The trash of a store: what was found damaged, kept in `trash/` for a person to look at until `prune` deletes it.

trash/<name>-<8 hex digits>/   the record first, then the data folder, then `reason.txt`
"""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.backend import Backend

log = logging.getLogger(__name__)


def move_to_trash(backend: Backend, name: str, reason: str, *parts: str) -> None:
    """Move those of `parts` that exist to a new folder `trash/name-…`, in the order given.

    `parts` are names of records and folders; a record comes before the folder that it refers to, so that no reader
    follows it to half a folder. `reason` is written to `reason.txt` beside them, as far as that is possible. Raises
    `StoreAccessError` where a part cannot be moved.
    """
    log.warning("%s is moved to the trash: %s", name, reason)
    folder = f"trash/{name}-{uuid.uuid4().hex[:8]}"
    for part in parts:
        backend.move(part, folder)
    with suppress(OSError):
        backend.put(f"{folder}/reason.txt", f"{reason}\n".encode())
