"""Help texts whose dated examples work today."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import click

from nq_pipeline.clock import real_now

_HOLIDAYS = {(1, 1), (6, 19), (7, 4), (12, 25)}


class DatedHelp(click.Command):
    """A command that replaces the dated examples in its help with current ones."""

    def get_help(self, ctx: click.Context) -> str:
        text = super().get_help(ctx)
        for dated, current in examples().items():
            text = text.replace(dated, current)
        return text


def examples() -> dict[str, str]:
    """The dated examples in the help, and current replacements of the same length.

    The series is a Tuesday weekly some days ahead. It is found without the calendar, which takes a second to
    load: only holidays with a fixed date can fall on a Tuesday, and the end-of-month option replaces the
    weekly on the last trade date of a month.
    """
    try:
        now = datetime.fromisoformat(os.environ["NQ_NOW"]).astimezone(UTC)
    except (KeyError, ValueError):
        now = real_now()
    day, one = now.date() + timedelta(days=3), timedelta(days=1)
    while day.weekday() != 1 or (day.month, day.day) in _HOLIDAYS or (day + one).month != day.month:
        day += one
    week = (day.day + 6) // 7
    return {
        "Q1B-2025-07-01": f"Q{week}B-{day}",
        "MM1N5": f"MM{week}{'FGHJKMNQUVXZ'[day.month - 1]}{day.year % 10}",
        "2025-06-10T15:00:00Z": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
