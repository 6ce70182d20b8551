"""The window of a batch: the time after which no job is started."""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Literal, get_args

from stages.errors import SpecError, nearest, not_one_of

AtEnd = Literal["finish", "yield"]


@dataclass(frozen=True)
class Window:
    """When a batch stops: no job is started after `until`; the one that runs then finishes, or yields.

    `yield` means that it stops after its step, with a checkpoint, and is left for the next time.
    """

    until: datetime | None = None
    at_end: AtEnd = "finish"

    @classmethod
    def of(
        cls, until: str | None, zone: str | None = None, at_end: str = "finish", now: datetime | None = None
    ) -> Window:
        """A window that ends when a clock in `zone` (default: this machine's) next shows `until`, HH:MM.

        Raises `SpecError` for a time, a zone or an `at_end` that is none.
        """
        if at_end not in get_args(AtEnd):
            raise SpecError(f"at_end: {not_one_of(at_end, get_args(AtEnd))}")
        rules = None if zone is None else zone_of(zone)
        end = None if until is None else next_time(now or datetime.now(UTC), _clock(until), rules)
        return cls(end, at_end)  # type: ignore[arg-type]

    @property
    def is_over(self) -> bool:
        """Whether no job may be started any more."""
        return self.until is not None and datetime.now(UTC) >= self.until


def next_time(now: datetime, clock: time, zone: tzinfo | None) -> datetime:
    """The next moment, in UTC, at which a clock in `zone` shows `clock`; None: in this machine's zone, by its rules.

    In the night in which a clock is put back it shows an hour twice: the first time counts, while it is still to come.
    A time that it skips in spring counts as if it had not been put forward, so that 02:30 is 03:30.
    """
    today = now.astimezone(zone).date()
    walls = [
        datetime.combine(today + timedelta(days), clock.replace(fold=fold), zone) for days in (0, 1) for fold in (0, 1)
    ]
    ends = [(wall, datetime.fromtimestamp(wall.timestamp(), UTC)) for wall in walls]
    return min(end for wall, end in ends if end > now and (wall.fold == 0 or _shows(wall, end)))


def _shows(wall: datetime, end: datetime) -> bool:
    """Whether the clock shows this time at `end`, which it does not where it was put forward over it."""
    return end.astimezone(wall.tzinfo).replace(tzinfo=None) == wall.replace(tzinfo=None)


def zone_of(name: str) -> tzinfo:
    """The time zone of this name. Raises `SpecError` with the nearest for a name that is none."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        known = zoneinfo.available_timezones()
        offset = re.fullmatch(r"(?:utc|gmt)?([+-])0?(\d{1,2})(?::?00)?", name.strip().lower())
        found = f"Etc/GMT{'-' if offset[1] == '+' else '+'}{offset[2]}" if offset else None  # their signs are turned
        if found not in known:
            cities = {zone.rpartition("/")[2]: zone for zone in sorted(known, reverse=True)}
            found = nearest(name, known, cities) or "Europe/Vienna"
        raise SpecError(f"zone: {name!r} is not a time zone of the IANA database; write for example {found}") from None


def _clock(text: str) -> time:
    """The time of day that HH:MM says. Raises `SpecError` with what was probably meant for other text."""
    if re.fullmatch(r"\d{1,2}:\d\d", text, re.ASCII) and (found := _time(*map(int, text.split(":")))):
        return found
    words = re.fullmatch(r"\s*(\d{1,2})\s*[:.,h]?\s*(\d\d)?(?::\d\d)?\s*([ap])?\.?m?\.?\s*(?:uhr)?\s*", text.lower())
    meant = None
    if words is not None:
        hour = int(words[1]) % 12 + 12 * (words[3] == "p") if words[3] else int(words[1]) % 24
        meant = _time(hour, int(words[2] or 0))
    raise SpecError(f"until: {text!r} is not HH:MM, 00:00 to 23:59; write for example {(meant or time(6, 30)):%H:%M}")


def _time(hour: int, minute: int) -> time | None:
    return time(hour, minute) if hour < 24 and minute < 60 else None
