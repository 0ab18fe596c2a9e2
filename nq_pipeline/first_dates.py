"""Where the partitions of chains and of the capture begin, so that none is missing that nobody can fill.

No Dagster here: `ui.py` works the dates out, and `partitions.py` reads them in Dagster's processes.
"""

from __future__ import annotations

import os
from datetime import date

from nq_pipeline.capture.quality import last_opened
from nq_pipeline.errors import LakeError
from nq_pipeline.lake.store import Lake
from nq_pipeline.lake.tables import SOURCE_CHAIN, TRADES, Table
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

ALL = date(2025, 1, 2)
"""The first partition where none is given, as for history, which can be bought."""
CHAINS = "DAGSTER_NQ_FIRST_CHAIN"
CAPTURE = "DAGSTER_NQ_FIRST_CAPTURE"


def first_dates(settings: Settings) -> dict[str, str]:
    """The variables that tell Dagster its first partitions of chains and of the capture.

    Vendors show the current trade date only, so partitions begin with the oldest trade date in the
    lake; without any, with the current one.
    """
    from nq_pipeline.sandbox.process import market_clock

    lake = Workspace.of(settings).lake
    chain = sessions.current_session(settings.clock.now()).trade_date
    capture = last_opened(market_clock(settings).now(), settings.capture_window)
    return {
        CHAINS: _oldest(lake, SOURCE_CHAIN, chain).isoformat(),
        CAPTURE: _oldest(lake, TRADES, capture).isoformat(),
    }


def given(variable: str) -> date:
    """The first partition as `nq ui` gave it to this process, or that of all."""
    value = os.environ.get(variable)
    return date.fromisoformat(value) if value else ALL


def _oldest(lake: Lake, table: Table, today: date) -> date:
    """The oldest trade date of a table, or today; that of all where the table cannot be read."""
    try:
        return min([today, *(file.trade_date for file in lake.manifest(table).files)])
    except LakeError:
        return ALL
