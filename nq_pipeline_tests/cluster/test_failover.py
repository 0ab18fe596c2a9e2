"""One capture over all hosts: a dead one has one successor, and a host that is cut off counts for nothing."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from nq_pipeline.lake.tables import GAPS, TRADES
from nq_pipeline.leases.leases import Leases
from nq_pipeline.ui.cluster import Shared
from nq_pipeline_tests.testing.capture_market import CaptureMarket, capture_market
from nq_pipeline_tests.testing.capture_runs import rows_and_tape
from nq_pipeline_tests.testing.cluster_hosts import ClusterHost, HostFactory, through_link, wait_until
from nq_pipeline_tests.testing.network import link_to

Hosts = Callable[..., HostFactory]
pytestmark = pytest.mark.timeout(600)
LEASE_S = 6
LOAD = 200
"""Records a second."""


@pytest.fixture
def market(tmp_path: Path) -> Iterator[CaptureMarket]:
    with capture_market(tmp_path / "none", load=LOAD, waits=False) as it:
        yield it


@pytest.fixture
def made(hosts: Hosts, market: CaptureMarket) -> HostFactory:
    """Hosts that capture from the market."""
    variables = {name: value for name, value in market.settings.items() if name != "NQ_DATA_DIR"}
    return hosts(**variables, NQ_CAPTURE_LEASE_S=str(LEASE_S), NQ_LEDGER_TIMEOUT_S="2")


def newest(host: ClusterHost) -> int:
    """The newest published trade as this host sees it, nanoseconds UTC; 0 without any."""
    found = host.rows(TRADES).select(pl.col("ts_event").dt.epoch("ns").max()).item()
    return int(found or 0)


def is_captured_since(host: ClusterHost, after_ns: int) -> bool:
    """Whether trades from after an instant are published, and every gap is verified."""
    gaps = host.rows(GAPS).sort("revision").group_by("gap_id").last()
    return newest(host) > after_ns and set(gaps["state"]) <= {"verified"}


def holder(host: ClusterHost) -> str:
    """The host's name and process that hold the lease of the capture; empty if nobody does."""
    with host.settings() as settings:
        found = Leases.of(settings).holder("capture")
    return str(found.process) if found else ""


def check_whole(market: CaptureMarket, host: ClusterHost) -> None:
    """Every trade of the tape up to the newest published one is there once."""
    have, sent = rows_and_tape(market.gateway, host.rows(TRADES).lazy(), newest(host))
    assert have.height > 0
    assert have.equals(sent)


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_killed_capture_has_one_successor(made: HostFactory, market: CaptureMarket) -> None:
    a, b, c = (made.host(name) for name in "abc")
    first = b.start("capture", "--json")
    wait_until(lambda: is_captured_since(a, 0))
    refused = a.start("capture", "--json")
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode != 0 and str(first.pid) in errors
    assert first.poll() is None, "the refused one must not disturb it"

    first.kill()
    first.communicate()
    killed_ns = market.now_ns
    wait_until(lambda: not holder(a))
    both = [host.start("capture", "--json") for host in (a, c)]
    wait_until(lambda: any(process.poll() is not None for process in both))
    [successor] = [process for process in both if process.poll() is None]
    wait_until(lambda: is_captured_since(b, killed_ns))
    assert holder(b) == str(successor.pid)
    stop(successor)
    check_whole(market, b)


@pytest.mark.slow
def test_a_host_that_is_cut_off_ends_and_publishes_nothing_more(
    made: HostFactory, market: CaptureMarket, shared: Shared
) -> None:
    a, b = made.host("a"), made.host("b")
    with link_to(shared.postgres_port) as link:
        lonely = through_link(b, shared, link.port).start("capture", "--json")
        wait_until(lambda: is_captured_since(a, 0))
        link.cut()
        began = time.monotonic()
        wait_until(lambda: lonely.poll() is not None)
        assert time.monotonic() - began < 3 * LEASE_S
        _, errors = lonely.communicate()
        assert lonely.returncode != 0 and "lease" in errors and "Traceback" not in errors

        cut_ns = market.now_ns
        wait_until(lambda: not holder(a))
        successor = a.start("capture", "--json")
        wait_until(lambda: is_captured_since(a, cut_ns))
        link.mend()
        again = through_link(b, shared, link.port).start("capture", "--json")
        _, errors = again.communicate(timeout=60)
        assert again.returncode != 0 and str(successor.pid) in errors
        stop(successor)
    check_whole(market, a)
