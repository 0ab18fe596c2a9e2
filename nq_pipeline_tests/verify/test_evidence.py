"""What a verification leaves behind: enough to look into, nothing secret."""

from __future__ import annotations

import json
from pathlib import Path

import databento
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.lake.objects import LocalObjects
from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline.verify.check import CheckResult
from nq_pipeline.verify.evidence import Evidence
from nq_pipeline.verify.run import VerifyReport, run_checks
from nq_pipeline_tests.testing.verify_standins import run_verification, serve_feed, verify_settings

MARK = "db-marked-0123456789-abcdefghijk"
EVERYTHING = (
    "connect",
    "stream",
    "symbols",
    "reconnect",
    "replay",
    "entitlement",
    "cost",
    "cache",
    "databento",
)


def marked(folder: Path) -> list[Path]:
    """The files in which the key stands."""
    return [path for path in folder.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]


def said(report: VerifyReport) -> str:
    return json.dumps(report.as_json(), default=str)


def test_the_report_has_every_line_and_its_figures(tmp_path: Path) -> None:
    with serve_feed() as it:
        report = run_verification(it, tmp_path, "connect", "stream", "symbols", "reconnect", "replay")
    folder = Path(report.evidence)
    assert folder.parent == tmp_path / "sandbox" / "evidence"
    kept = json.loads((folder / "report.json").read_text())
    assert [line["check"] for line in kept["checks"]] == [result.check for result in report.results]
    assert kept["dataset"] == "GLBX.MDP3" and kept["versions"]["databento"] and kept["sound"] is True
    stream = next(line for line in kept["checks"] if line["check"] == "stream")
    assert stream["facts"]["trades"] > 0 and stream["seconds"] > 0


def test_samples_are_small_files_for_the_official_reader(tmp_path: Path) -> None:
    with serve_feed() as it:
        report = run_verification(it, tmp_path, "connect", "stream", "reconnect")
    for name in ("stream.dbn", "replay.dbn"):
        sample = Path(report.evidence) / name
        assert sample.stat().st_size < 1 << 20
        frame = databento.DBNStore.from_file(sample).to_df(schema="trades", map_symbols=False)
        assert 0 < len(frame) <= 1_000 and (frame["price"] > 0).all()


@pytest.mark.parametrize(
    "fault",
    [
        None,
        Fault("refuse_auth", text=f"there is no key {MARK} here"),
        Fault("error", code=6, text=f"the session of {MARK} failed", after_records=50),
        Fault("cut", after_records=50),
    ],
    ids=lambda fault: fault.kind if fault else "none",
)
def test_a_key_is_nowhere_even_where_the_vendor_repeats_it(fault: Fault | None, tmp_path: Path) -> None:
    with serve_feed(*[fault] if fault else [], keys=(MARK,)) as it:
        report = run_verification(it, tmp_path, *EVERYTHING, databento_api_key=MARK)
    assert marked(tmp_path) == [] and MARK not in said(report)
    if fault and fault.text:
        assert "*" * len(MARK) in said(report)


def test_an_unusable_evidence_folder_fails_before_any_request(tmp_path: Path) -> None:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "evidence").touch()
    with serve_feed(Fault("refuse_connection")) as it:
        with pytest.raises(OSError, match="evidence"):
            run_verification(it, tmp_path, "connect")
        assert not it.script.injected


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_bytes_keep_their_length_and_lose_the_secret(before: bytes, after: bytes) -> None:
    evidence = Evidence(LocalObjects(Path()), "run", verify_settings(None, Path(), databento_api_key=MARK))
    kept = evidence.redact(before + MARK.encode() + after)
    assert len(kept) == len(before) + len(MARK) + len(after)
    assert MARK.encode() not in kept and kept.startswith(before[:0]) and kept.endswith(after[len(after) :])


def test_secrets_are_found_at_any_depth_and_the_longer_ones_first() -> None:
    evidence = Evidence(
        LocalObjects(Path()),
        "run",
        verify_settings(None, Path(), databento_api_key=MARK, polygon_api_key=MARK[:10], tradovate_sec="abc"),
    )
    redacted = evidence.redact({"a": [f"{MARK}!", {MARK[:10]: 1}], "b": 2, "c": None, "d": "abc"})
    assert redacted == {"a": ["*" * len(MARK) + "!", {"*" * 10: 1}], "b": 2, "c": None, "d": "abc"}


def test_what_was_found_before_an_interruption_is_kept(tmp_path: Path) -> None:
    def interrupt(result: CheckResult) -> None:
        raise KeyboardInterrupt

    with serve_feed() as it, pytest.raises(KeyboardInterrupt):
        run_checks(verify_settings(it, tmp_path), clock=it.clock, on_result=interrupt)
    (report,) = (tmp_path / "sandbox" / "evidence").glob("*/report.json")
    assert [line["check"] for line in json.loads(report.read_text())["checks"]] == ["connect"]
