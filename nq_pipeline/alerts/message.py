"""An alert, a message about it, and the message in Slack's format. `advice.py` has the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

State = Literal["firing", "resolved", "test"]
Severity = Literal["warning", "error"]

LONGEST = 600
"""Characters of a sentence: a vendor's text may be a whole page."""
_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""Slack's markup: `<!channel>` in a vendor's answer would notify everybody."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition that needs a person's attention: what happened, what it means, what to do, and links.

    `key` identifies the condition, e.g. `check/databento/trades/gaps`.
    """

    key: str
    what: str
    so_what: str
    what_to_do: str
    severity: Severity = "error"
    where: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One message about an alert that was raised `times` times `since` it began to fire.

    Instants are UTC, by the machine's clock.
    """

    id: str
    at: datetime
    environment: str
    state: State
    since: datetime
    times: int
    alert: Alert


def slack_body(message: Message) -> dict[str, str]:
    """The message in the format of Slack's incoming webhooks, which Mattermost and others accept."""
    alert = message.alert
    again = f" ({message.times} times since {message.since:%Y-%m-%d %H:%M} UTC)" if message.times > 1 else ""
    head = {"firing": alert.severity.upper(), "resolved": "RESOLVED", "test": "TEST"}[message.state]
    lines = [f"*{head}* [{message.environment}] {alert.what}{again}"]
    if message.state != "resolved":
        lines += [alert.so_what, f"What to do: {alert.what_to_do}"]
    return {"text": "\n".join(line.translate(_ESCAPED) for line in (*lines, *alert.where) if line)}


def one_line(text: str) -> str:
    """The text as one line of printable characters, at most `LONGEST` long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
