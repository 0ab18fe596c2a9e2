"""A ledger that machines share belongs to one lake."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from nq_pipeline.cli import main
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import OtherLake
from nq_pipeline.leases.leases import Leases
from nq_pipeline.runtime import endpoints
from nq_pipeline.spend import database
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline_tests.testing.ledgers import PASSWORD
from nq_pipeline_tests.testing.postgres import PostgresServer


def test_a_machine_with_another_lake_is_refused_in_one_sentence(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    a, b = (build_settings(data_dir=tmp_path / host, ledger_url=url) for host in "ab")
    open_ledger(a)
    with pytest.raises(OtherLake) as refused:
        open_ledger(b)
    sentence = str(refused.value)
    assert f"{tmp_path}/a/sandbox" in sentence and f"{tmp_path}/b/sandbox" in sentence
    assert "NQ_LAKE_URL" in sentence and PASSWORD not in sentence and "\n" not in sentence
    with pytest.raises(OtherLake):
        Leases.of(b)
    with pytest.raises(OtherLake), endpoints(b):  # before anything is requested
        pass
    assert not (tmp_path / "b" / "sandbox" / "lake").exists()
    open_ledger(a)
    monkeypatch.setenv("NQ_DATA_DIR", str(tmp_path / "b"))
    monkeypatch.setenv("NQ_LEDGER_URL", url)
    for words in (["budget"], ["run", "--json"]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1 and "NQ_LAKE_URL" in done.output and done.output.count("\n") == 1
    done = CliRunner().invoke(main, ["budget", "adopt-lake"])
    assert done.exit_code == 0 and f"{tmp_path}/b/sandbox" in done.output
    open_ledger(b)
    monkeypatch.setattr(database, "_checked", set())
    with pytest.raises(OtherLake):
        open_ledger(a)


def test_environments_have_lakes_of_their_own(postgres: PostgresServer, tmp_path: Path) -> None:
    settings = build_settings(data_dir=tmp_path, ledger_url=postgres.new_database())
    open_ledger(settings)
    open_ledger(settings.with_values(environment="live"))


def test_one_machine_has_no_lake_to_adopt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQ_DATA_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["budget", "adopt-lake"])
    assert done.exit_code == 1 and "PostgreSQL" in done.output
    assert not (tmp_path / "sandbox" / "lake_id").exists()
