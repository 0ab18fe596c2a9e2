"""What goes wrong at the gateway, and when: faults that its sessions work off, the first one first.

`Fault("fin", after_records=1000)` closes a session after its thousandth record. Without a count
or a time a fault strikes at the next opportunity. Each strikes once; whichever session is due
takes it, so that a list of sixty makes sixty disconnects.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from threading import Lock

from nq_pipeline.errors import SandboxError

FAULTS: dict[str, str] = {
    "refuse_connection": "the connection is closed at once, as beyond the limit of connections a second",
    "refuse_auth": "the key is refused, with `text` if given",
    "no_metadata": "the session starts and nothing ever comes, not even metadata",
    "fin": "a clean close between two records",
    "rst": "the connection is reset",
    "silence": "half-open: the connection stays, nothing comes any more, no heartbeats either",
    "cut": "a clean close in the middle of a record",
    "garbage": "bytes that are no records, then the stream goes on",
    "drip": "from here on seven bytes at a time",
    "error": "an ErrorMsg with `code`; fatal codes close the session, code 7 skips `records` first",
    "duplicate": "the next `records` records come twice",
    "omit": "a replay leaves out `records` records and still calls itself complete",
}
"""Every fault, with what it does."""

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
"""Error codes with their texts; those of 1, 4, 5 and 8 are made up, the others were seen."""
NOT_FATAL = frozenset({4, 7})

_FORM = re.compile(r"([a-z_]+)(?:=(\d+))?(?:@(\d+)|@(\d+(?:\.\d+)?)s)?")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong once.

    Attributes
    ----------
    kind
        One of `FAULTS`.
    after_records, after_s
        Strikes when a session has sent so many data records and has been started so long ago.
    records
        How many records are omitted, skipped or duplicated.
    """

    kind: str
    after_records: int = 0
    after_s: float = 0.0
    records: int = 1
    code: int = 6
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in FAULTS or self.code not in ERRORS:
            raise SandboxError(
                f"{self.kind!r} with code {self.code} is no fault of the gateway; choose one of "
                f"{', '.join(FAULTS)}, and for `error` a code from 1 to 8."
            )


def parse_fault(text: str) -> Fault:
    """Read `KIND[=NUMBER][@RECORDS | @SECONDSs]`: `fin`, `cut@1000`, `error=7@2.5s`, `omit=3`.

    The number is the code of an `error` and the count of records of the others.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise SandboxError(
            f"{text!r} is no fault of the gateway; write KIND or KIND=NUMBER, then @RECORDS or @SECONDSs "
            f"for when, with a kind of {', '.join(FAULTS)}."
        )
    kind, number, records, seconds = match.groups()
    fault = Fault(kind, after_records=int(records or 0), after_s=float(seconds or 0))
    if number is None:
        return fault
    return replace(fault, code=int(number)) if kind == "error" else replace(fault, records=int(number))


@dataclass(frozen=True)
class Struck:
    """A fault that happened: to which session, and after how many of its data records."""

    fault: Fault
    session_id: int
    records: int


class Script:
    """Faults to come and faults that happened; may be added to from any thread."""

    def __init__(self, *faults: Fault) -> None:
        self._lock = Lock()
        self._pending = list(faults)
        self.struck: list[Struck] = []

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._pending.extend(faults)

    @property
    def pending(self) -> tuple[Fault, ...]:
        with self._lock:
            return tuple(self._pending)

    def next(self, kinds: Collection[str]) -> Fault | None:
        """The first fault to come of some kinds."""
        with self._lock:
            return next((fault for fault in self._pending if fault.kind in kinds), None)

    def strike(self, fault: Fault, session_id: int, records: int = 0) -> bool:
        """Take a fault off the list; False when another session was faster."""
        with self._lock:
            index = next((i for i, other in enumerate(self._pending) if other is fault), None)
            if index is None:
                return False
            del self._pending[index]
            self.struck.append(Struck(fault, session_id, records))
            return True
