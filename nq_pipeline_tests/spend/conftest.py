"""A fresh ledger on every database the ledger is kept in, and a machine whose clock may be wrong."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from nq_pipeline.configuration import build_settings
from nq_pipeline.settings import Settings
from nq_pipeline_tests.testing.ledgers import FreshLedger

NUMBERS = count()


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> FreshLedger:
    """Settings of a new, empty ledger; more settings by name."""
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None

    def make(**more: Any) -> Settings:
        own: dict[str, Any] = {"data_dir": tmp_path / f"data-{next(NUMBERS)}", **more}
        if server:
            own["ledger_url"] = server.new_database()
        return build_settings(**own)

    return make
