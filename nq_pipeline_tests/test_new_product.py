"""A new product is one row of the product table: nothing else has to change for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROW = """
    Product(
        code="TOY",
        name="Toy futures",
        underlying_class="future",
        multiplier=5.0,
        ticks=((_INF, 0.05),),
        timezone="America/Chicago",
        settlements=_EQUITY_SETTLEMENTS,
        families=(
            Family("quarterly", ("TOY",), FRIDAY, "AM", "american", _AM),
            _weekly(WEDNESDAY, "T{}W"),
        ),
    )
"""


STORY = """
import json
from click.testing import CliRunner
from nq_pipeline.cli import main

def nq(*words):
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout

nq("run")
rows = nq("sql", "--json", "select series, multiplier, underlying, count(*) as contracts, "
    "count(implied_volatility) as priced from option_chain_priced where product = 'TOY' group by all")
told = {name: nq(name, "--markdown") for name in ("settings", "tables")}
print(json.dumps(told | {"rows": json.loads(rows)}))
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a copy of the package with the row says of a snapshot that it took."""
    folder = tmp_path_factory.mktemp("toy")
    package = Path(__file__).parents[1] / "nq_pipeline"
    shutil.copytree(package, folder / "nq_pipeline")  # with its byte code, which is still valid
    table = folder / "nq_pipeline/market/products.py"
    text = table.read_text()
    assert text.count("for product in (NQ, ES, GC)}") == 1
    table.write_text(text.replace("for product in (NQ, ES, GC)}", f"for product in (NQ, ES, GC, {ROW})}}"))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("NQ_")},
        "PYTHONPATH": str(folder),
        "NQ_NOW": "2025-06-10T15:00:00Z",
        "NQ_PRODUCTS": "TOY",
        "NQ_SOURCES": "databento",
        "NQ_HORIZON_DAYS": "1",
        "NQ_FAR_EXPIRATIONS": "0",
        "NQ_SOURCE_DEADLINE_S": "60",
    }
    command = [sys.executable, "-c", STORY]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_its_contracts_are_listed_and_priced(story: Any) -> None:
    (series,) = story["rows"]
    assert (series["series"], series["multiplier"], series["underlying"]) == ("T2W-2025-06-11", 5.0, "TOYM5")
    assert series["contracts"] > 20
    assert series["priced"] > 10


def test_its_name_is_in_settings_and_tables(story: Any) -> None:
    assert "TOY (Toy futures)" in story["settings"]
    assert "5 for TOY" in story["tables"]
    assert "future (NQ, ES, GC, TOY)" in story["tables"]
