"""kill -9 in the middle of a purchase, and what no failure may leave behind: the key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline.backfill.day import backfill_day
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import ZERO
from nq_pipeline_tests.testing.backfill_vendor import (
    NOW,
    STREAM,
    SUBMIT,
    Change,
    Vendor,
    only,
    refused,
    vendor,
)
from nq_pipeline_tests.testing.http_server import Answer, Asked

MONDAY = date(2025, 6, 9)
MARK = "db-SECRETMARK0123456789"
BACKFILL = (
    "backfill", "--schema", "trades", "--from", str(MONDAY), "--to", str(MONDAY), "--max-usd", "1", "--yes",
)  # fmt: skip
KILLED_AT_A_RENAME = """
import os, sys
def hook(event, about):
    if event == "os.rename" and "/history/" in str(about[1]) and str(about[1]).endswith(sys.argv[1]):
        os.kill(os.getpid(), 9)
sys.addaudithook(hook)
from nq_pipeline.cli import main
main(sys.argv[2:])
"""


def environment_of(databento: Vendor) -> dict[str, str]:
    return {
        **os.environ, "NQ_ENVIRONMENT": "live", "NQ_DATA_DIR": str(databento.data_dir), "NQ_NOW": NOW,
        "NQ_DATABENTO_URL": databento.server.url, "DATABENTO_API_KEY": "db-killed",
        "NQ_BACKFILL_SYMBOLS": "Q2B.OPT",
    }  # fmt: skip


def test_a_killed_purchase_stays_reserved_and_is_completed(data: Path) -> None:
    arrived = threading.Event()

    def slow(asked: Asked, good: Answer) -> Answer:
        arrived.set()
        return replace(good, drip_s=1.0)

    with vendor(data, only(STREAM, slow)) as databento:
        environment = environment_of(databento)
        program = [sys.executable, "-m", "nq_pipeline", *BACKFILL]
        process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
        assert arrived.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with vendor(data) as databento:
        settings = databento.settings()
        (held,) = open_ledger(settings).open_reservations()
        assert held.charge.purpose == "backfill" and held.reserved_usd > 0
        done = backfill_day(settings, "trades", MONDAY)
        assert done.state == "complete" and len(databento.metered) == 1
        month = open_ledger(settings).month()
        assert (month.reserved_usd, month.metered_usd) == (held.reserved_usd, done.cost_usd)


@pytest.mark.parametrize("about_to_be_named", [".json", ".dbn.zst"])
def test_a_paid_download_survives_a_kill(about_to_be_named: str, data: Path) -> None:
    with vendor(data) as databento:
        program = [sys.executable, "-c", KILLED_AT_A_RENAME, about_to_be_named, *BACKFILL]
        killed = subprocess.run(program, env=environment_of(databento), capture_output=True)
        assert killed.returncode == -signal.SIGKILL and len(databento.metered) == 1
        day = backfill_day(databento.settings(), "trades", MONDAY)
        assert (day.state, day.cost_usd, len(databento.metered)) == ("complete", ZERO, 1)


@pytest.mark.parametrize(
    "broken",
    [
        lambda asked, good: replace(good, cut=True),
        lambda asked, good: Answer(hang_up=True),
        lambda asked, good: Answer(b"oops " + MARK.encode(), 500),
        lambda asked, good: refused(f"license_{MARK}", 403),
        lambda asked, good: Answer(f'{{"detail": "no such key {MARK}"}}'.encode(), 401),
    ],
)
def test_the_key_is_nowhere_whatever_fails(
    broken: Change, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with vendor(
        data, lambda asked, good: broken(asked, good) if asked.path in (STREAM, SUBMIT) else good
    ) as databento:
        changes: tuple[dict[str, Any], ...] = (
            {},
            {"backfill_batch_mb": 1, "backfill_symbols": "Q2B.OPT,NQ.FUT"},
        )
        for more in changes:
            settings = databento.settings(databento_api_key=MARK, **more)
            day = backfill_day(settings, "trades", MONDAY)
            assert MARK not in str(day)
    files = [file for file in data.rglob("*") if file.is_file()]
    assert files and not [file for file in files if MARK.encode() in file.read_bytes()]
    assert MARK not in caplog.text
