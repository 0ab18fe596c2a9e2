"""The faults a gateway injects, and when.

`Fault("fin", after_records=1000)` closes a session after its thousandth record. Without a count or a
time a fault happens at the next opportunity. Faults happen in order, each once, in whichever session
is due, so a list of sixty makes sixty disconnects.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from threading import Lock

from nq_pipeline.errors import SandboxError

GATEWAY_FAULTS: dict[str, str] = {
    "refuse_connection": "the connection is closed at once, as beyond the limit of connections a second",
    "refuse_auth": "the key is refused, with `text` if given",
    "no_metadata": "the session starts and sends nothing, not even metadata",
    "fin": "a clean close between two records",
    "rst": "the connection is reset",
    "silence": "half-open: the connection stays, but nothing more arrives, not even heartbeats",
    "cut": "a clean close in the middle of a record",
    "garbage": "bytes that are not records, then the stream continues",
    "drip": "seven bytes at a time from here on",
    "error": "an ErrorMsg with `code`; fatal codes close the session, code 7 skips `records` first",
    "duplicate": "the next `records` records are sent twice",
    "omit": "a replay omits `records` records and still reports that it is complete",
}
"""Every fault the gateway can inject, and what it does."""

STREAM = frozenset({"fin", "rst", "silence", "cut", "garbage", "drip", "error", "duplicate"})
NEED_A_RECORD = frozenset({"cut", "duplicate", "omit"})
ERRORS: dict[int, str] = {
    1: "Authentication failed",
    2: "User or API key deactivated",
    3: "User has reached their open connection limit",
    4: "Failed to resolve symbol",
    5: "Invalid subscription",
    6: "Internal error",
    7: "Slow client detected for trades. Skipped records",
    8: "Replay data aged out",
}
"""Error codes and texts. The texts of 1, 4, 5 and 8 are invented, the others were observed."""
NOT_FATAL = frozenset({4, 7})

_FORM = re.compile(r"([a-z_]+)(?:=(\d+))?(?:@(\d+)|@(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class Fault:
    """A fault that happens once, after a session has sent records and lasted seconds.

    `records` are omitted, skipped or duplicated; `code` and `text` are of an `error`, `text` also of
    `refuse_auth`.
    """

    kind: str
    after_records: int = 0
    after_s: float = 0.0
    records: int = 1
    code: int = 6
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in GATEWAY_FAULTS or self.code not in ERRORS:
            raise SandboxError(
                f"{self.kind!r} with code {self.code} is not a fault of the gateway; choose one of "
                f"{', '.join(GATEWAY_FAULTS)}, and for `error` a code from 1 to 8."
            )


def parse_fault(text: str) -> Fault:
    """Read `KIND[=NUMBER][@RECORDS | @SECONDSs]`: `fin`, `cut@1000`, `error=7@2.5s`, `omit=3`.

    The number is the code of an `error` and the count of records of the others.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise SandboxError(
            f"{text!r} is not a fault of the gateway; write KIND or KIND=NUMBER, then @RECORDS or @SECONDSs "
            f"for when, with a kind of {', '.join(GATEWAY_FAULTS)}."
        )
    kind, number, records, seconds = match.groups()
    fault = Fault(kind, after_records=int(records or 0), after_s=float(seconds or 0))
    if number is None:
        return fault
    return replace(fault, code=int(number)) if kind == "error" else replace(fault, records=int(number))


@dataclass(frozen=True)
class InjectedFault:
    """A fault that happened, its session, and how many data records that had sent."""

    fault: Fault
    session_id: int
    records: int


class FaultScript:
    """Faults to come and faults that happened; thread-safe."""

    def __init__(self, *faults: Fault) -> None:
        self._lock = Lock()
        self._pending = list(faults)
        self.injected: list[InjectedFault] = []

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._pending.extend(faults)

    @property
    def pending(self) -> tuple[Fault, ...]:
        with self._lock:
            return tuple(self._pending)

    def next_due(self, kinds: Collection[str]) -> Fault | None:
        """The first pending fault of some kinds."""
        with self._lock:
            return next((fault for fault in self._pending if fault.kind in kinds), None)

    def claim_next(self, kind: str, session_id: int) -> Fault | None:
        """Claim the first pending fault of a kind for a session, if there is one."""
        fault = self.next_due((kind,))
        return fault if fault and self.claim(fault, session_id) else None

    def claim(self, fault: Fault, session_id: int, records: int = 0) -> bool:
        """Remove a pending fault; False when another session already has."""
        with self._lock:
            index = next((i for i, other in enumerate(self._pending) if other is fault), None)
            if index is None:
                return False
            del self._pending[index]
            self.injected.append(InjectedFault(fault, session_id, records))
            return True
