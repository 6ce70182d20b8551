"""When a batch ends: time zones by their rules, nights that are an hour longer or shorter, and what is no time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from flows.batch.window import Window, zone_of
from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

VIENNA = "Europe/Vienna"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def in_vienna(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's zone is Vienna's."""
    monkeypatch.setenv("TZ", VIENNA)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


NIGHTS = [  # now in UTC, the clock of --until, the end in UTC
    ("2026-11-23T22:00", "06:30", "2026-11-24T05:30"),
    ("2026-07-01T22:00", "6:30", "2026-07-02T04:30"),  # summer time
    ("2026-10-24T20:00", "06:30", "2026-10-25T05:30"),  # begun in summer time, ends in winter time
    ("2026-03-28T21:00", "06:30", "2026-03-29T04:30"),  # and the other way round
    ("2026-10-24T20:00", "02:30", "2026-10-25T00:30"),  # the hour that comes twice: the first time
    ("2026-10-25T00:45", "02:30", "2026-10-25T01:30"),  # unless it is over
    ("2026-10-25T01:45", "02:30", "2026-10-26T01:30"),  # both are over
    ("2026-03-28T21:00", "02:30", "2026-03-29T01:30"),  # skipped: 03:30 in summer time
    ("2026-03-29T02:00", "02:30", "2026-03-30T00:30"),
    ("2026-11-24T05:30", "06:30", "2026-11-25T05:30"),  # not now, but at the next time
    ("2026-12-31T22:59", "00:00", "2026-12-31T23:00"),
]


@pytest.mark.parametrize(("now", "until", "end"), NIGHTS)
def test_a_window_ends_when_a_clock_of_the_zone_next_shows_the_time(now: str, until: str, end: str) -> None:
    assert Window.of(until, VIENNA, now=utc(now)).until == utc(end)


@pytest.mark.usefixtures("in_vienna")
@pytest.mark.parametrize(("now", "until", "end"), NIGHTS)
def test_the_zone_of_this_machine_has_its_rules_too(now: str, until: str, end: str) -> None:
    assert Window.of(until, now=utc(now)).until == utc(end)


@pytest.mark.parametrize(
    ("until", "meant"),
    [
        ("6.30", "06:30"),
        ("0630", "06:30"),
        ("6", "06:00"),
        ("6:30pm", "18:30"),
        ("12 AM", "00:00"),
        ("12:15 p.m.", "12:15"),
        ("24:00", "00:00"),
        ("7h30", "07:30"),
        ("7 Uhr", "07:00"),
        ("06:30:00", "06:30"),
        ("25:00", "01:00"),
        ("06:61", "06:30"),
        ("tomorrow", "06:30"),
        ("", "06:30"),
    ],
)
def test_what_is_no_time_names_the_one_that_was_meant(until: str, meant: str) -> None:
    with pytest.raises(SpecError) as refused:
        Window.of(until)
    assert str(refused.value) == f"until: {until!r} is not HH:MM, 00:00 to 23:59; write for example {meant}"


@pytest.mark.parametrize(
    ("zone", "meant"),
    [
        ("Vienna", "Europe/Vienna"),
        ("new york", "America/New_York"),
        ("Europe/Wien", "Europe/Vienna"),
        ("UTC+2", "Etc/GMT-2"),
        ("+05:00", "Etc/GMT-5"),
        ("GMT-3", "Etc/GMT+3"),
        ("", "Europe/Vienna"),
        ("../etc/passwd", "Europe/Vienna"),
        ("Mars/Base", "Europe/Vienna"),
    ],
)
def test_what_is_no_zone_names_the_nearest(zone: str, meant: str) -> None:
    with pytest.raises(SpecError) as refused:
        zone_of(zone)
    assert str(refused.value) == f"zone: {zone!r} is not a time zone of the IANA database; write for example {meant}"


def test_how_a_job_ends() -> None:
    with pytest.raises(SpecError, match="at_end: 'yeild' is not one of finish, yield; the nearest is 'yield'"):
        Window.of("06:30", at_end="yeild")
