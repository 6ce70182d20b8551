"""One render per device, also between runs of schedulers that do not know of each other."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.errors import InvalidNameError
from storage.locks import file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,119}")


@contextmanager
def device_lock(
    root: Path, device: str, *, on_wait: Callable[[float], None] | None = None, timeout: float | None = None
) -> Iterator[None]:
    """Hold `device` for the body of the `with`; arguments and errors as for `storage.locks.file_lock`.

    Processes exclude each other when they name the same `root` and the same device. `cuda:0` depends on
    `CUDA_VISIBLE_DEVICES`; a caller that sets it should pass the device's UUID instead.
    """
    if not DEVICE.fullmatch(device):
        raise InvalidNameError(f"a device is named by letters, digits and `:._-`, not {device!r}.")
    path = root / "locks" / f"device-{device.replace(':', '-')}.lock"
    with file_lock(path, on_wait=on_wait, timeout=timeout):
        yield
