"""Work done portion by portion, such that a count of what it takes need not run every portion.

A large picture has thousands of windows, and a trace without numbers (`stages/planner/trace.py`) would spend minutes on
them. What a portion holds and multiplies follows from its kind (its shapes) and from the kind of the portion before it,
whose tensors may still be alive. So while a counter is set, one portion of every such pair is run, and the others are
added by arithmetic. Without a counter, which is every render, all portions run in their order.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

T = TypeVar("T")


class Counter(Protocol):
    """Counts floating-point operations, and the most bytes alive at one time."""

    flops: int
    peak: int


_COUNTER: ContextVar[Counter | None] = ContextVar("counter", default=None)


@contextmanager
def counted_by(counter: Counter) -> Iterator[None]:
    """Run one portion of each kind in the body of the `with`, and add the others to `counter`."""
    token = _COUNTER.set(counter)
    try:
        yield
    finally:
        _COUNTER.reset(token)


def each(portions: Sequence[T], kind: Callable[[T], Hashable] | None = None) -> Iterator[T]:
    """Yield the portions in order; under `counted_by`, those that take what no earlier one took.

    `kind` names all that decides what a portion takes; without it all are of one kind. The body of the loop may keep
    tensors of the last portion only.
    """
    counter = _COUNTER.get()
    if counter is None:
        yield from portions
        return
    if kind is None:
        flops = counter.flops
        for portion in portions[:2]:
            flops = counter.flops
            yield portion
        counter.flops += max(0, len(portions) - 2) * (counter.flops - flops)
        return
    known: dict[tuple[Hashable, Hashable], int] = {}
    last: Hashable = None  # the kind of the portion that ran last
    before: Hashable = None  # the kind of the portion before this one
    for index, portion in enumerate(portions):
        now = (kind(portion),)
        if (before, now) not in known:
            flops, peak = counter.flops, counter.peak
            if last != before:  # what the portion before leaves behind must be there; it is counted already
                yield portions[index - 1]
                counter.flops, counter.peak = flops, peak
            yield portion
            known[before, now] = counter.flops - flops
            last = now
        else:
            counter.flops += known[before, now]
        before = now
