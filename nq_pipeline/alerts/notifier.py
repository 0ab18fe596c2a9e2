"""The alerts of one environment: fired once, remembered, delivered and resolved.

    alerts.jsonl    every message and the result of each attempt to send it; append-only, for people
    alerts.json     the state: which alerts are firing, and which messages are not sent yet

Where several machines share a database, the state is there (`SharedStates`), and the file only bridges the
time in which the database is out of reach: the next change takes over what it holds.

`fire` and `resolve` only write files, under a lock that all processes share, so callers never wait for
the network or fail because of it. `deliver` sends the pending messages. After a crash between sending a
message and recording that, it is sent twice, never lost.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nq_pipeline import files
from nq_pipeline.alerts.advice import TEST_ALERT
from nq_pipeline.alerts.message import Alert, Message, State, one_line, slack_body
from nq_pipeline.alerts.webhook import post
from nq_pipeline.clock import Clock, SystemClock
from nq_pipeline.errors import AlertError, LeaseHeld, LedgerError, WebhookRefused
from nq_pipeline.leases.leases import Leases
from nq_pipeline.leases.states import SharedState, SharedStates
from nq_pipeline.redaction import redact
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

NAME = "alerts"
"""Of the shared state, and of the lease of the process that sends."""
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
"""After a refusal, messages wait for pauses that double."""
log = logging.getLogger(__name__)

LONGEST_DELIVERY_S = 20.0
"""A delivery starts no further message after this time: a sensor tick may take a minute."""


class _AlertState(BaseModel):
    """The state of one key."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    message: Message = Field(alias="said")  # the name in alerts.json
    """The newest message."""
    times: int
    """How often the alert was raised since it began to fire."""
    waiting: bool
    """Whether the message is still to be sent."""
    refused: int = 0
    """How often the webhook refused it."""


class _State(BaseModel):
    """The content of `alerts.json`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    active: dict[str, _AlertState] = Field(default_factory=dict, alias="stories")  # the name in alerts.json
    """The alerts that fire, and those whose last message is still to be sent, by key."""
    refused: int = 0
    """How often in a row the webhook refused a message."""
    not_before: datetime = datetime.min.replace(tzinfo=UTC)
    """Nothing is sent before this instant."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The result of a delivery; `reason` says why messages wait, empty when none does."""

    delivered: int
    waiting: int
    reason: str = ""


class Notifier:
    """The alerts of the settings' environment. The clock is the machine's, never a pinned one."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        folder = Workspace.of(settings).root
        self.log = folder / "alerts.jsonl"
        self._state_file = folder / "alerts.json"
        self._lock = folder / ".alerts.lock"
        self._sending = folder / ".alerts.sending"
        self._settings = settings
        self._clock = clock or SystemClock()
        self._webhook = settings.alerts.webhook
        self._states = SharedStates.of(settings)

    def fire(self, alert: Alert) -> bool:
        """Record that an alert fires. False when it was reported recently, so that it is only counted."""
        alert = self._clean(alert)
        with self._locked_state() as saved:
            now, before = self._clock.now(), saved.active.get(alert.key)
            if before is None or before.message.state != "firing":
                self._record(saved, "firing", alert, since=now, times=1)
                return True
            # A clock that was set back must not silence an alert.
            age_s = (now - before.message.at).total_seconds()
            silent = 0 <= age_s < self._settings.alerts.repeat_s
            if silent and before.message.alert.severity == alert.severity:
                before.times += 1
                return False
            self._record(saved, "firing", alert, since=before.message.since, times=before.times + 1)
            return True

    def resolve(self, key: str, what: str) -> bool:
        """Record that a firing alert is over, in the words `what`. False when it was not firing."""
        with self._locked_state() as saved:
            before = saved.active.get(key)
            if before is None or before.message.state != "firing":
                return False
            ended = self._clean(replace(before.message.alert, what=what))
            self._record(saved, "resolved", ended, since=before.message.since, times=before.times)
            if not saved.active[key].waiting:
                del saved.active[key]
            return True

    def firing(self) -> list[Message]:
        """The alerts that are firing, the oldest first."""
        messages = (entry.message for entry in self._read().active.values())
        return sorted((m for m in messages if m.state == "firing"), key=lambda message: message.since)

    def deliver(self) -> Delivery:
        """Send the newest pending message of every key. Never raises because of the webhook.

        A refusal that other messages would meet as well ends the delivery. The next attempt then waits,
        at least as long as the webhook asked for.
        """
        delivered, reason, began = 0, "", self._clock.monotonic()
        with self._sole_sender() as ours:
            saved = self._read()
            if not ours or self._webhook is None:
                return Delivery(0, len(_waiting(saved)), "" if ours else "another process is sending")
            # A moment further ahead than any pause means that the clock was set back.
            if timedelta() < saved.not_before - self._clock.now() <= LONGEST_PAUSE:
                reason = f"the webhook is not tried before {saved.not_before:%H:%M:%S} UTC"
                return Delivery(0, len(_waiting(saved)), reason if _waiting(saved) else "")
            for entry in _waiting(saved):
                if self._clock.monotonic() - began > LONGEST_DELIVERY_S:
                    reason = "the next delivery sends the rest"
                    break
                refusal = self._send(entry.message)
                with self._locked_state() as after:
                    self._record_result(after, entry.message, refusal)
                delivered += refusal is None
                if refusal is not None:
                    reason = str(refusal)
                    if refusal.retryable:
                        break
            return Delivery(delivered, len(_waiting(self._read())), reason)

    def send_test(self) -> Delivery:
        """Write and send a test message; a failure is not retried later."""
        now = self._clock.now()
        message = self._message("test", TEST_ALERT, since=now, times=1)
        self._write(message)
        if self._webhook is None:
            return Delivery(0, 0, "NQ_ALERT_WEBHOOK is not set")
        refusal = self._send(message)
        return Delivery(0, 0, str(refusal)) if refusal else Delivery(1, 0)

    def _record(self, saved: _State, state: State, alert: Alert, *, since: datetime, times: int) -> None:
        message = self._message(state, alert, since=since, times=times)
        self._write(message)
        saved.active[alert.key] = _AlertState(message=message, times=times, waiting=self._webhook is not None)

    def _message(self, state: State, alert: Alert, *, since: datetime, times: int) -> Message:
        return Message(
            uuid.uuid4().hex, self._clock.now(), self._settings.environment, state, since, times, alert
        )

    def _send(self, message: Message) -> WebhookRefused | None:
        """Send one message and log the result; returns the refusal, if any."""
        assert self._webhook is not None
        refusal = None
        try:
            post(self._webhook.get_secret_value(), slack_body(message))
        except WebhookRefused as error:
            refusal = error
        self._append(
            {
                "id": message.id,
                "at": self._clock.now(),
                "key": message.alert.key,
                "delivered": refusal is None,
                "reason": str(refusal or ""),
            }
        )
        return refusal

    def _record_result(self, saved: _State, message: Message, refusal: WebhookRefused | None) -> None:
        """Record the result of sending a message, unless a newer one of its key has replaced it."""
        if refusal is None:
            saved.refused, saved.not_before = 0, self._clock.now()
        elif refusal.retryable:
            pause = min(FIRST_PAUSE * (1 << min(saved.refused, 10)), LONGEST_PAUSE)
            asked = timedelta(seconds=min(refusal.retry_after_s, LONGEST_PAUSE.total_seconds()))
            saved.refused += 1
            saved.not_before = self._clock.now() + max(pause, asked)
        entry = saved.active.get(message.alert.key)
        if entry is None or entry.message.id != message.id:
            return
        entry.waiting = refusal is not None
        entry.refused += entry.waiting
        if not entry.waiting and message.state == "resolved":
            del saved.active[message.alert.key]

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

    @contextmanager
    def _sole_sender(self) -> Iterator[bool]:
        """Whether no other process sends meanwhile, on this machine or another."""
        with files.locked(self._sending, wait=False) as ours, ExitStack() as held:
            if ours and self._states:
                try:
                    held.enter_context(Leases.of(self._settings).acquire(NAME))
                except LeaseHeld:
                    ours = False
                except LedgerError as error:  # a message sent twice is better than one that is not sent
                    log.warning("other machines may send the same alerts: %s", error)
            yield ours

    def _read(self) -> _State:
        if not self._states:
            return self._file_state()
        with self._locked_state() as saved:
            return saved

    def _file_state(self) -> _State:
        try:
            return _State.model_validate_json(self._state_file.read_bytes())
        except FileNotFoundError:
            return _State()
        except ValidationError:
            raise AlertError(
                f"{self._state_file} is damaged, so the state of the alerts is unknown; remove it, and "
                "alerts that still fire are sent again"
            ) from None

    @contextmanager
    def _locked_state(self) -> Iterator[_State]:
        """The state, locked for this process; changes are saved at the end."""
        with files.locked(self._lock):
            with ExitStack() as opened:
                shared = self._open_shared(opened)
                saved = self._file_state()
                before = saved.model_dump_json(by_alias=True)
                if shared:
                    before, saved = shared.body, self._joined(shared, saved)
                yield saved
                after = saved.model_dump_json(by_alias=True)
                if shared:
                    shared.body = after
                    try:
                        opened.close()
                        self._state_file.unlink(missing_ok=True)
                    except LedgerError as error:
                        log.warning("the state of the alerts is kept on this machine: %s", error)
                        shared = None
            if not shared and after != before:
                files.write_atomically(self._state_file, after.encode())

    def _open_shared(self, opened: ExitStack) -> SharedState | None:
        """The state of all machines, locked; None where there is one machine or the database is away."""
        if not self._states:
            return None
        try:
            return opened.enter_context(self._states.changing(NAME))
        except LedgerError as error:
            log.warning("the state of the alerts is kept on this machine: %s", error)
            return None

    def _joined(self, shared: SharedState, here: _State) -> _State:
        """The shared state, with the alerts that only this machine's file knows."""
        try:
            saved = _State.model_validate_json(shared.body) if shared.body else _State()
        except ValidationError:
            raise AlertError(
                "the state of the alerts in the ledger's database is damaged; remove the row 'alerts' of "
                "nq_states, and alerts that still fire are sent again"
            ) from None
        saved.active = {**here.active, **saved.active}
        return saved

    def _write(self, message: Message) -> None:
        row = asdict(message)
        alert = row.pop("alert")
        self._append({**row, **alert})

    def _append(self, line: dict[str, Any]) -> None:
        """Append one whole line, durably, whatever else writes to the log."""
        files.make_folder(self.log.parent)
        text = json.dumps(line, default=lambda value: value.isoformat(), ensure_ascii=False) + "\n"
        with files.locked(self.log), self.log.open("a+b") as log:
            # A process may have died while writing its line.
            torn = log.tell() and os.pread(log.fileno(), 1, log.tell() - 1) != b"\n"
            log.write(b"\n" * bool(torn) + text.encode())
            log.flush()
            os.fsync(log.fileno())


def _waiting(saved: _State) -> list[_AlertState]:
    """The pending messages in order: those refused before come last."""
    waiting = [entry for entry in saved.active.values() if entry.waiting]
    return sorted(waiting, key=lambda entry: (entry.refused, entry.message.at))
