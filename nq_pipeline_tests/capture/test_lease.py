"""One capture of an environment on all machines: the lease, its loss, and what a sensor elsewhere sees."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nq_pipeline.capture.capture import Capture
from nq_pipeline.capture.capture_policy import Attempt, Situation, decide_capture
from nq_pipeline.capture.log.locks import (
    hold_capture_lease,
    hold_capture_lock,
    hold_run_lease,
    read_capture_holder,
    runs_alive,
)
from nq_pipeline.capture.publisher import Publisher
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import CaptureBusy, LeaseLost, LedgerError
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.sandbox.gateway.feed import DATASET
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.capture_runs import (
    NOW,
    QUICK,
    capture_settings,
    serve_gateway,
)
from nq_pipeline_tests.testing.lease_hosts import Hosts
from nq_pipeline_tests.testing.network import link_to
from nq_pipeline_tests.testing.postgres import PostgresServer

TTL_S = 6.0


@pytest.fixture
def hosts(postgres: PostgresServer, tmp_path: Path) -> Hosts:
    """Hosts with a PostgreSQL between them."""
    return Hosts(tmp_path, postgres.new_database())


def test_another_machine_may_not_capture_meanwhile(hosts: Hosts) -> None:
    a, b = hosts.settings("a"), hosts.settings("b")
    with hold_capture_lease(a, run_id="first", on_lost=lambda: None) as first:
        with (
            pytest.raises(CaptureBusy, match="run first"),
            hold_capture_lease(b, run_id="second", on_lost=int),
        ):
            pass
        holder = read_capture_holder(b, "GLBX.MDP3")
        assert holder and holder.host and holder.process
    assert read_capture_holder(b, "GLBX.MDP3") is None
    with hold_capture_lease(b, run_id="second", on_lost=int, above=first.token + 5) as next_one:
        assert next_one.token == first.token + 6


def test_a_run_elsewhere_is_alive(hosts: Hosts) -> None:
    started = datetime(2025, 6, 10, 14, 0, tzinfo=UTC)
    with hold_run_lease(hosts.settings("b"), "on-b"):
        alive = runs_alive(hosts.settings("a"))
        assert alive == {"on-b"}
        attempt = Attempt("on-b", "STARTED", "2025-06-10", alive="on-b" in alive, started=started)
        assert decide_capture(Situation(NOW, NOW, "rth", attempts=[attempt])).dead == ()
    assert runs_alive(hosts.settings("a")) == frozenset()


@pytest.mark.timeout(300)
def test_a_capture_without_its_database_stops_before_another_begins(
    hosts: Hosts, postgres: PostgresServer, tmp_path: Path
) -> None:
    with serve_gateway() as served, link_to(postgres.port) as link:
        url = hosts.url.replace(f":{postgres.port}/", f":{link.port}/")
        hosts.settings("a")  # makes its lake that of all
        settings = capture_settings(
            served, tmp_path / "a", ledger_url=url, capture_lease_s=TTL_S, ledger_timeout_s=5
        )
        stop, ended, failures = threading.Event(), threading.Event(), list[BaseException]()
        lake, began = Workspace.of(settings).lake, threading.Event()

        def capture() -> None:
            try:
                with hold_capture_lease(settings, run_id="a", on_lost=stop.set) as lease:
                    log = Workspace.of(settings).capture / DATASET
                    publisher = Publisher(log, lake, clock=served.clock, run_id="a", token=lease.token)
                    engine = Capture(settings, clock=served.clock, timing=QUICK, run_id="a")
                    began.set()
                    engine.run(stop, publish=publisher.publish, lease=lease)
            except BaseException as error:
                failures.append(error)
            ended.set()

        threading.Thread(target=capture, daemon=True).start()
        assert began.wait(100), failures
        until = time.monotonic() + 60
        while not lake.manifest(TRADES).rows and time.monotonic() < until:
            time.sleep(0.05)
        link.cut()
        assert stop.wait(2 * TTL_S)
        rows = lake.manifest(TRADES).rows
        with hosts.leases("b").acquire("capture", wait_s=3 * TTL_S, ttl_s=60):
            assert ended.wait(100)
        link.mend()
        assert [type(failure) for failure in failures] == [LeaseLost]
        assert rows and lake.manifest(TRADES).rows - rows < 20_000  # at most what was being written


def test_one_machine_captures_without_its_ledger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = build_settings(data_dir=tmp_path)
    path = Workspace.of(settings).ledger
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    with hold_capture_lease(settings, run_id="r", on_lost=int, above=3) as lease:
        lease.check()
        assert lease.token == 3
        with hold_run_lease(settings, "r"):
            assert runs_alive(settings) == frozenset()
    assert "without a lease" in caplog.text


def test_several_machines_capture_nothing_without_it(tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path, ledger_url="postgresql://nq:word@127.0.0.1:1/ledger")
    with pytest.raises(LedgerError), hold_capture_lease(settings, run_id="r", on_lost=int):
        pass
    with pytest.raises(LedgerError), hold_run_lease(settings, "r"):
        pass
    with pytest.raises(LedgerError):
        runs_alive(settings)


def test_an_earlier_version_that_captures_here_is_seen(tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path)
    with hold_capture_lock(Workspace.of(settings).capture):
        assert read_capture_holder(settings, "GLBX.MDP3")
