"""The circuit breaker of each vendor, remembered across runs.

Requests pause for 15 minutes after a vendor blocked us, for a minute after it failed in three runs in a
row, and for as long as the vendor demands (`penalty_s`). A refusal by the plan does not open the circuit.
pybreaker decides; this file stores its state, because a run lasts only seconds: in the database that several
machines share, or on disk.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import orjson
import pybreaker

from nq_pipeline.errors import LedgerError, SourceError, Unavailable
from nq_pipeline.files import write_atomically
from nq_pipeline.leases.states import SharedStates
from nq_pipeline.outcome import Outcome

FAILURES_TO_OPEN = 3
COOL_DOWN_S = {Outcome.BLOCKED: 900, Outcome.RATE_LIMITED: 60, Outcome.UNAVAILABLE: 60}
"""Seconds without a request after the circuit opened, by the outcome that opened it. Any other outcome
resets the count of failures."""
CLOCKS_DIFFER = timedelta(minutes=1)
"""How far ahead of this machine's clock another machine may have opened the circuit."""

log = logging.getLogger(__name__)


class Answer(Protocol):
    """What a breaker judges."""

    @property
    def outcome(self) -> Outcome: ...
    @property
    def reason(self) -> str: ...


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


class Breaker:
    """The breaker of one vendor at one address.

    `penalty_s` has seconds by outcome where the vendor demands more than `COOL_DOWN_S`. The first such answer
    opens the circuit. `states` has the state where machines share it.
    """

    def __init__(
        self,
        state_dir: Path,
        source: str,
        base_url: str,
        cool_down_s: Mapping[Outcome, float] = COOL_DOWN_S,
        penalty_s: Mapping[Outcome, float] = MappingProxyType({}),
        states: SharedStates | None = None,
    ) -> None:
        name = f"{source}-{hashlib.sha256(base_url.encode()).hexdigest()[:12]}-breaker"
        self._state = _StoredState(state_dir / f"{name}.json", states, name)
        self._source = source
        self._cool_down_s = cool_down_s = {**cool_down_s, **penalty_s}
        self._at_once = {Outcome.BLOCKED, *penalty_s}
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=FAILURES_TO_OPEN,
            reset_timeout=cool_down_s[self._state.outcome],
            exclude=[lambda error: not isinstance(error, _FailureError)],
            state_storage=self._state,
            throw_new_error_on_trip=False,
        )

    def ask(self, ask: Callable[[], AnyAnswer]) -> AnyAnswer:
        """Return what `ask` returns; while the circuit is open, raise the error of `pause`."""
        if (error := self.pause()) is not None:
            raise error
        try:
            answer: AnyAnswer = self._breaker.call(self._raise_failure, ask)
            return answer
        except _FailureError as fault:
            if fault.answer.outcome in self._at_once:
                self._breaker.open()
            return fault.answer  # type: ignore[return-value]  # what `ask` gave

    def close(self) -> None:
        """Forget past failures: the next request is sent."""
        self._breaker.close()

    def _raise_failure(self, ask: Callable[[], AnyAnswer]) -> AnyAnswer:
        answer = ask()
        if answer.outcome in self._cool_down_s:
            self._state.outcome = answer.outcome
            self._breaker.reset_timeout = self._cool_down_s[answer.outcome]
            raise _FailureError(answer)
        return answer

    def pause(self) -> SourceError | None:
        """The error of a request while the circuit is open, with the outcome that opened it; else None."""
        opened = self._state.opened_at if self._state.state == pybreaker.STATE_OPEN else None
        if opened is None:
            return None
        again = opened + timedelta(seconds=self._cool_down_s[self._state.outcome])
        if again <= datetime.now(UTC):
            return None
        error = Unavailable(
            f"not asked: {self._source} was {self._state.outcome} at {opened:%H:%M:%S} UTC "
            f"and is not asked before {again:%H:%M:%S}; `--refresh` asks now"
        )
        error.outcome = self._state.outcome
        return error


class _FailureError(Exception):
    """Carries a failed answer through pybreaker."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


_STATES = (pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN)


class _StoredState(pybreaker.CircuitBreakerStorage):
    """pybreaker's state as small JSON: in `states`, or in a file of this machine where there are none or they
    cannot be reached. A damaged text is ignored."""

    def __init__(self, path: Path, states: SharedStates | None, name: str) -> None:
        super().__init__("file")
        self._path, self._states, self._name = path, states, name
        self._values: dict[str, Any] = {}
        self._load(self._read())

    def _read(self) -> bytes | str:
        try:
            return self._states.read(self._name) if self._states else self._path.read_bytes()
        except LedgerError as error:
            log.warning("the breakers of other machines are not known: %s", error)
            self._states = None
            return self._read()
        except OSError:
            return b""

    def _load(self, text: bytes | str) -> None:
        try:
            self._values = orjson.loads(text)
            known = self.outcome in COOL_DOWN_S and self.state in _STATES
            past = self.opened_at is None or self.opened_at <= datetime.now(UTC) + CLOCKS_DIFFER
            if not (known and past and self.counter >= 0 and self.success_counter >= 0):
                self._values = {}
        except (ValueError, TypeError, AttributeError):
            self._values = {}

    def _set(self, name: str, value: Any, *, add: bool = False) -> None:
        """Set a value, or add to it, in what all machines have written so far."""
        if self._states:
            try:
                with self._states.changing(self._name) as shared:
                    self._load(shared.body)
                    self._values[name] = value + self._values.get(name, 0) if add else value
                    shared.body = orjson.dumps(self._values).decode()
                return
            except LedgerError as error:
                log.warning("the breaker is not shared with other machines: %s", error)
                self._states = None
        self._values[name] = value + self._values.get(name, 0) if add else value
        write_atomically(self._path, orjson.dumps(self._values))

    @property
    def outcome(self) -> Outcome:
        return Outcome(self._values.get("outcome", Outcome.UNAVAILABLE))

    @outcome.setter
    def outcome(self, value: Outcome) -> None:
        self._set("outcome", str(value))

    @property
    def state(self) -> str:
        return str(self._values.get("state", pybreaker.STATE_CLOSED))

    @state.setter
    def state(self, state: str) -> None:
        if state != self.state:
            self._set("state", state)

    @property
    def counter(self) -> int:
        return int(self._values.get("failures", 0))

    def increment_counter(self) -> None:
        self._set("failures", 1, add=True)

    def reset_counter(self) -> None:
        if self.counter:
            self._set("failures", 0)

    @property
    def success_counter(self) -> int:
        return int(self._values.get("successes", 0))

    def increment_success_counter(self) -> None:
        self._set("successes", 1, add=True)

    def reset_success_counter(self) -> None:
        if self.success_counter:
            self._set("successes", 0)

    @property
    def opened_at(self) -> datetime | None:
        text = self._values.get("opened_at")
        return datetime.fromisoformat(text) if text else None

    @opened_at.setter
    def opened_at(self, instant: datetime) -> None:
        self._set("opened_at", instant.isoformat())
