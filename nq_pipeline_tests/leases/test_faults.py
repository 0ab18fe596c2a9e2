"""Leases while their PostgreSQL is restarted, frozen or out of reach."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import sqlalchemy as sa

from nq_pipeline.errors import LeaseHeld, LeaseLost, LedgerError
from nq_pipeline.leases.tables import LEASES
from nq_pipeline.spend.database import row_transaction
from nq_pipeline_tests.testing.lease_hosts import Hosts
from nq_pipeline_tests.testing.ledgers import PASSWORD
from nq_pipeline_tests.testing.network import Link, link_to
from nq_pipeline_tests.testing.postgres import PostgresServer, run_postgres

TTL_S = 4.0


@pytest.fixture
def link(postgres: PostgresServer) -> Iterator[Link]:
    """The way from host `a` to the database."""
    with link_to(postgres.port) as link:
        yield link


def over(link: Link, hosts: Hosts) -> str:
    """The address of the database over a link."""
    server, _, database = hosts.url.rpartition("/")
    return f"{server.rpartition(':')[0]}:{link.port}/{database}"


def test_at_most_one_holder_during_a_network_split(distant: Hosts, link: Link) -> None:
    b, lost = distant.leases("b"), threading.Event()
    with distant.leases("a", over(link, distant)).acquire("capture", ttl_s=TTL_S, on_lost=lost.set) as lease:
        link.cut()
        cut = time.monotonic()
        with pytest.raises(LeaseHeld):
            b.acquire("capture")
        lease.check()  # a short split ends nothing
        assert lost.wait(3 * TTL_S)
        stopped = time.monotonic() - cut
        taken = b.acquire("capture", wait_s=3 * TTL_S, ttl_s=60)
        assert 0.4 * TTL_S < stopped <= TTL_S + 0.2  # before b could have it
        assert taken.token == lease.token + 1
        with pytest.raises(LeaseLost, match="could not be renewed"):
            lease.check()
        link.mend()
        with pytest.raises(LeaseLost):  # also once the database can be reached again
            lease.renew()
    held = distant.leases("a", over(link, distant)).holder("capture")
    assert held and held.token == taken.token
    taken.release()


def test_a_short_split_is_survived(distant: Hosts, link: Link) -> None:
    with distant.leases("a", over(link, distant)).acquire("capture", ttl_s=2 * TTL_S) as lease:
        link.cut()
        time.sleep(TTL_S)  # a renewal is due
        link.mend()
        mended, until = lease.left_s, time.monotonic() + 60
        while lease.left_s <= mended and time.monotonic() < until:
            time.sleep(0.1)
        lease.check()
    assert distant.leases("b").acquire("capture").token == 2


@pytest.mark.parametrize("taken", [False, True])
def test_a_lease_that_resumes_is_only_lost_to_another(distant: Hosts, link: Link, taken: bool) -> None:
    lost = threading.Event()
    leases = distant.leases("a", over(link, distant))
    with leases.acquire("worker/one", ttl_s=1, resumes=True, on_lost=lost.set) as lease:
        link.cut()
        time.sleep(1.5)
        lease.check()
        assert distant.leases("b").holders() == {}  # lapsed
        if taken:
            distant.leases("b").acquire("worker/one").release()
        link.mend()
        assert lost.wait(30 if taken else 3) is taken
        assert ("worker/one" in distant.leases("b").holders()) is not taken


@pytest.mark.parametrize("resumes", [False, True])
def test_a_lease_that_resumes_survives_an_older_backup(hosts: Hosts, resumes: bool) -> None:
    leases = hosts.leases("a")
    lease = leases.acquire("worker/one", run_id="one", resumes=resumes)
    with row_transaction(leases._engine) as connection:
        connection.execute(sa.delete(LEASES))
    with nullcontext() if resumes else pytest.raises(LeaseLost):
        lease.renew()
    held = hosts.leases("b").holder("worker/one")
    assert (held and (held.token, held.run_id)) == ((1, "one") if resumes else None)
    lease.release()
    assert hosts.leases("b").acquire("worker/one").token == 1


def test_a_holder_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    with run_postgres() as server:
        hosts = Hosts(tmp_path, server.new_database())
        with hosts.leases("a").acquire("capture", ttl_s=9) as lease:
            server.stop()
            with pytest.raises(LedgerError, match="also holds the leases") as failed:
                lease.renew()
            assert PASSWORD not in str(failed.value)
            server.start()
            time.sleep(4)
            lease.check()
            assert lease.left_s > 4  # renewed since
            with pytest.raises(LeaseHeld):
                hosts.leases("b").acquire("capture")


def test_an_attempt_that_succeeded_unheard_is_repeated(
    distant: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = distant.leases("a")
    take = leases._take

    def unheard(*given: object) -> None:
        take(*given)  # type: ignore[arg-type]
        raise LedgerError("the connection broke after the commit")

    monkeypatch.setattr(leases, "_take", unheard)
    with pytest.raises(LedgerError):
        leases.acquire("capture")
    monkeypatch.setattr(leases, "_take", take)
    assert leases.acquire("capture").token == 2  # its own attempt is known by the name it left


def test_a_release_that_fails_is_only_logged(
    distant: Hosts, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    lease = distant.leases("a", over(link, distant)).acquire("alerts", ttl_s=1)
    link.close()
    lease.release()
    assert "lapses by itself" in caplog.text
    assert distant.leases("b").acquire("alerts", wait_s=10).token == 2
