"""Alerts of several machines: fired once, sent by one of them, and never lost with the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from nq_pipeline.alerts.message import Alert
from nq_pipeline.alerts.notifier import Notifier
from nq_pipeline.errors import AlertError
from nq_pipeline.leases.states import SharedStates
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.lease_hosts import Hosts
from nq_pipeline_tests.testing.postgres import PostgresServer
from nq_pipeline_tests.testing.webhook_receiver import Receiver, receiver

ALERT = Alert(key="run/failed", what="a run failed", so_what="Rows are missing.", what_to_do="See it.")


@pytest.fixture
def hosts(postgres: PostgresServer, tmp_path: Path) -> Hosts:
    return Hosts(tmp_path, postgres.new_database())


def told(settings: Settings, webhook: Receiver) -> Settings:
    return settings.with_values(alert_webhook=webhook.url)


def test_an_alert_of_one_machine_is_known_to_all(hosts: Hosts) -> None:
    with receiver() as webhook:
        a, b = (Notifier(told(hosts.settings(host), webhook)) for host in "ab")
        assert a.fire(ALERT) and not b.fire(ALERT)
        assert [message.alert.key for message in b.firing()] == ["run/failed"]
        assert b.deliver().delivered == 1 and a.deliver().delivered == 0
        assert b.resolve("run/failed", "it succeeded") and not a.resolve("run/failed", "it succeeded")
        assert a.deliver().delivered == 1
        assert len(webhook.texts) == 2


def test_one_machine_sends_at_a_time(hosts: Hosts) -> None:
    with receiver() as webhook:
        a = Notifier(told(hosts.settings("a"), webhook))
        a.fire(ALERT)
        with hosts.leases("b").acquire("alerts"):
            assert a.deliver().reason == "another process is sending"
        assert a.deliver().delivered == 1


def test_an_alert_survives_the_loss_of_the_database(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as webhook:
        away = told(hosts.settings("a", "postgresql://nq:word@127.0.0.1:1/ledger"), webhook)
        assert Notifier(away).fire(ALERT)
        assert Notifier(away).firing()
        monkeypatch.setattr(SharedStates, "_failed", {})
        back = Notifier(told(hosts.settings("a"), webhook))
        assert [message.alert.key for message in back.firing()] == ["run/failed"]
        assert back.deliver().delivered == 1
        assert [m.alert.key for m in Notifier(told(hosts.settings("b"), webhook)).firing()] == ["run/failed"]


def test_a_damaged_shared_state_says_what_to_remove(hosts: Hosts) -> None:
    settings = hosts.settings("a")
    with SharedStates.of(settings).changing("alerts") as state:  # type: ignore[union-attr]
        state.body = "{"
    with pytest.raises(AlertError, match="remove the row 'alerts'"):
        Notifier(settings).fire(ALERT)
