"""A gateway that repeats the key wherever it can: the key reaches no file, no event and no terminal."""

from __future__ import annotations

import logging
from pathlib import Path

import dagster as dg
import pytest
import zstandard

from nq_pipeline.sandbox.gateway.fault_script import Fault
from nq_pipeline_tests.testing.capture_market import capture_market
from nq_pipeline_tests.testing.dagster_runs import run_capture, run_failure


def holding(folder: Path, key: str) -> list[Path]:
    """The files below a folder in which the key is found, unpacked too."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".zst":
            content += zstandard.ZstdDecompressor().stream_reader(content).read()
        if key.encode() in content or key.encode() in path.name.encode():
            found.append(path)
    return found


@pytest.mark.parametrize("kind", ["refuse_auth", "error"])
def test_a_key_that_the_gateway_repeats_is_redacted_everywhere(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "db-repeated-by-a-hostile-gateway0"
    fault = Fault(kind, code=1, text=f"Authentication failed. The key {key} is deactivated.")
    home = tmp_path / "home"
    home.mkdir()
    with (
        dg.DagsterInstance.local_temp(str(home)) as instance,
        capture_market(tmp_path, fault, load=300, key=key) as it,
    ):
        run = run_capture(it, instance)
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert f"The key {'*' * len(key)} is deactivated" in run_failure(instance, run)
        events = str(instance.all_logs(run.run_id))
    assert events and key not in events
    assert sum(path.is_file() for path in tmp_path.rglob("*")) > 10 and not holding(tmp_path, key)
    assert key not in "".join(capfd.readouterr()) and key not in caplog.text
