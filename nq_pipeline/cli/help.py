"""Help whose examples work on the day they are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

_HOLIDAYS = {(1, 1), (6, 19), (7, 4), (12, 25)}


class DatedHelp(click.Command):
    """Help whose examples work on the day they are read."""

    def get_help(self, ctx: click.Context) -> str:
        text = super().get_help(ctx)
        for written, current in examples().items():
            text = text.replace(written, current)
        return text


def examples() -> dict[str, str]:
    """What to show today for the dated examples in the help, each as long as what is written there.

    The series is a Tuesday's weekly some days ahead. The calendar itself would take a second to load:
    of its holidays only those of a fixed date can fall on a Tuesday, and on the last trade date of a
    month the end-of-month option takes the weekly's place.
    """
    import os

    try:
        now = datetime.fromisoformat(os.environ["NQ_NOW"]).astimezone(UTC)
    except (KeyError, ValueError):
        now = datetime.now(UTC)
    day, one = now.date() + timedelta(days=3), timedelta(days=1)
    while day.weekday() != 1 or (day.month, day.day) in _HOLIDAYS or (day + one).month != day.month:
        day += one
    week = (day.day + 6) // 7
    return {
        "Q1B-2025-07-01": f"Q{week}B-{day}",
        "MM1N5": f"MM{week}{'FGHJKMNQUVXZ'[day.month - 1]}{day.year % 10}",
        "2025-06-10T15:00:00Z": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
