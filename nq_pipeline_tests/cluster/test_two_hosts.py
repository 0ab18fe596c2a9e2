"""Two hosts without a common path fill one lake, buy nothing twice and survive faults of what they share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import psycopg
import pytest

from nq_pipeline.cli import exit_codes
from nq_pipeline.ui.cluster import Shared
from nq_pipeline_tests.testing.cluster_hosts import (
    NOW,
    ClusterHost,
    HostFactory,
    succeed,
    through_store,
)
from nq_pipeline_tests.testing.s3 import Fault, serve_faults

Hosts = Callable[..., HostFactory]
pytestmark = pytest.mark.timeout(600)
PINNED = {
    "NQ_NOW": NOW,
    "NQ_HORIZON_DAYS": "0",
    "NQ_FAR_EXPIRATIONS": "0",
    "NQ_SOURCE_DEADLINE_S": "100",
    "NQ_HTTP_TIMEOUT_S": "60",
    "NQ_BUDGET_DAILY_USD": "100",
    "NQ_BUDGET_MONTHLY_USD": "300",
}
DAYS = ("2025-06-05", "2025-06-06")
ONE = ("--source", "barchart")
CHAINS = ("source_chain", "option_chain", "option_pricing")
BOUGHT = ("statistics", "definition")


def buying(schema: str, first: str, last: str | None = None) -> list[str]:
    """The words of a backfill that costs at most ten dollars."""
    span = ("--from", first, "--to", last or first)
    return ["backfill", "--schema", schema, *span, "--max-usd", "10", "--yes", "--json"]


def commits(hosts: HostFactory) -> list[tuple[str, str]]:
    """What the ledger of the cluster has booked, by schema and description."""
    with psycopg.connect(hosts.ledger) as ledger:
        return ledger.execute(
            "SELECT schema, description FROM nq_spend_lines "
            "WHERE kind = 'committed' AND purpose = 'backfill' ORDER BY 1, 2"
        ).fetchall()


# ── one lake ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_two_hosts_fill_the_lake_of_one_machine(hosts: Hosts) -> None:
    """Chains, and the settlements of two trade dates, each bought by another host at the same time."""
    made = hosts(**PINNED)
    alone, a, b = made.alone(), made.host("a"), made.host("b")
    chains = [alone.start("run"), a.start("run")]
    for process in chains:
        succeed(process)
    alone.nq(*buying("statistics", *DAYS))
    bought = [a.start(*buying("statistics", DAYS[0])), b.start(*buying("statistics", DAYS[1]))]
    for process in bought:
        succeed(process)
    tables = (*CHAINS, "statistics")
    expected = alone.digests(tables)
    assert all(rows for rows, _ in expected.values())
    assert a.digests(tables) == expected
    assert b.digests(tables) == expected
    assert not list((b.folder / "data").rglob("*.parquet")), "rows that only one host sees"


def test_a_day_asked_for_twice_at_once_is_bought_once(hosts: Hosts) -> None:
    made = hosts(**PINNED)
    a, b = made.host("a"), made.host("b")
    both = [host.start(*buying("statistics", DAYS[0])) for host in (a, b)]
    days = [json.loads(succeed(process))["days"][0] for process in both]
    assert {day["state"] for day in days} == {"complete"}
    assert sorted(float(day["cost_usd"]) > 0 for day in days) == [False, True], (
        "one reads what the other bought"
    )
    assert len(commits(made)) == 1
    assert a.digests(["statistics"]) == b.digests(["statistics"])


# ── faults ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_store_with_passing_faults_changes_no_row(hosts: Hosts, shared: Shared) -> None:
    """It answers 503, is slow, and dies in the middle of uploads."""
    made = hosts(**PINNED)
    alone, a, b = made.alone(), made.host("a"), made.host("b")
    alone.nq("run", *ONE)
    with serve_faults(a.variables["AWS_ENDPOINT_URL"]) as proxy:
        proxy.show(
            Fault(status=503, times=4),
            Fault(delay_s=1.0, times=4),
            Fault(dies_mid_upload=True, method="PUT", times=4),
            Fault(loses_answer=True, method="GET", times=2),
        )
        through_store(a, proxy.endpoint).nq("run", *ONE)
        assert proxy.left == 0
    assert b.digests(CHAINS) == alone.digests(CHAINS)


@pytest.mark.slow
def test_a_store_that_stays_broken_is_one_sentence(hosts: Hosts, shared: Shared) -> None:
    made = hosts(**PINNED, NQ_STORE_TIMEOUT_S="2")
    a, b = made.host("a"), made.host("b")
    a.nq("run", *ONE)
    before = b.digests(CHAINS)
    with serve_faults(a.variables["AWS_ENDPOINT_URL"]) as proxy:
        proxy.show(Fault(status=503, method="PUT", times=10_000))
        process = through_store(a, proxy.endpoint).start("run", *ONE, "--refresh")
        output, errors = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "Traceback" not in errors and shared.password not in output + errors
    assert errors.strip().splitlines()[-1].startswith("nq: ")
    assert b.digests(CHAINS) == before


@pytest.mark.slow
def test_postgres_restarts_in_the_middle_of_a_purchase(hosts: Hosts, shared: Shared) -> None:
    made = hosts(**PINNED)
    a, b = made.host("a"), made.host("b")
    a.nq("run", *ONE)  # the tables of the ledger exist
    process = a.start(*buying("statistics", *DAYS))
    begin = time.monotonic()
    while process.poll() is None and not _has_begun(made) and time.monotonic() < begin + 60:
        time.sleep(0.02)
    shared.postgres.kill()
    time.sleep(1)
    shared.start_postgres()
    _, errors = process.communicate(timeout=200)
    assert "Traceback" not in errors
    assert process.returncode in (exit_codes.OK, exit_codes.FAULT, exit_codes.UNHEALTHY), errors
    days = json.loads(b.nq(*buying("statistics", *DAYS)))["days"]
    assert [day["state"] for day in days] == ["complete", "complete"]
    assert len(commits(made)) == len(set(commits(made))), "something was bought twice"
    assert a.digests(["statistics"]) == b.digests(["statistics"])


def _has_begun(hosts: HostFactory) -> bool:
    with psycopg.connect(hosts.ledger) as ledger:
        found = ledger.execute("SELECT count(*) FROM nq_spend_lines WHERE purpose = 'backfill'").fetchone()
    return bool(found and found[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_purchases_of_many_hosts_are_each_made_once(hosts: Hosts) -> None:
    made = hosts(**PINNED)
    some: list[ClusterHost] = [made.host(str(number)) for number in range(4)]
    for schema in ("statistics", "definition"):
        running = [host.start(*buying(schema, "2025-06-02", "2025-06-06")) for host in some]
        for process in running:
            succeed(process)
    found = commits(made)
    assert len(found) == len(set(found)) == 10
    assert len({str(host.digests(BOUGHT)) for host in some}) == 1
