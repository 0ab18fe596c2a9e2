"""The circuit breaker: when a vendor is not asked, for how long, and how the error explains it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.errors import LedgerError, SourceError
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.leases.states import SharedState, SharedStates
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainAnswer
from nq_pipeline.transport.breaker import COOL_DOWN_S, FAILURES_TO_OPEN, Breaker

URL = "http://127.0.0.1:9"
NO_TIME = dict.fromkeys(COOL_DOWN_S, 0.0)
OF_THE_LINE = sorted(COOL_DOWN_S)
OTHERS = [outcome for outcome in Outcome if outcome not in COOL_DOWN_S]


class Vendor:
    """Answers with one outcome after the other through a new breaker each time, as runs do."""

    def __init__(self, folder: Path, cool_down_s: dict[Outcome, float] | None = None) -> None:
        self.folder = folder
        self.cool_down_s = dict(COOL_DOWN_S) if cool_down_s is None else cool_down_s
        self.times_asked = 0

    def breaker(self) -> Breaker:
        return Breaker(self.folder, "barchart", URL, self.cool_down_s)

    def run(self, outcome: Outcome) -> Outcome:
        """The outcome of one run in which the vendor would answer with this one."""

        def ask() -> ChainAnswer:
            self.times_asked += 1
            return ChainAnswer("barchart", outcome, "a reason", SOURCE_CHAIN.empty(), {})

        try:
            return self.breaker().ask(ask).outcome
        except SourceError as error:
            return error.outcome

    def is_left_alone(self) -> bool:
        before = self.times_asked
        self.run(Outcome.OK)
        return self.times_asked == before


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    return Vendor(tmp_path)


@pytest.fixture
def hasty(tmp_path: Path) -> Vendor:
    """One whose cool-down is over at once."""
    return Vendor(tmp_path, NO_TIME)


def test_a_block_opens_at_once(vendor: Vendor) -> None:
    assert vendor.run(Outcome.BLOCKED) is Outcome.BLOCKED
    assert vendor.is_left_alone()


@pytest.mark.parametrize("outcome", [Outcome.UNAVAILABLE, Outcome.RATE_LIMITED])
def test_three_failures_in_a_row_open_and_two_do_not(vendor: Vendor, outcome: Outcome) -> None:
    for _ in range(FAILURES_TO_OPEN):
        assert vendor.run(outcome) is outcome
    assert vendor.times_asked == FAILURES_TO_OPEN == 3
    assert vendor.is_left_alone()


@pytest.mark.parametrize("between", OTHERS)
def test_any_other_outcome_between_ends_the_row(vendor: Vendor, between: Outcome) -> None:
    for outcome in (
        Outcome.UNAVAILABLE,
        Outcome.UNAVAILABLE,
        between,
        Outcome.UNAVAILABLE,
        Outcome.UNAVAILABLE,
    ):
        vendor.run(outcome)
    assert not vendor.is_left_alone()


@pytest.mark.parametrize("outcome", OTHERS)
def test_what_is_no_fault_of_the_line_opens_nothing(vendor: Vendor, outcome: Outcome) -> None:
    for _ in range(5):
        assert vendor.run(outcome) is outcome
    assert vendor.times_asked == 5


@pytest.mark.parametrize("outcome", OF_THE_LINE)
def test_while_open_the_outcome_is_that_which_opened_it(vendor: Vendor, outcome: Outcome) -> None:
    for _ in range(FAILURES_TO_OPEN):
        vendor.run(outcome)
    with pytest.raises(SourceError) as raised:
        vendor.breaker().ask(lambda: pytest.fail("it was asked"))
    assert raised.value.outcome is outcome
    assert f"barchart was {outcome} at" in str(raised.value)
    assert "not asked before" in str(raised.value) and "--refresh" in str(raised.value)


@pytest.mark.parametrize("outcome", OF_THE_LINE)
def test_cool_down_follows_the_outcome(vendor: Vendor, outcome: Outcome) -> None:
    breaker = vendor.breaker()
    for _ in range(FAILURES_TO_OPEN):
        try:
            breaker.ask(lambda: ChainAnswer("barchart", outcome, "", SOURCE_CHAIN.empty(), {}))
        except SourceError:
            break  # a block opens at once
    (memory,) = vendor.folder.glob("*-breaker.json")
    opened = datetime.fromisoformat(orjson.loads(memory.read_bytes())["opened_at"])
    again = opened + timedelta(seconds=COOL_DOWN_S[outcome])
    for each in (breaker, vendor.breaker()):
        with pytest.raises(SourceError, match=f"before {again:%H:%M:%S}"):
            each.ask(lambda: pytest.fail("it was asked"))


def test_cool_down_follows_the_last_outcome(tmp_path: Path) -> None:
    breaker = Vendor(tmp_path, {**COOL_DOWN_S, Outcome.BLOCKED: 0.0}).breaker()
    answers = iter([Outcome.BLOCKED, Outcome.OK])
    for expected in (Outcome.BLOCKED, Outcome.OK):
        answer = breaker.ask(lambda: ChainAnswer("barchart", next(answers), "", SOURCE_CHAIN.empty(), {}))
        assert answer.outcome is expected


def test_after_the_cool_down_one_good_answer_closes_it(hasty: Vendor) -> None:
    hasty.run(Outcome.BLOCKED)
    assert hasty.run(Outcome.OK) is Outcome.OK
    patient = Vendor(hasty.folder)
    for _ in range(FAILURES_TO_OPEN - 1):
        patient.run(Outcome.UNAVAILABLE)
    assert not patient.is_left_alone(), "failures of before were counted on"


def test_after_the_cool_down_one_more_failure_opens_it_again(hasty: Vendor) -> None:
    for _ in range(FAILURES_TO_OPEN):
        hasty.run(Outcome.UNAVAILABLE)
    assert hasty.run(Outcome.UNAVAILABLE) is Outcome.UNAVAILABLE
    assert hasty.times_asked == FAILURES_TO_OPEN + 1
    assert Vendor(hasty.folder).is_left_alone()


def test_refresh_closes_it(vendor: Vendor) -> None:
    vendor.run(Outcome.BLOCKED)
    vendor.breaker().close()
    assert not vendor.is_left_alone()
    vendor.run(Outcome.UNAVAILABLE)
    vendor.run(Outcome.UNAVAILABLE)
    assert not vendor.is_left_alone()


def test_program_fault_passes_through_and_opens_nothing(vendor: Vendor) -> None:
    def stumble() -> ChainAnswer:
        raise ZeroDivisionError("a bug")

    for _ in range(FAILURES_TO_OPEN + 1):
        with pytest.raises(ZeroDivisionError, match="a bug"):
            vendor.breaker().ask(stumble)
    assert not vendor.is_left_alone()


def test_vendors_and_addresses_have_breakers_of_their_own(tmp_path: Path) -> None:
    Vendor(tmp_path).run(Outcome.BLOCKED)
    asked: list[str] = []

    def ask() -> ChainAnswer:
        asked.append("yes")
        return ChainAnswer("x", Outcome.OK, "", SOURCE_CHAIN.empty(), {})

    Breaker(tmp_path, "barchart", "http://127.0.0.1:10").ask(ask)
    Breaker(tmp_path, "polygon", URL).ask(ask)
    assert len(asked) == 2


def test_penalty_of_an_hour_starts_at_the_first_answer(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask() -> ChainAnswer:
        asked.append("yes")
        return ChainAnswer("tradovate", Outcome.RATE_LIMITED, "429", SOURCE_CHAIN.empty(), {})

    penalty_s = {Outcome.RATE_LIMITED: 3600}
    assert Breaker(tmp_path, "tradovate", URL, penalty_s=penalty_s).ask(ask).outcome is Outcome.RATE_LIMITED
    with pytest.raises(SourceError, match="not asked before") as refused:
        Breaker(tmp_path, "tradovate", URL, penalty_s=penalty_s).ask(ask)
    since, until = (
        datetime.strptime(t, "%H:%M:%S") for t in re.findall(r"\d\d:\d\d:\d\d", str(refused.value))
    )
    assert (until - since).seconds == 3600
    assert len(asked) == 1


def test_an_answer_counts_although_the_state_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way of the folder")
    vendor = Vendor(tmp_path / "cache")
    assert [vendor.run(Outcome.BLOCKED) for _ in range(2)] == [Outcome.BLOCKED] * 2
    assert vendor.times_asked == 2


def test_a_failure_counts_once_although_it_could_not_be_shared(tmp_path: Path) -> None:
    class Lost:
        def read(self, name: str) -> str:
            return ""

        @contextmanager
        def changing(self, name: str) -> Iterator[SharedState]:
            yield SharedState("", 0)
            raise LedgerError("the connection is lost")

    vendor = Vendor(tmp_path)
    answer = ChainAnswer("barchart", Outcome.UNAVAILABLE, "a reason", SOURCE_CHAIN.empty(), {})
    Breaker(tmp_path, "barchart", URL, states=cast("SharedStates", Lost())).ask(lambda: answer)
    for _ in range(FAILURES_TO_OPEN):
        vendor.run(Outcome.UNAVAILABLE)
    assert vendor.times_asked == FAILURES_TO_OPEN - 1


# ── damage ──────────────────────────────────────────────────────────────────────────────────────


def spoil(vendor: Vendor, how: Callable[[bytes], bytes]) -> None:
    vendor.run(Outcome.BLOCKED)
    (memory,) = vendor.folder.glob("*-breaker.json")
    memory.write_bytes(how(memory.read_bytes()))


def test_a_memory_cut_off_anywhere_is_forgotten(vendor: Vendor) -> None:
    vendor.run(Outcome.BLOCKED)
    (memory,) = vendor.folder.glob("*-breaker.json")
    whole = memory.read_bytes()
    for length in range(len(whole)):
        memory.write_bytes(whole[:length])
        assert not vendor.is_left_alone(), whole[:length]


INTEGERS = st.integers(-(2**53), 2**53)
NONSENSE = st.none() | st.booleans() | INTEGERS | st.text(max_size=9) | st.lists(INTEGERS, max_size=2)


@given(
    name=st.sampled_from(["state", "outcome", "failures", "successes", "opened_at"]),
    value=NONSENSE,
)
def test_a_memory_with_one_senseless_value_never_stops_a_run(
    vendor: Vendor, name: str, value: object
) -> None:
    vendor.breaker().close()
    spoil(vendor, lambda body: orjson.dumps({**orjson.loads(body), name: value}))
    assert vendor.run(Outcome.OK) in (Outcome.OK, Outcome.BLOCKED)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"42", b'"open"', b'{"state":"ajar"}', b"\xff"])
def test_a_memory_that_is_something_else_is_forgotten(vendor: Vendor, body: bytes) -> None:
    spoil(vendor, lambda _: body)
    assert not vendor.is_left_alone()


def test_an_opening_in_the_future_is_forgotten(vendor: Vendor) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    spoil(vendor, lambda body: orjson.dumps({**orjson.loads(body), "opened_at": tomorrow}))
    assert not vendor.is_left_alone()
