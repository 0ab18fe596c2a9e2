"""A whole snapshot with its lake, archive and reports in an object store: written here, read there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nq_pipeline import cli
from nq_pipeline_tests.testing.s3 import ACCESS_KEY, SECRET_KEY, Bucket, Fault, FaultProxy

COUNT = "select source, count(*) as n, count(distinct snapshot_ts) as snapshots from source_chain group by 1"


def nq(*words: str, folder: Path, url: str) -> Result:
    """Run one command of a machine whose data folder is `folder`."""
    variables = {
        "NQ_NOW": "2025-06-10T15:00:00Z", "NQ_HORIZON_DAYS": "1", "NQ_FAR_EXPIRATIONS": "0",
        "NQ_SOURCES": "barchart,databento",
        "NQ_DATA_DIR": str(folder), "NQ_LAKE_URL": url, "NQ_STORE_TIMEOUT_S": "10",
        "NQ_LEDGER_URL": f"sqlite:///{folder.parent}/ledger.sqlite",
    }  # fmt: skip
    result = CliRunner().invoke(cli.main, list(words), env=variables)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert SECRET_KEY not in result.output and ACCESS_KEY not in result.output
    return result


def test_a_snapshot_is_written_on_one_machine_and_read_on_another(tmp_path: Path, bucket: Bucket) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run = nq("run", "--json", folder=here, url=bucket.url)
    assert run.exit_code == 0, run.output
    counted = nq("sql", COUNT, "--csv", folder=here, url=bucket.url)
    assert counted.exit_code == 0 and "barchart" in counted.stdout
    assert nq("sql", COUNT, "--csv", folder=there, url=bucket.url).stdout == counted.stdout

    replayed = nq("run", "--from-raw", "latest", "--json", folder=there, url=bucket.url)
    assert replayed.exit_code == 0, replayed.output
    rows = json.loads(replayed.stdout)["rows"]
    assert (rows["source_chain"], rows["option_chain"]) == (0, 0), "the lake has these rows already"
    assert nq("sql", COUNT, "--csv", folder=here, url=bucket.url).stdout == counted.stdout

    report = nq("report", "--no-open", folder=there, url=bucket.url)
    name = "lakes/nq/sandbox/reports/2025-06-10T15-00-00Z.html"
    assert f"Report: s3://{bucket.name}/{name}" in report.stdout
    assert bucket.read(name).startswith(b"<!doctype html>")

    assert nq("retention", "--dry-run", folder=there, url=bucket.url).exit_code == 0
    doctor = json.loads(nq("doctor", "--json", folder=there, url=bucket.url).stdout)
    assert doctor["store"]["entitled"] is True
    for folder in (here, there):
        files = (path.relative_to(folder / "sandbox") for path in folder.rglob("*") if path.is_file())
        kept = {path.as_posix() for path in files if path.parts[0] in ("lake", "raw", "reports")}
        assert {name for name in kept if not name.endswith("lock")} == set(), "all that is shared is there"


def test_a_capture_copies_its_log(tmp_path: Path, bucket: Bucket) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for _ in range(5):  # on a busy machine the first trade comes late
        done = nq("capture", "--minutes", "0.1", "--json", folder=here, url=bucket.url)
        assert done.exit_code == 0, done.output
        trades = nq("sql", "select count(*) as n from trades", "--json", folder=there, url=bucket.url)
        if json.loads(trades.stdout)[0]["n"]:
            break
    else:
        raise AssertionError("no trade came")
    copies = {name.rpartition("/")[2] for name in bucket.names() if "/sandbox/capture/" in name}
    segments = {path.name for path in here.rglob("*.dbn")}
    assert segments and copies == {f"{name}.{suffix}" for name in segments for suffix in ("zst", "sha256")}


@pytest.mark.slow
def test_a_snapshot_survives_a_store_that_is_busy(
    tmp_path: Path, flaky_bucket: Bucket, s3_faults: FaultProxy
) -> None:
    busy = (Fault(status=503, method=method, times=6) for method in ("GET", "PUT"))
    s3_faults.show(*busy, Fault(loses_answer=True, method="PUT", times=3))
    run = nq("run", "--json", "--source", "barchart", folder=tmp_path / "here", url=flaky_bucket.url)
    assert run.exit_code == 0, run.output
    assert s3_faults.left == 0
    rows = nq("sql", COUNT, "--json", folder=tmp_path / "here", url=flaky_bucket.url)
    assert {row["snapshots"] for row in json.loads(rows.stdout)} == {1}


def test_a_store_that_is_away_is_one_sentence(tmp_path: Path, bucket: Bucket) -> None:
    for words in (["run"], ["sql", "select 1"], ["report", "--no-open"], ["run", "--from-raw", "latest"]):
        done = nq(*words, folder=tmp_path, url="s3://there-is-no-such-bucket/nq")
        assert done.exit_code == 1, words
        assert "the object store s3://there-is-no-such-bucket does not exist" in done.stderr
        assert "Traceback" not in done.output
