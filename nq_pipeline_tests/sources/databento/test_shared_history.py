"""History is bought once by several machines, whichever of them requests it, even if the buyer dies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import load
from nq_pipeline.errors import LedgerError, Unavailable
from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.leases.purchase_records import PurchaseRecords
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.gap_history import DatabentoHistory
from nq_pipeline.sources.databento.history_store import HistoryStore, span_digest
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.spend.ledger import Ledger, open_ledger
from nq_pipeline.workspace import LAKE_ID, Workspace
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.http_server import Server, serve
from nq_pipeline_tests.testing.postgres import PostgresServer

OPTIONS = ("Q2C.OPT", "Q2D.OPT")
FROM, TO = (to_ns(datetime(2025, 6, 10, hour, tzinfo=UTC)) for hour in (13, 14))
SPAN = ("trades", OPTIONS, FROM, TO)
DIGEST = span_digest(Query("GLBX.MDP3", *SPAN))


class Company:
    """Two machines with one ledger and one store of purchases, whose vendor is a stand-in."""

    def __init__(self, server: Server, folder: Path, ledger_url: str) -> None:
        self.server, self.folder, self._ledger_url = server, folder, ledger_url
        self.store = LocalObjects(folder / "store")

    def settings(self, host: str) -> Settings:
        own = load(
            environment="live",
            data_dir=self.folder / host,
            databento_url=self.server.url,
            databento_api_key="db-gaps",
            http_timeout_s=120,  # a busy machine is no fault of the vendor
            now=standin.NOW,
            ledger_url=self._ledger_url,
        )
        LocalObjects(Workspace.of(own).root).put(LAKE_ID, b"one lake")
        return own

    def fetch(self, host: str) -> tuple[Path, Decimal]:
        return DatabentoHistory(self.settings(host)).fetch(*SPAN, run_id=f"run-{host}")

    def records(self) -> PurchaseRecords:
        return PurchaseRecords.of(self.settings("a"))

    @property
    def bought(self) -> int:
        return sum(asked.path == "/v0/timeseries.get_range" for asked in self.server.asked)

    @property
    def committed(self) -> int:
        return sum(line.kind == "committed" for line in open_ledger(self.settings("a")).lines())


@pytest.fixture
def company(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    with serve(standin.relay) as server:
        made = Company(server, tmp_path, postgres.new_database())
        monkeypatch.setattr(
            HistoryStore,
            "of",
            lambda settings: HistoryStore(Workspace.of(settings).history, made.store),
        )
        yield made


def test_a_second_machine_reads_what_the_first_has_bought(company: Company) -> None:
    first, cost = company.fetch("a")
    second, nothing = company.fetch("b")
    assert first != second and first.read_bytes() == second.read_bytes()
    assert cost > 0 and nothing == 0 and company.bought == company.committed == 1
    record = company.records().find(DIGEST)
    assert record and (record.state, record.run_id, record.schema) == ("stored", "run-a", "trades")


def test_two_machines_that_ask_at_once_pay_once(company: Company) -> None:
    got: list[tuple[Path, Decimal]] = []
    threads = [threading.Thread(target=lambda host=host: got.append(company.fetch(host))) for host in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and company.bought == company.committed == 1
    assert sum(cost > 0 for _, cost in got) == 1


def test_what_a_dead_machine_bought_is_not_bought_again(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:

        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        dying.setattr(HistoryStore, "write_proof", die)
        with pytest.raises(KeyboardInterrupt):
            company.fetch("a")
    assert company.committed == 1
    with pytest.raises(Unavailable, match="has paid for these records"):
        company.fetch("b")
    _, cost = company.fetch("a")
    assert cost == 0 and company.bought == company.committed == 1
    assert company.fetch("b")[1] == 0


def test_a_purchase_is_shared_although_the_ledger_fails_at_its_end(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LedgerError("the database went away")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", fail)
        _, cost = company.fetch("a")
    (held,) = open_ledger(company.settings("a")).open_reservations()
    assert cost == held.reserved_usd
    assert company.fetch("b")[1] == 0 and company.bought == 1


def test_a_lost_proof_is_restored_from_the_ledger(company: Company) -> None:
    company.fetch("a")
    name = f"trades/{DIGEST}.json"
    before = company.store.get(name)
    company.store.delete([name])
    _, cost = company.fetch("b")
    assert cost == 0 and company.bought == 1 and company.store.get(name) == before


def test_purchases_from_before_are_taken_over(company: Company) -> None:
    company.fetch("a")
    company.records().forget(DIGEST)
    company.fetch("b")
    record = company.records().find(DIGEST)
    assert record and record.state == "stored" and record.proof and company.bought == 1


def test_a_machine_alone_records_its_purchases(tmp_path: Path) -> None:
    with serve(standin.relay) as server:
        settings = load(
            environment="live",
            data_dir=tmp_path,
            databento_url=server.url,
            databento_api_key="db-gaps",
            http_timeout_s=120,  # a busy machine is no fault of the vendor
            now=standin.NOW,
        )
        DatabentoHistory(settings).fetch(*SPAN, run_id="run")
    record = PurchaseRecords.of(settings).find(DIGEST)
    assert record and record.state == "stored"


def test_a_record_is_written_found_and_forgotten(company: Company) -> None:
    company.fetch("a")
    records = company.records()
    record = records.find(DIGEST)
    assert record and record.host and record.request_id
    assert records.is_paid(record.request_id) and not records.is_paid("another")
    records.write(replace(record, state="ordered"))
    assert (again := records.find(DIGEST)) and again.state == "ordered"
    records.forget(DIGEST)
    assert records.find(DIGEST) is None
