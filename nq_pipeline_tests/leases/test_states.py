"""States that machines share: changed one after another, and done without while the database is away."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from pyrate_limiter import Rate, RateItem

from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import LedgerError, SourceError
from nq_pipeline.leases.states import SharedStates
from nq_pipeline.outcome import Outcome
from nq_pipeline.transport.breaker import Breaker
from nq_pipeline.transport.shared_bucket import SharedBucket
from nq_pipeline_tests.testing.lease_hosts import Hosts

NOWHERE = "postgresql://nq:word@127.0.0.1:1/ledger"


class Failed:
    """An answer with an outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome, self.reason = outcome, "as the test says"


def test_changes_follow_one_another(distant: Hosts) -> None:
    def count() -> None:
        states = SharedStates(distant.settings("a"))
        for _ in range(10):
            with states.changing("counter", initial=lambda: "100") as state:
                state.body = str(int(state.body) + 1)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = SharedStates(distant.settings("b"))
    assert states.read("counter") == "130" and states.read("another") == ""
    with pytest.raises(ZeroDivisionError), states.changing("counter") as state:
        state.body = str(1 // 0)
    assert states.read("counter") == "130"
    assert SharedStates(distant.settings("b").with_values(environment="live")).read("counter") == ""


def test_one_machine_shares_nothing(tmp_path: Path) -> None:
    assert SharedStates.of(build_settings(data_dir=tmp_path)) is None
    assert SharedStates.of(build_settings(data_dir=tmp_path, ledger_url="no address")) is None


def test_a_database_that_is_away_is_asked_once(tmp_path: Path) -> None:
    states = SharedStates.of(build_settings(data_dir=tmp_path, ledger_url=NOWHERE))
    assert states
    with pytest.raises(LedgerError):
        states.read("alerts")
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(LedgerError):
            states.read("alerts")
    assert time.monotonic() - began < 1


def test_a_block_on_one_machine_pauses_all(distant: Hosts) -> None:
    a, b = (
        Breaker(
            distant.folder / host,
            "barchart",
            "https://site",
            states=SharedStates.of(distant.settings(host)),
        )
        for host in ("a", "b")
    )
    a.ask(lambda: Failed(Outcome.BLOCKED))
    states = SharedStates.of(distant.settings("b"))
    later = Breaker(distant.folder / "b", "barchart", "https://site", states=states)
    with pytest.raises(SourceError, match="not asked: barchart was blocked"):
        later.ask(lambda: Failed(Outcome.OK))
    later.close()
    assert b.ask(lambda: Failed(Outcome.OK)).outcome is Outcome.OK
    assert list(distant.folder.glob("?/*breaker.json")) == []


def test_failures_of_all_machines_are_counted(distant: Hosts) -> None:
    def breaker(host: str) -> Breaker:
        states = SharedStates.of(distant.settings(host))
        return Breaker(distant.folder / host, "polygon", "https://site", states=states)

    for host in ("a", "b", "a"):
        breaker(host).ask(lambda: Failed(Outcome.UNAVAILABLE))
    with pytest.raises(SourceError, match="not asked"):
        breaker("b").ask(lambda: Failed(Outcome.OK))


def test_a_breaker_without_its_database_uses_a_file(tmp_path: Path) -> None:
    states = SharedStates.of(build_settings(data_dir=tmp_path, ledger_url=NOWHERE))
    Breaker(tmp_path, "barchart", "https://site", states=states).ask(lambda: Failed(Outcome.BLOCKED))
    with pytest.raises(SourceError, match="not asked"):
        Breaker(tmp_path, "barchart", "https://site").ask(lambda: Failed(Outcome.OK))


def test_machines_share_a_rate_limit(distant: Hosts) -> None:
    a, b = (
        SharedBucket([Rate(3, 60_000)], SharedStates(distant.settings(host)), "polygon-rate") for host in "ab"
    )
    now = time.time_ns() // 1_000_000
    assert [bucket.put(RateItem("polygon", now)) for bucket in (a, b, a, b)] == [True, True, True, False]
    waiting = b.waiting(RateItem("polygon", now))
    assert isinstance(waiting, int) and 0 < waiting <= 60_000


def test_a_rate_limit_without_its_database_holds_in_this_process(tmp_path: Path) -> None:
    states = SharedStates.of(build_settings(data_dir=tmp_path, ledger_url=NOWHERE))
    assert states
    bucket = SharedBucket([Rate(2, 60_000)], states, "polygon-rate")
    now = time.time_ns() // 1_000_000
    assert [bucket.put(RateItem("polygon", now)) for _ in range(3)] == [True, True, False]
