"""Spans of history are bought once, whoever requests them; the capture requests those of its gaps."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import databento
import pytest

from nq_pipeline.capture.gap_repair import HistoricalRecords
from nq_pipeline.clock import to_ns
from nq_pipeline.configuration import load
from nq_pipeline.errors import BadPayload, NotConfigured, OverBudget, Unavailable
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.gap_history import DatabentoHistory
from nq_pipeline.sources.databento.vendor_errors import NoRecords
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.http_server import Answer, Asked, Server, serve
from nq_pipeline_tests.testing.ledger_machine import catalog_has_the_ledger
from nq_pipeline_tests.testing.s3 import Bucket

OPTIONS = ("Q2C.OPT", "Q2D.OPT")
FROM, TO = (to_ns(datetime(2025, 6, 10, hour, tzinfo=UTC)) for hour in (13, 14))
SPAN = ("trades", OPTIONS, FROM, TO)


def settings_for(server: Server, data: Path, **more: Any) -> Settings:
    given: dict[str, Any] = {
        "environment": "live", "data_dir": data, "databento_url": server.url, "databento_api_key": "db-gaps",
        "now": standin.NOW, "http_timeout_s": 120,  # a busy machine is no fault of the vendor
    }  # fmt: skip
    return load(**{**given, **more})


def bought(server: Server) -> int:
    return sum(asked.path == "/v0/timeseries.get_range" for asked in server.asked)


def test_a_span_is_priced_counted_and_bought(tmp_path: Path) -> None:
    with serve(standin.relay) as server:
        history: HistoricalRecords = DatabentoHistory(settings_for(server, tmp_path))
        price, counted = history.price(*SPAN), history.count(*SPAN)
        assert price > 0 and counted > 0 and bought(server) == 0
        path, cost = history.fetch(*SPAN, run_id="run")
    assert len(databento.DBNStore.from_file(path).to_ndarray()) == counted
    assert abs(cost - price) < Decimal("1e-8")
    (line,) = (one for one in open_ledger(settings_for(server, tmp_path)).lines() if one.kind == "committed")
    assert (line.purpose, line.run_id, line.spent_usd) == ("gap_repair", "run", cost)
    assert catalog_has_the_ledger(settings_for(server, tmp_path))


def test_a_span_is_paid_once_whatever_the_order_of_its_symbols(tmp_path: Path) -> None:
    with serve(standin.relay) as server:
        history = DatabentoHistory(settings_for(server, tmp_path))
        first, cost = history.fetch(*SPAN, run_id="run")
        again, nothing = history.fetch("trades", OPTIONS[::-1], FROM, TO, run_id="another")
        assert (again, nothing, bought(server)) == (first, Decimal(0), 1)
        assert cost > 0


def test_concurrent_requests_for_a_span_pay_once(tmp_path: Path) -> None:
    with serve(standin.relay) as server:
        got: list[tuple[Path, Decimal]] = []

        def want() -> None:
            got.append(DatabentoHistory(settings_for(server, tmp_path)).fetch(*SPAN, run_id="run"))

        threads = [threading.Thread(target=want) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bought(server) == 1 and len({path for path, _ in got}) == 1
        assert sum(cost > 0 for _, cost in got) == 1


def test_a_refusal_of_the_ledger_buys_nothing(tmp_path: Path) -> None:
    with serve(standin.relay) as server:
        history = DatabentoHistory(settings_for(server, tmp_path, budget_by_purpose="gap_repair=0"))
        with pytest.raises(OverBudget, match="NQ_BUDGET_BY_PURPOSE"):
            history.fetch(*SPAN, run_id="run")
        assert bought(server) == 0
    assert catalog_has_the_ledger(settings_for(server, tmp_path, budget_by_purpose="gap_repair=0"))


def test_bytes_that_cannot_be_read_are_kept_although_they_are_bought_again(tmp_path: Path) -> None:
    good: list[Answer] = []

    def respond(asked: Asked) -> Answer:
        answer = standin.relay(asked)
        if asked.path != "/v0/timeseries.get_range" or good:
            return answer
        good.append(answer)
        return replace(answer, body=answer.body[: len(answer.body) // 2])

    with serve(respond) as server:
        history = DatabentoHistory(settings_for(server, tmp_path))
        with pytest.raises(BadPayload, match="cut off"):
            history.fetch(*SPAN, run_id="run")
        path, _ = history.fetch(*SPAN, run_id="run")
    (kept,) = path.parent.glob("*.unproven")
    assert kept.read_bytes() == good[0].body[: len(good[0].body) // 2]
    assert path.read_bytes() == good[0].body


def test_a_weekend_has_no_records_and_no_price(tmp_path: Path) -> None:
    one, two = (to_ns(datetime(2025, 6, 7, hour, tzinfo=UTC)) for hour in (1, 2))
    saturday = ("trades", OPTIONS, one, two)
    with serve(standin.relay) as server:
        history = DatabentoHistory(settings_for(server, tmp_path))
        assert (history.price(*saturday), history.count(*saturday)) == (Decimal(0), 0)
        with pytest.raises(NoRecords):
            history.fetch(*saturday, run_id="run")
        assert bought(server) == 0


def test_without_a_key_there_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(NotConfigured, match="DATABENTO_API_KEY"):
        DatabentoHistory(load(environment="live", data_dir=tmp_path))


# Several machines with one object store


def test_a_span_bought_on_one_machine_is_read_on_another(tmp_path: Path, bucket: Bucket) -> None:
    with serve(standin.relay) as server:
        shared = {"lake_url": bucket.url, "ledger_url": f"sqlite:///{tmp_path}/ledger.sqlite"}
        here, there = (settings_for(server, tmp_path / name, **shared) for name in "ab")
        path, cost = DatabentoHistory(here).fetch(*SPAN, run_id="run")
        copy, nothing = DatabentoHistory(there).fetch(*SPAN, run_id="another")
        assert (bought(server), nothing) == (1, Decimal(0)) and cost > 0
    assert copy != path and copy.read_bytes() == path.read_bytes()
    assert copy.is_relative_to(tmp_path / "b")


def test_a_purchased_object_that_changed_is_not_used(tmp_path: Path, bucket: Bucket) -> None:
    with serve(standin.relay) as server:
        shared = {"lake_url": bucket.url, "ledger_url": f"sqlite:///{tmp_path}/ledger.sqlite"}
        here, there = (settings_for(server, tmp_path / name, **shared) for name in "ab")
        DatabentoHistory(here).fetch(*SPAN, run_id="run")
        store = Workspace.of(here).shared_history
        assert store
        (name,) = (one.name for one in store.list() if one.name.endswith(".zst"))
        store.put(name, store.get(name)[:-1])
        with pytest.raises(Unavailable, match="is not what was bought"):
            DatabentoHistory(there).fetch(*SPAN, run_id="another")
        store.delete([name])
        with pytest.raises(Unavailable, match="is missing"):
            DatabentoHistory(there).fetch(*SPAN, run_id="another")
        assert bought(server) == 1
