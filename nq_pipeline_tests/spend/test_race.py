"""Processes that race for the last dollar, and processes that are killed with money in their hands."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from decimal import Decimal
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import pytest

from nq_pipeline.errors import OverBudget
from nq_pipeline.settings import Settings
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline_tests.testing.ledger_machine import charge, size_of
from nq_pipeline_tests.testing.ledgers import FreshLedger

RACERS = 16
PRICE = Decimal("0.09")
LAST_DOLLAR = {"budget_monthly_usd": Decimal(180), "budget_daily_usd": Decimal(10)}
"""Of which the plan takes 179."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def race(settings: Settings, number: int, start: Barrier) -> None:
    """Make the ledger, all at once, then reserve, all at once, until nothing is left.

    Some commit what they reserved, and one in four dies with it open.
    """
    start.wait(timeout=250)
    ledger = open_ledger(settings)
    start.wait(timeout=250)
    while True:
        try:
            reservation = ledger.reserve(charge(PRICE, run_id=f"racer-{number}"))
        except OverBudget:
            return
        if number % 4 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if number % 2:
            ledger.commit(reservation, billed_bytes=size_of(PRICE))


@pytest.mark.timeout(600)  # sixteen processes start, on whatever machine this is
def test_sixteen_processes_spend_the_last_dollar_once(fresh: FreshLedger) -> None:
    settings, start = fresh(**LAST_DOLLAR), PROCESSES.Barrier(RACERS)
    racers = [PROCESSES.Process(target=race, args=(settings, n, start)) for n in range(RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(250)
    assert {racer.exitcode for racer in racers} <= {0, -signal.SIGKILL}
    ledger = open_ledger(settings)
    month = ledger.month()
    taken = month.metered_usd + month.reserved_usd
    assert taken <= 1
    assert 1 - taken < PRICE, "a request was refused that would have fitted"
    granted = [line for line in ledger.lines() if line.kind == "reserved"]
    assert len(granted) == len({line.reservation_id for line in granted}) == 11
    assert sum(line.kind == "subscription" for line in ledger.lines()) == 1


def hold(settings: Settings, to_parent: Connection) -> None:
    reservation = open_ledger(settings).reserve(charge("3.50", run_id="killed-run"))
    to_parent.send(reservation.id)
    signal.pause()


def test_kill_9_before_commit_leaves_the_reservation_open(
    fresh: FreshLedger, caplog: pytest.LogCaptureFixture
) -> None:
    settings = fresh()
    mine, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold, args=(settings, theirs))
    process.start()
    assert mine.poll(60)
    reservation_id = mine.recv()
    process.kill()
    process.join()

    with caplog.at_level(logging.WARNING):
        ledger = open_ledger(settings)
    assert "$3.50 held" in caplog.text
    assert "nq budget" in caplog.text
    (left,) = ledger.open_reservations()
    assert (left.id, left.charge.run_id) == (reservation_id, "killed-run")
    assert ledger.month().remaining_today_usd == Decimal("6.50")
    with pytest.raises(OverBudget, match=r"\$3\.50 reserved"):
        ledger.reserve(charge("7"))

    ledger.reconcile(reservation_id, Decimal("1.25"), "the vendor's usage page")
    assert ledger.open_reservations() == []
    ledger.reserve(charge("7"))
