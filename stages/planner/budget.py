"""Memory: how much there is, which savings bring a stage under it, and which plans are refused.

A saving costs time and changes rounding at most. `fitted` picks, stage by stage, the mildest savings that bring the
predicted peak under the budget. `check` refuses, before anything starts, a plan with a stage that no saving makes fit.
A stage that runs out of memory against the prediction takes the next saving of the same list (`stages/runner.py`).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from freescale.vae.plan import VaeMemoryError
from stages.errors import SpecError
from stages.planner.amounts import enough_bytes, show_bytes
from stages.planner.estimate import Estimate, estimate, resident, rough_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from stages.call import Call
    from stages.device import Named
    from stages.models.folder import ModelInfo
    from stages.spec import RunOptions

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
PARTS = ("text", "unet", "vae")  # of a model; the networks of metrics are small


class TooLittleFreeError(SpecError):
    """Less memory than `needed` bytes is there, or free."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Saving:
    """One way to take less memory: its name in a manifest, the options it sets, the parts of a model it helps.

    One that is not planned is taken only when memory has run out: where SDXL is at its peak it saves nothing.
    """

    name: str
    change: Mapping[str, Any]
    parts: tuple[str, ...]
    is_planned: bool = True


SAVINGS: tuple[Saving, ...] = (  # mildest first
    Saving("split guidance", {"split_guidance": True}, ("unet",)),
    Saving("feed-forward 16,384 tokens at a time", {"feed_forward_tokens": 16384}, ("unet",)),
    Saving("attention windows eight at a time", {"window_rows": 8}, ("unet",)),
    Saving("the UNet or transformer block by block", {"by_blocks": True}, ("unet",)),
    Saving("attention windows one at a time", {"window_rows": 1}, ("unet",), is_planned=False),
    Saving("the VAE by exact tiles within 6 GiB", {"vae_memory": 6 << 30}, ("vae",)),  # enough at 8192x8192 for SDXL's
    Saving("the UNet off the device", {"offload": True}, ("text", "vae")),
)


@dataclass(frozen=True)
class Fit:
    """How a call will be run: options with the savings in them, the savings' names, what the call then takes."""

    options: RunOptions
    savings: tuple[str, ...]
    estimate: Estimate
    fits: bool


def next_saving(parts: Collection[str], taken: Iterable[str], options: RunOptions) -> Saving | None:
    """The mildest saving for the parts of a model that work, not taken yet, which would change the options."""
    for saving in SAVINGS:
        helps = any(part in parts for part in saving.parts) and not ("offload" in saving.change and "unet" in parts)
        if helps and saving.name not in taken and _tightens(saving, options):
            return saving
    return None


def _tightens(saving: Saving, options: RunOptions) -> bool:
    """Whether a saving asks for less than the options do already."""
    for name, value in saving.change.items():
        now = getattr(options, name)
        if now is None or now is False or (now is not True and now > value):
            return True
    return False


def fit(call: Call, info: ModelInfo, options: RunOptions, budget: int, device: str) -> Fit:
    """The mildest savings under which a call takes at most `budget` bytes; all of them where it never does.

    No saving and every saving are tried first, so that a call that can never fit costs two traces. `device` is its
    kind: `cpu`, `cuda` or `mps`.
    """
    steps = list(_steps(call.stage.parts, options))
    if not steps or resident(call, info, options, device) <= budget:
        plain = Fit(options, (), estimate(call, info, options, device), True)
        if plain.estimate.memory <= budget:
            return plain
        if not steps:
            return replace(plain, fits=False)
    whole = Fit(*steps[-1], estimate(call, info, steps[-1][0], device), True)
    if whole.estimate.memory > budget:
        return replace(whole, fits=False)
    for saving, names in steps[:-1]:
        found = estimate(call, info, saving, device)
        if found.memory <= budget:
            return Fit(saving, names, found, True)
    return whole


def _steps(parts: Collection[str], options: RunOptions) -> Iterator[tuple[RunOptions, tuple[str, ...]]]:
    """Options and names of the savings taken, after each saving that is left for the parts that work."""
    taken: tuple[str, ...] = ()
    while (saving := next_saving(parts, taken, options)) is not None and saving.is_planned:
        taken, options = (*taken, saving.name), options.model_copy(update=dict(saving.change))
        yield options, taken


def fitted(call: Call, info: ModelInfo, options: RunOptions, device: Named) -> tuple[RunOptions, list[str]]:
    """Options to run a call with, and the names of the savings in them.

    Where a rough upper bound is under half of what is free, nothing is traced.
    """
    if call.stage.part not in PARTS:
        return options, []
    budget = options.memory or free_bytes(device)
    if options.memory is None and rough_bytes(call, info) < budget / 2:
        return options, []
    found = fit(call, info, options, budget, device.type)
    return found.options, list(found.savings)


def check(calls: Iterable[Call], info: ModelInfo, options: RunOptions, device: Named) -> None:
    """Raise `TooLittleFreeError` for calls that no saving makes fit, with the smallest budget that would do.

    Raise `SpecError` for a `vae_memory` that is too small for tiles.
    """
    budget = options.memory or free_bytes(device)
    calls = [call for call in calls if call.stage.part in PARTS]
    check_tiles(calls, info, options, device)
    if options.memory is None and all(rough_bytes(call, info) < budget / 2 for call in calls):
        return
    found = [(fit(call, info, options, budget, device.type), call) for call in _largest(calls)]
    misfits = [(one.estimate.memory, call) for one, call in found if not one.fits]
    if not misfits:
        return
    needed, call = max(misfits, key=lambda misfit: misfit[0])
    height, width = call.size
    there = show_bytes(budget) if options.memory else f"{show_bytes(budget)} free on {device}"
    words = f"memory: {there} is too little for {call.label} at {width}x{height}, with every saving taken; "
    raise TooLittleFreeError(f"{words}the smallest that would do is {enough_bytes(needed)}", needed)


def check_tiles(calls: Iterable[Call], info: ModelInfo, options: RunOptions, device: Named) -> None:
    """Raise `SpecError` for a `vae_memory` that is too small for the tiles of a call, with what would do."""
    if not options.vae_memory:
        return
    needed = dict[int, SpecError]()
    for call in _largest(call for call in calls if "vae" in call.stage.parts):
        try:
            estimate(call, info, options, device.type)
        except SpecError as error:
            if not isinstance(error.__cause__, VaeMemoryError):
                raise
            needed[error.__cause__.needed] = error
    if needed:
        raise needed[max(needed)]


def _largest(calls: Iterable[Call]) -> list[Call]:
    """Of calls that differ in size alone the largest: no smaller one takes more."""
    kinds: dict[str, Call] = {}
    for call in calls:
        kind = f"{call.stage.name} {getattr(call.stage, 'method', '')}"
        if kind not in kinds or call.size[0] * call.size[1] > kinds[kind].size[0] * kinds[kind].size[1]:
            kinds[kind] = call
    return list(kinds.values())


def free_bytes(device: Named) -> int:
    """Bytes a render may take on a device: what is free there, and what this process holds of it already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(str(device))[0] + torch.cuda.memory_reserved(str(device))
    return _free_host_bytes()


def keep_freed() -> None:
    """Have glibc keep up to 64 MiB of freed host memory for reuse, as it does by itself in a process that works long.

    Dask starts its workers with `MALLOC_TRIM_THRESHOLD_` at 64 KiB: every tensor is then on new pages of the system,
    and DemoFusion's windows took twice the time on two cores. With another C library nothing happens.
    """
    if (tune := _of_glibc("mallopt")) is not None:
        tune(M_MMAP_THRESHOLD, 32 << 20)
        tune(M_TRIM_THRESHOLD, 64 << 20)


def return_freed() -> None:
    """Give back to the system what glibc keeps of freed host memory; with another C library nothing happens.

    Tensors of many sizes leave gaps: of 2.6 GB after 2,200 pictures in one process, 2.0 GB were free.
    """
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    """A function that glibc has; None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def host_bytes() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_host_bytes() -> int:
    """What Linux says is available without swapping; elsewhere, half of what is built in."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return host_bytes() // 2
