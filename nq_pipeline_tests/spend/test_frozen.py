"""A PostgreSQL that accepts and never answers: everything ends in time, and in the usual sentence."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from nq_pipeline.cli import main
from nq_pipeline.configuration import build_settings
from nq_pipeline.spend.export import export_spend
from nq_pipeline.spend.ledger import Ledger
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing.ledgers import FreshLedger

REFUSALS = (80877103, 80877104)
"""Requests for encryption, by TLS and by GSSAPI."""
READY = b"R" + struct.pack("!ii", 8, 0) + b"Z" + struct.pack("!i", 5) + b"I"


@contextmanager
def frozen(*, greets: bool) -> Iterator[str]:
    """The address of a server that takes connections, and with `greets` the login, and says no more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peers: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                peers.append(peer)
                if greets:
                    with suppress(OSError, struct.error):
                        while struct.unpack("!ii", peer.recv(65_536)[:8])[1] in REFUSALS:
                            peer.sendall(b"N")
                        peer.sendall(READY)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"postgresql://nq:secret-word@127.0.0.1:{listening.getsockname()[1]}/ledger"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for peer in peers:
                peer.close()


@pytest.mark.parametrize("greets", [False, True], ids=["at_the_login", "after_the_login"])
def test_a_frozen_database_ends_nq_budget_in_the_usual_sentence(
    greets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("NQ_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NQ_LEDGER_TIMEOUT_S", "0.2")
    with frozen(greets=greets) as url:
        monkeypatch.setenv("NQ_LEDGER_URL", url if greets else f"{url}?connect_timeout=1")
        began = time.monotonic()
        done = CliRunner().invoke(main, ["budget"])
    assert time.monotonic() - began < 30
    assert done.exit_code == 1 and done.output.count("\n") == 1, done.output
    assert done.output.startswith("nq: the spend ledger in 127.0.0.1/ledger cannot be used: ")
    assert "no metered request" in done.output and "secret-word" not in done.output


def test_a_frozen_database_costs_a_free_run_only_the_export(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("psycopg")
    with frozen(greets=True) as url:
        settings = build_settings(data_dir=tmp_path, ledger_url=url, ledger_timeout_s=0.2)
        assert export_spend(settings, Workspace(tmp_path / "sandbox").lake, run_id="r") == 0
    assert "was not updated" in caplog.text
    assert "it did not answer within 0.4 s" in caplog.text


def test_the_server_gets_time_limits(fresh: FreshLedger) -> None:
    settings = fresh(ledger_timeout_s=7.0)
    if settings.spend.ledger_url is None:
        pytest.skip("a file answers at once")
    ledger = Ledger(settings)
    with ledger._begin() as tx:
        shown = [
            tx._connection.exec_driver_sql(f"SHOW {name}_timeout").scalar()
            for name in ("lock", "statement", "idle_in_transaction_session")
        ]
    assert shown == ["7s", "7s", "14s"]
