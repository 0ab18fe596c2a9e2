"""A message in words: what happened, what it means, what to do about it, where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

State = Literal["firing", "resolved", "test"]
Severity = Literal["warning", "error"]

LONGEST = 600
"""Characters of a sentence: a vendor's words may be a whole page."""
_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""What Slack reads as markup: `<!channel>` in a vendor's answer would call everybody."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a person should know.

    Attributes
    ----------
    key
        What it is about, e.g. `check/databento/trades/gaps`; alerts of one key are one story.
    what, so_what, what_to_do
        A sentence each.
    where
        Links and ids that lead to it.
    """

    key: str
    what: str
    so_what: str
    what_to_do: str
    severity: Severity = "error"
    where: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """An alert at a moment, or its end.

    Attributes
    ----------
    at
        By the machine's clock, UTC.
    since
        When the alert was first said.
    times
        How often it was raised since then, this time included.
    """

    id: str
    at: datetime
    environment: str
    state: State
    since: datetime
    times: int
    alert: Alert


def slack_body(message: Message) -> dict[str, str]:
    """The body of Slack's incoming webhooks, which Mattermost and others take as well."""
    alert = message.alert
    again = f" ({message.times} times since {message.since:%Y-%m-%d %H:%M} UTC)" if message.times > 1 else ""
    head = {"firing": alert.severity.upper(), "resolved": "RESOLVED", "test": "TEST"}[message.state]
    lines = [f"*{head}* [{message.environment}] {alert.what}{again}"]
    if message.state != "resolved":
        lines += [alert.so_what, f"What to do: {alert.what_to_do}"]
    return {"text": "\n".join(line.translate(_ESCAPED) for line in (*lines, *alert.where) if line)}


def one_line(text: str) -> str:
    """One line of printable characters, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
