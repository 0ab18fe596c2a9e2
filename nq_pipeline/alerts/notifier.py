"""Alerts of one environment: said once, remembered, delivered, and ended when they heal.

    alerts.jsonl    every message, and what came of sending it; for people, only ever appended
    alerts.json     which alerts are firing, and what the webhook has yet to be told

`tell` and `resolve` only write files, under a lock that all processes share, so whoever calls them
never waits for a network and never fails because of one. `deliver` sends what is waiting. After a
crash between sending and remembering it a message is sent twice, never not at all.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from nq_pipeline import files
from nq_pipeline.alerts.message import Alert, Message, State, one_line, slack_body
from nq_pipeline.alerts.webhook import post
from nq_pipeline.clock import Clock, SystemClock
from nq_pipeline.errors import AlertError, WebhookRefused
from nq_pipeline.redaction import redact
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
"""After a webhook has refused, messages wait for pauses that double."""
LONGEST_DELIVERY_S = 20.0
"""A delivery begins no further message after so long: a tick of a sensor may take a minute."""


class _Story(BaseModel):
    """What is known of one key."""

    said: Message
    """The newest message."""
    times: int
    """How often it was raised since it began to fire."""
    waiting: bool
    """Whether the webhook has yet to be told."""
    refused: int = 0
    """How often the webhook did not take it."""


class _Memory(BaseModel):
    """The content of `alerts.json`."""

    stories: dict[str, _Story] = Field(default_factory=dict)
    refused: int = 0
    """How often in a row the webhook did not take a message."""
    not_before: datetime = datetime.min.replace(tzinfo=UTC)
    """The webhook is left alone until then."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What came of a delivery; `reason` says why messages wait, empty when none does."""

    delivered: int
    waiting: int
    reason: str = ""


class Notifier:
    """The alerts of the settings' environment.

    Parameters
    ----------
    clock
        The machine's, never a pinned one: how long an alert was silent is real time.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        folder = Workspace.of(settings).root
        self.log = folder / "alerts.jsonl"
        self._memory = folder / "alerts.json"
        self._lock = folder / ".alerts.lock"
        self._sending = folder / ".alerts.sending"
        self._settings = settings
        self._clock = clock or SystemClock()
        self._webhook = settings.alerts.webhook

    def fire(self, alert: Alert) -> bool:
        """Say that something is wrong; False when it was said lately and is only counted."""
        alert = self._clean(alert)
        with self._remembered() as memory:
            now, before = self._clock.now(), memory.stories.get(alert.key)
            if before is None or before.said.state != "firing":
                self._say(memory, "firing", alert, since=now, times=1)
                return True
            # A clock that was set back must not silence an alert.
            silent = timedelta() <= now - before.said.at < timedelta(seconds=self._settings.alerts.repeat_s)
            if silent and before.said.alert.severity == alert.severity:
                before.times += 1
                return False
            self._say(memory, "firing", alert, since=before.said.since, times=before.times + 1)
            return True

    def resolve(self, key: str, what: str) -> bool:
        """Say that it is well again, if it was ever said that it was not."""
        with self._remembered() as memory:
            before = memory.stories.get(key)
            if before is None or before.said.state != "firing":
                return False
            ended = self._clean(replace(before.said.alert, what=what))
            self._say(memory, "resolved", ended, since=before.said.since, times=before.times)
            if not memory.stories[key].waiting:
                del memory.stories[key]
            return True

    def firing(self) -> list[Message]:
        """What has not healed, the oldest first."""
        stories = self._read().stories.values()
        return sorted((s.said for s in stories if s.said.state == "firing"), key=lambda said: said.since)

    def deliver(self) -> Delivery:
        """Send the newest message of every key that waits; never raises because of the webhook.

        The first refusal that another message would meet as well ends it, and the webhook is left
        alone for a while, at least as long as it asked.
        """
        delivered, reason, began = 0, "", self._clock.monotonic()
        with files.locked(self._sending, wait=False) as ours:
            memory = self._read()
            if not ours or self._webhook is None:
                return Delivery(0, len(_waiting(memory)), "" if ours else "another process is sending")
            # Further ahead than any pause: the clock was set back.
            if timedelta() < memory.not_before - self._clock.now() <= LONGEST_PAUSE:
                reason = f"the webhook is left alone until {memory.not_before:%H:%M:%S} UTC"
                return Delivery(0, len(_waiting(memory)), reason if _waiting(memory) else "")
            for story in _waiting(memory):
                if self._clock.monotonic() - began > LONGEST_DELIVERY_S:
                    reason = "the rest follows with the next delivery"
                    break
                refusal = self._send(story.said)
                with self._remembered() as after:
                    self._settle(after, story.said, refusal)
                delivered += refusal is None
                if refusal is not None:
                    reason = str(refusal)
                    if refusal.passing:
                        break
            return Delivery(delivered, len(_waiting(self._read())), reason)

    def send_test(self) -> Delivery:
        """Say that alerts are being tested, now and to everyone; what fails is not sent again."""
        now = self._clock.now()
        alert = Alert(
            key="test",
            what="a test of the alerts",
            so_what="Nothing is wrong: whoever reads this will hear of it when something is.",
            what_to_do="nothing.",
            severity="warning",
        )
        said = self._message("test", alert, since=now, times=1)
        self._write(said)
        if self._webhook is None:
            return Delivery(0, 0, "NQ_ALERT_WEBHOOK is not set")
        refusal = self._send(said)
        return Delivery(0, 0, str(refusal)) if refusal else Delivery(1, 0)

    def _say(self, memory: _Memory, state: State, alert: Alert, *, since: datetime, times: int) -> None:
        said = self._message(state, alert, since=since, times=times)
        self._write(said)
        memory.stories[alert.key] = _Story(said=said, times=times, waiting=self._webhook is not None)

    def _message(self, state: State, alert: Alert, *, since: datetime, times: int) -> Message:
        return Message(
            uuid.uuid4().hex, self._clock.now(), self._settings.environment, state, since, times, alert
        )

    def _send(self, said: Message) -> WebhookRefused | None:
        """One message to the webhook; what came of it is a line of the log."""
        assert self._webhook is not None
        refusal = None
        try:
            post(self._webhook.get_secret_value(), slack_body(said))
        except WebhookRefused as error:
            refusal = error
        self._append(
            {
                "id": said.id,
                "at": self._clock.now(),
                "key": said.alert.key,
                "delivered": refusal is None,
                "reason": str(refusal or ""),
            }
        )
        return refusal

    def _settle(self, memory: _Memory, said: Message, refusal: WebhookRefused | None) -> None:
        """Remember what came of sending a message, unless a newer one of its key has replaced it."""
        if refusal is None:
            memory.refused, memory.not_before = 0, self._clock.now()
        elif refusal.passing:
            pause = min(FIRST_PAUSE * (1 << min(memory.refused, 10)), LONGEST_PAUSE)
            asked = timedelta(seconds=min(refusal.retry_after_s, LONGEST_PAUSE.total_seconds()))
            memory.refused += 1
            memory.not_before = self._clock.now() + max(pause, asked)
        story = memory.stories.get(said.alert.key)
        if story is None or story.said.id != said.id:
            return
        story.waiting, story.refused = refusal is not None, story.refused + (refusal is not None)
        if not story.waiting and said.state == "resolved":
            del memory.stories[said.alert.key]

    def _clean(self, alert: Alert) -> Alert:
        return replace(
            alert,
            what=self._text(alert.what),
            so_what=self._text(alert.so_what),
            what_to_do=self._text(alert.what_to_do),
            where=[self._text(place) for place in alert.where],
        )

    def _text(self, text: str) -> str:
        return one_line(redact(text, self._settings.secrets))

    def _read(self) -> _Memory:
        try:
            return _Memory.model_validate_json(self._memory.read_bytes())
        except FileNotFoundError:
            return _Memory()
        except ValidationError:
            raise AlertError(
                f"{self._memory} is damaged, so it is not known what was said already; remove it, and "
                "alerts that still fire are said again"
            ) from None

    @contextmanager
    def _remembered(self) -> Iterator[_Memory]:
        """The memory, for this process alone; what was changed of it is kept."""
        with files.locked(self._lock):
            memory = self._read()
            before = memory.model_dump_json()
            yield memory
            after = memory.model_dump_json()
            if after != before:
                files.write_atomically(self._memory, after.encode())

    def _write(self, said: Message) -> None:
        told = asdict(said)
        alert = told.pop("alert")
        self._append({**told, **alert})

    def _append(self, line: dict[str, Any]) -> None:
        """One line, whole whoever else writes, on the disk before anybody is told."""
        files.make_folder(self.log.parent)
        text = json.dumps(line, default=lambda value: value.isoformat(), ensure_ascii=False) + "\n"
        with files.locked(self.log), self.log.open("a+b") as log:
            # The last process may have died within its line.
            torn = log.tell() and os.pread(log.fileno(), 1, log.tell() - 1) != b"\n"
            log.write(b"\n" * bool(torn) + text.encode())
            log.flush()
            os.fsync(log.fileno())


def _waiting(memory: _Memory) -> list[_Story]:
    """Whose turn it is: what was refused before lets the others go first."""
    waiting = [story for story in memory.stories.values() if story.waiting]
    return sorted(waiting, key=lambda story: (story.refused, story.said.at))
