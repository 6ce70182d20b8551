"""The window of a batch: the time after which no job is started."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from stages.errors import SpecError


@dataclass(frozen=True)
class Window:
    """When a batch stops: no job is started after `until`; the one that runs then finishes, or yields.

    `yield` means that it stops after its step, with a checkpoint, and is left for the next time.
    """

    until: datetime | None = None
    at_end: Literal["finish", "yield"] = "finish"

    @classmethod
    def of(
        cls, until: str | None, zone: str | None = None, at_end: str = "finish", now: datetime | None = None
    ) -> Window:
        """A window that ends when a clock in `zone` (default: this machine's) next shows `until`, HH:MM.

        Raises `SpecError` for a time, a zone or an `at_end` that is none.
        """
        if at_end not in ("finish", "yield"):
            raise SpecError(f"at_end: {at_end!r} is not one of finish, yield")
        try:
            today = (now or datetime.now(UTC)).astimezone(ZoneInfo(zone) if zone else None)
        except (ZoneInfoNotFoundError, OSError, ValueError):
            raise SpecError(f"zone: {zone!r} is not a known time zone, for example Europe/Vienna") from None
        if until is None:
            return cls(None, at_end)  # type: ignore[arg-type]
        try:
            clock = datetime.strptime(until, "%H:%M")
        except ValueError:
            raise SpecError(f"until: {until!r} is not HH:MM, for example 06:30") from None
        end = today.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
        end = end if end > today else end + timedelta(days=1)
        return cls(end.astimezone(UTC), at_end)  # type: ignore[arg-type]

    @property
    def is_over(self) -> bool:
        """Whether no job may be started any more."""
        return self.until is not None and datetime.now(UTC) >= self.until
