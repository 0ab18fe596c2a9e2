"""The notebook runs from top to bottom on a lake with data, and on one where hardly anything is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from nq_pipeline.analytics.pricing import price_snapshot
from nq_pipeline.analytics.snapshot import measure_snapshot
from nq_pipeline.settings import Settings
from nq_pipeline_tests.report.conftest import capture, take

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "first_look.py"


def environment(settings: Settings) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("NQ_")}
    return ours | {"NQ_DATA_DIR": str(settings.data_dir)}


def run(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=environment(settings), capture_output=True, text=True, timeout=100
    )


def test_it_runs_as_a_script_and_shows_every_picture(tmp_path: Path) -> None:
    pytest.importorskip("marimo", reason="marimo is not installed (make install)")
    settings, snapshot = take(tmp_path / "data")
    capture(settings, snapshot)
    pricing = price_snapshot(settings, snapshot.chain, run_id="run")
    measure_snapshot(settings, snapshot.chain, pricing, run_id="run")
    done = run(settings, str(NOTEBOOK))
    assert done.returncode == 0, done.stderr
    # marimo leaves its session beside the notebook.
    copy, page = tmp_path / NOTEBOOK.name, tmp_path / "page.html"
    shutil.copy(NOTEBOOK, copy)
    done = run(settings, "-m", "marimo", "export", "html", str(copy), "-o", str(page), "--no-include-code")
    assert done.returncode == 0, done.stderr
    shown = unescape(page.read_text())
    for title in ("Volatility smile", "Term structure", "Expected move", "Gamma exposure", "Put/call ratio"):
        assert re.search(rf'"text\\*": \\*"{title}', shown) or title in shown, title
    assert "MarimoExceptionRaisedError" not in shown and "Traceback" not in shown
    assert json.dumps("SANDBOX")[1:-1] in shown


def test_where_nothing_was_priced_or_captured_it_says_so_and_does_not_fail(tmp_path: Path) -> None:
    pytest.importorskip("marimo", reason="marimo is not installed (make install)")
    settings, _ = take(tmp_path)
    done = run(settings, str(NOTEBOOK))
    assert done.returncode == 0, done.stderr
