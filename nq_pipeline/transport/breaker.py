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
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

import orjson
import pybreaker

from nq_pipeline.clock import real_now
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
        self._name = f"{source}-{hashlib.sha256(base_url.encode()).hexdigest()[:12]}-breaker"
        self._path, self._states, self._source = state_dir / f"{self._name}.json", states, source
        self._cool_down_s = {**cool_down_s, **penalty_s}
        self._at_once = {Outcome.BLOCKED, *penalty_s}
        self._state = _State(self._read())

    def ask(self, ask: Callable[[], AnyAnswer]) -> AnyAnswer:
        """Return what `ask` returns; while the circuit is open, raise the error of `pause`."""
        if (error := self.pause()) is not None:
            raise error
        answer = ask()
        if answer.outcome in self._cool_down_s or not self._state.is_good:
            self._change(lambda state: self._judge(answer.outcome, state))
        return answer

    def close(self) -> None:
        """Forget past failures: the next request is sent."""
        if not self._state.is_good:
            self._change(lambda state: _State())

    def pause(self) -> SourceError | None:
        """The error of a request while the circuit is open, with the outcome that opened it; else None."""
        outcome, opened = self._state.outcome, self._state.opened_at
        if self._state.state != pybreaker.STATE_OPEN or opened is None:
            return None
        again = opened + timedelta(seconds=self._cool_down_s[outcome])
        if again <= real_now():
            return None
        error = Unavailable(
            f"not asked: {self._source} was {outcome} at {opened:%H:%M:%S} UTC "
            f"and is not asked before {again:%H:%M:%S}; `--refresh` asks now"
        )
        error.outcome = outcome
        return error

    def _judge(self, outcome: Outcome, state: _State) -> _State:
        """The state after an answer with this outcome."""
        circuit = pybreaker.CircuitBreaker(
            FAILURES_TO_OPEN, self._cool_down_s[state.outcome], state_storage=state
        )
        failed = outcome in self._cool_down_s
        # pybreaker counts calls. Another machine may have opened the circuit in the meantime.
        with suppress(_FailureError, pybreaker.CircuitBreakerError):
            circuit.call(_raise_if, failed)
        if failed:
            state.outcome = outcome
        if outcome in self._at_once:
            circuit.open()
        return state

    def _read(self) -> bytes | str:
        try:
            return self._states.read(self._name) if self._states else self._path.read_bytes()
        except LedgerError as error:
            log.warning("the breakers of other machines are not known: %s", error)
            self._states = None
            return self._read()
        except OSError:
            return b""

    def _change(self, change: Callable[[_State], _State]) -> None:
        """Change the state that all machines have written so far, or that of this machine."""
        if self._states:
            try:
                with self._states.changing(self._name) as shared:
                    changed = change(_State(shared.body))
                    shared.body = changed.dump().decode()
                self._state = changed
                return
            except LedgerError as error:
                log.warning("the breaker is not shared with other machines: %s", error)
                self._states = None
        self._state = change(self._state)
        try:
            write_atomically(self._path, self._state.dump())
        except OSError as error:  # the vendor's answer is worth more than this record
            log.warning("the breaker of %s is not saved: %s", self._source, error)


class _FailureError(Exception):
    """Tells pybreaker of a failed answer."""


def _raise_if(failed: bool) -> None:
    if failed:
        raise _FailureError


class _State(pybreaker.CircuitBreakerStorage):
    """pybreaker's state and the outcome of the last failure, as small JSON; a damaged text is ignored."""

    state: str = pybreaker.STATE_CLOSED
    counter: int = 0
    success_counter: int = 0
    opened_at: datetime | None = None
    outcome = Outcome.UNAVAILABLE

    def __init__(self, text: bytes | str = b"") -> None:
        super().__init__("json")
        try:
            values = orjson.loads(text)
            state, failures = str(values.get("state", self.state)), int(values.get("failures", 0))
            opened, outcome = values.get("opened_at"), Outcome(values.get("outcome", self.outcome))
            opened_at = datetime.fromisoformat(opened) if opened else None
            known = outcome in COOL_DOWN_S and state in _STATES and failures >= 0
            past = opened_at is None or opened_at <= real_now() + CLOCKS_DIFFER
        except (ValueError, TypeError, AttributeError):
            return
        if known and past:
            self.state, self.counter, self.opened_at, self.outcome = state, failures, opened_at, outcome

    @property
    def is_good(self) -> bool:
        """Whether no failure is remembered."""
        return self.state == pybreaker.STATE_CLOSED and not self.counter

    def dump(self) -> bytes:
        values = {"outcome": str(self.outcome), "state": self.state, "failures": self.counter}
        return orjson.dumps(values | ({"opened_at": self.opened_at} if self.opened_at else {}))

    def increment_counter(self) -> None:
        self.counter += 1

    def reset_counter(self) -> None:
        self.counter = 0

    def increment_success_counter(self) -> None:
        self.success_counter += 1

    def reset_success_counter(self) -> None:
        self.success_counter = 0


_STATES = (pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN)
