"""What every database of leases does: one holder at a time, growing tokens, expiry by its own clock."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nq_pipeline.errors import LeaseHeld, LeaseLost
from nq_pipeline.leases import leases as module
from nq_pipeline.leases.leases import Lease, Leases
from nq_pipeline.spend.database import exclusive_transaction, open_engine
from nq_pipeline_tests.testing.lease_hosts import PROCESSES, Hosts, holding, take_turns

SHORT_S = 1.0


def test_one_holder_at_a_time_and_each_has_a_higher_token(hosts: Hosts) -> None:
    a, b = hosts.leases("a"), hosts.leases("b")
    assert a.holder("capture") is None
    first = a.acquire("capture", run_id="ours")
    for leases in (a, b):
        with pytest.raises(LeaseHeld, match=rf"'capture' is held by process {os.getpid()} on .*run ours"):
            leases.acquire("capture")
    first.check()
    first.release()
    assert b.holder("capture") is None
    second = b.acquire("capture")
    assert (first.token, second.token) == (1, 2)


def test_the_holder_is_known_to_every_host(hosts: Hosts) -> None:
    lease = hosts.leases("a").acquire("capture", run_id="r1")
    theirs = hosts.leases("b").holder("capture")
    assert theirs and hosts.leases("a").holder("capture")
    assert (theirs.process, theirs.run_id, theirs.token) == (os.getpid(), "r1", lease.token)
    assert abs(datetime.now(UTC) - theirs.since) < timedelta(seconds=60) and 0 <= theirs.heartbeat_s < 30


def test_names_and_environments_are_separate(hosts: Hosts) -> None:
    leases = hosts.leases("a")
    live = Leases.of(hosts.settings("a").with_values(environment="live"))
    held = [leases.acquire("capture"), leases.acquire("run/one"), live.acquire("capture")]
    assert [lease.token for lease in held] == [1, 1, 1]
    assert set(leases.holders()) == {"capture", "run/one"} and set(leases.holders("run/")) == {"run/one"}
    with pytest.raises(ValueError, match="name of a lease"):
        leases.acquire("Run one")


def test_a_lease_that_is_not_renewed_lapses(hosts: Hosts) -> None:
    a, b = hosts.leases("a"), hosts.leases("b")
    lost = a.acquire("capture", ttl_s=0.3)
    with pytest.raises(LeaseHeld):
        b.acquire("capture")
    taken = b.acquire("capture", wait_s=10)
    assert taken.token == lost.token + 1
    with pytest.raises(LeaseLost, match="capture"):
        lost.renew()
    with pytest.raises(LeaseLost):
        lost.check()
    lost.release()  # takes nothing away from the successor
    assert b.holder("capture") is not None
    taken.renew()


def test_a_lapsed_lease_that_nobody_took_is_renewed(hosts: Hosts) -> None:
    a, b = hosts.leases("a"), hosts.leases("b")
    lease = a.acquire("alerts", ttl_s=0.3)
    time.sleep(0.4)
    assert b.holder("alerts") is None
    if a.shared:
        with pytest.raises(LeaseLost):  # it stops by its own clock, whatever the database would say
            lease.renew()
    else:
        lease.renew()
        assert b.holder("alerts")


def test_a_kept_lease_outlives_its_time(hosts: Hosts) -> None:
    a, b = hosts.leases("a"), hosts.leases("b")
    with a.acquire("retention", ttl_s=5) as lease:
        time.sleep(6)
        lease.check()
        with pytest.raises(LeaseHeld):
            b.acquire("retention")
    assert b.acquire("retention").token == 2


def test_acquire_waits_for_the_holder(hosts: Hosts) -> None:
    a, b = hosts.leases("a"), hosts.leases("b")
    held = a.acquire("purchase/trades")
    threading.Timer(0.3, held.release).start()
    b.acquire("purchase/trades", wait_s=20).check()


def test_a_token_exceeds_what_a_store_has_seen(hosts: Hosts) -> None:
    leases = hosts.leases("a")
    leases.acquire("capture", above=41).release()
    assert leases.acquire("capture", above=7).token == 43


def test_one_time_leases_leave_no_row(hosts: Hosts) -> None:
    leases = hosts.leases("a")
    for _ in range(2):
        with leases.acquire("run/one") as lease:
            assert lease.token == 1
    assert list((hosts.folder / "a" / "sandbox" / ".leases").iterdir()) == []
    leases.acquire("purchase/lapsed", ttl_s=0.05)
    time.sleep(0.1)
    assert leases.prune(3600) == 0 and leases.prune(0.05) == 1


def test_a_successor_here_follows_kill_9_at_once(hosts: Hosts) -> None:
    with holding(hosts.settings("a"), "capture", 300) as (process, _, token):
        leases = hosts.leases("a")
        assert leases.holder("capture")
        process.kill()
        process.join()
        assert leases.holder("capture") is None
        assert leases.acquire("capture").token == token + 1


def test_a_successor_elsewhere_waits_until_the_lease_lapses(hosts: Hosts) -> None:
    with holding(hosts.settings("a"), "run/one", 6) as (process, _, token):
        leases = hosts.leases("b")
        process.kill()
        process.join()
        killed = time.monotonic()
        assert leases.holder("run/one")
        lease = leases.acquire("run/one", wait_s=60)
        assert time.monotonic() - killed > 2
        assert lease.token == token + 1


def test_a_suspended_holder_finds_its_lease_lost(hosts: Hosts) -> None:
    with holding(hosts.settings("a"), "capture", SHORT_S) as (process, ask, token):
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        taken = hosts.leases("b").acquire("capture", wait_s=20, ttl_s=60)
        assert taken.token == token + 1
        os.kill(process.pid, signal.SIGCONT)
        until = time.monotonic() + 10
        ask.send("lost?")
        while not (answer := ask.recv()) and time.monotonic() < until:
            ask.send("lost?")
        assert "is lost" in answer
        taken.check()


def test_a_suspended_holder_keeps_others_of_its_machine_away(hosts: Hosts) -> None:
    with holding(hosts.settings("a"), "capture", 0.5) as (process, _, _token):
        assert process.pid
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1)
        with pytest.raises(LeaseHeld):
            hosts.leases("a").acquire("capture")
        os.kill(process.pid, signal.SIGCONT)


def test_racing_processes_hold_it_one_after_another(hosts: Hosts) -> None:
    inside, log = hosts.folder / "inside", hosts.folder / "tokens"
    racers = [
        PROCESSES.Process(target=take_turns, args=(hosts.settings(host), "capture", 4, inside, log))
        for host in ("a", "a", "b", "c")
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0, 0]
    tokens = [int(line) for line in log.read_text().split()]
    assert tokens == list(range(1, 17))


@pytest.mark.parametrize("jump", [timedelta(days=-1), timedelta(days=1)], ids=["back", "ahead"])
def test_a_jump_of_the_hosts_clock_moves_no_lease(
    hosts: Hosts, jump: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = hosts.leases("a").acquire("capture")
    monkeypatch.setattr(module, "real_now", lambda: datetime.now(UTC) + jump)
    b = hosts.leases("b")
    with pytest.raises(LeaseHeld):
        b.acquire("capture")
    lease.renew()
    lease.release()
    assert b.acquire("capture").token == 2


def test_leases_do_not_wait_for_the_ledger(hosts: Hosts) -> None:
    a, b = hosts.leases("a"), hosts.leases("b")
    if not a.shared:
        pytest.skip("SQLite has one writer at a time")
    with exclusive_transaction(open_engine(hosts.settings("a"))):
        lease = a.acquire("capture")
        lease.renew()
        assert b.holder("capture")
        lease.release()


def test_readers_do_not_wait_for_a_writer(hosts: Hosts) -> None:
    a = hosts.leases("a")
    held = a.acquire("capture")
    with exclusive_transaction(open_engine(hosts.settings("b"))):
        holder = a.holder("capture")
        assert holder and holder.token == held.token


def test_looking_at_a_lease_never_keeps_it_from_its_holder(hosts: Hosts) -> None:
    leases, stop = hosts.leases("a"), threading.Event()

    def look() -> None:
        while not stop.is_set():
            leases.holder("capture")

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(20):
            leases.acquire("capture").release()
    finally:
        stop.set()
        looking.join()


def test_a_machine_that_was_restarted_has_no_holders(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, f"sqlite:///{tmp_path}/shared.sqlite")
    Leases.of(hosts.settings("a"), monotonic=lambda: 90_000.0).acquire("capture", ttl_s=300)
    up = Leases.of(hosts.settings("b"), monotonic=lambda: 12.5)
    assert up.holder("capture") is None
    assert up.acquire("capture").token == 2


def test_a_lease_without_a_database_is_never_lost() -> None:
    lease = Lease.without_database("capture", token=3)
    lease.keep()
    lease.check()
    lease.renew()
    lease.release()
    assert lease.token == 3
