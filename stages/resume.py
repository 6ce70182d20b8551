"""What an interrupted attempt at a stage leaves, and how the next attempt goes on from it.

A stage that yields steps leaves checkpoints: the latents after a step, what its solver remembers, and what its method
keeps from step to step. A stage that
returns streams leaves every whole piece (a frame of a video, a band of a picture) in the array it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from freescale import Step
from stages.stage import Stream

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from torch import Tensor

    from stages.stage import Running, Tensors
    from storage import Checkpoints, Pieces, Unfinished

EXTRA = "extra-"  # before the names of `Step.extra`

Made: TypeAlias = "dict[str, Tensor | Pieces]"  # a stage's result, to be committed


@dataclass
class Progress:
    """The last step of a long stage that a run can go on from; None before the first."""

    last: Step | None


def noted(running: Running, progress: Progress) -> Generator[int, None, Made]:
    """Run a long stage: note each step that a run can go on from, yield its number, from 1; return the result."""
    while True:
        try:
            step = next(running)
        except StopIteration as end:
            result: Tensors = end.value
            return dict(result)
        if step.resumable:
            progress.last = step
        yield step.index + 1


def filled(result: Mapping[str, Tensor | Stream], unfinished: Unfinished) -> Generator[int, None, Made]:
    """Make and write the pieces of a result's streams that are not there yet: yield their numbers, from 1.

    Returns the result with whole arrays in place of streams.
    """
    made: Made = {}
    for name, array in result.items():
        if not isinstance(array, Stream):
            made[name] = array
            continue
        pieces = made[name] = unfinished.array(name, array.shape, array.dtype)
        missing = pieces.missing
        for index, piece in zip(missing, array.pieces(pieces) if missing else (), strict=True):
            pieces.put(index, piece)
            yield index + 1
    return made


def save(checkpoints: Checkpoints, progress: Progress) -> None:
    """Write a checkpoint of the last step that a run can go on from, if there is one."""
    step = progress.last
    if step is not None:
        tensors = {"latents": step.latents, **{f"history{i}": h for i, h in enumerate(step.history)}}
        tensors |= {f"{EXTRA}{name}": tensor for name, tensor in step.extra.items()}
        checkpoints.save(step.index, {name: t.detach().cpu() for name, t in tensors.items()})


def resumed(checkpoints: Checkpoints) -> Step | None:
    """Return the step of the newest checkpoint that is whole; None where there is none."""
    newest = checkpoints.newest()
    if newest is None:
        return None
    history = sorted(name for name in newest.tensors if name.startswith("history"))
    extra = {name.removeprefix(EXTRA): kept for name, kept in newest.tensors.items() if name.startswith(EXTRA)}
    return Step(newest.step, newest.tensors["latents"], tuple(newest.tensors[name] for name in history), extra)
