"""The notebook runs from top to bottom on a lake with data, and on one where hardly anything is.

How it looks in a browser is a test of the report's, which has one open.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest

from nq_pipeline.analytics.snapshot import price_and_measure
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.report_lake import NOTEBOOK, store_snapshot, store_trades


def shown(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the notebook's cells show."""
    pytest.importorskip("marimo", reason="marimo is not installed (make install)")
    monkeypatch.setenv("NQ_DATA_DIR", str(settings.data_dir))
    outputs, _ = runpy.run_path(str(NOTEBOOK))["app"].run()
    return list(outputs)


def test_it_shows_every_chart_and_marks_synthetic_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, snapshot = store_snapshot(tmp_path)
    store_trades(settings, snapshot)
    on_es = pl.col("root", "series", "contract_key").str.replace("^Q", "E").str.replace("^EN2", "EW2")
    both = pl.concat([snapshot.chain, snapshot.chain.with_columns(on_es)])
    price_and_measure(settings, both, run_id="run")
    outputs = shown(settings, monkeypatch)
    choices = [list(one.options) for one in outputs if hasattr(one, "options")]
    assert ["NQ", "ES"] in choices
    pictures = [one for one in outputs if isinstance(one, alt.LayerChart)]
    smiles = pictures[0].to_json()
    assert "Q2B" in smiles and "E2B" not in smiles, "one product at a time"
    assert [one.title.text.split(",")[0] for one in pictures] == [
        "Volatility smile",
        "Term structure",
        "Expected move",
        "Open interest",
        "Net gamma exposure",
        "Put/call ratio",
        "Pressure",
    ]
    assert any("SANDBOX" in str(getattr(one, "text", "")) for one in outputs)


def test_it_says_where_nothing_was_priced_or_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = store_snapshot(tmp_path)
    outputs = shown(settings, monkeypatch)
    assert not any(isinstance(one, alt.LayerChart) for one in outputs)
    said = [str(getattr(one, "text", "")) for one in outputs]
    assert any("No smile" in text for text in said) and any("No pressure for calls" in text for text in said)


def test_make_notebook_opens_it_with_its_charts_drawn() -> None:
    """marimo's editor shows code until somebody presses run, unless it is told otherwise."""
    manager = pytest.importorskip("marimo._config.manager", reason="marimo is not installed (make install)")
    config = manager.get_default_config_manager(current_path=str(NOTEBOOK)).get_config()
    assert config["runtime"]["auto_instantiate"] is True
