"""The first partitions of chains and of the capture, chosen so that no partition is missing for good.

`nq ui` computes the dates; `orchestration/partitions.py` reads them in Dagster's processes.
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

EARLIEST = date(2025, 1, 2)
"""The first partition by default, and always for history, which can be bought."""
CHAINS = "DAGSTER_NQ_FIRST_CHAIN"
CAPTURE = "DAGSTER_NQ_FIRST_CAPTURE"


def first_partitions(settings: Settings) -> dict[str, str]:
    """The environment variables that tell Dagster the first partitions of chains and of the capture.

    Vendors show only the current trade date, so partitions begin with the oldest trade date in the lake, or
    with the current one.
    """
    from nq_pipeline.runtime import market_clock

    lake = Workspace.of(settings).lake
    chain = sessions.current_session(settings.clock.now()).trade_date
    capture = last_opened(market_clock(settings).now(), settings.capture.window)
    return {
        CHAINS: _oldest(lake, SOURCE_CHAIN, chain).isoformat(),
        CAPTURE: _oldest(lake, TRADES, capture).isoformat(),
    }


def first_partition(variable: str) -> date:
    """The first partition that `nq ui` passed to this process, or `EARLIEST`."""
    value = os.environ.get(variable)
    return date.fromisoformat(value) if value else EARLIEST


def _oldest(lake: Lake, table: Table, today: date) -> date:
    """The oldest trade date of a table, or `today` if it is empty; `EARLIEST` if it cannot be read."""
    try:
        return min([today, *(file.trade_date for file in lake.manifest(table).files)])
    except LakeError:
        return EARLIEST
