"""Which lake the ledger of an environment belongs to.

Machines that share a ledger must share the lake, too: with a lake of its own, a machine would buy what
another has bought, and each would hold a part of the rows. So the ledger's database remembers the lake at
first use, and a machine that sees another one is refused.
"""

from __future__ import annotations

import socket

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from nq_pipeline.clock import real_now
from nq_pipeline.errors import OtherLake
from nq_pipeline.settings import Settings
from nq_pipeline.workspace import Workspace

LAKES = sa.table(
    "nq_lakes",
    sa.column("environment", sa.String),
    sa.column("lake_id", sa.String),
    sa.column("place", sa.String),
    sa.column("host", sa.String),
    sa.column("since", sa.DateTime(timezone=True)),
)


def check_lake(connection: sa.Connection, settings: Settings) -> None:
    """Remember this machine's lake if the ledger has none yet; raise `OtherLake` if it has another.

    Raises `StoreError` when the lake's object store cannot be reached.
    """
    workspace = Workspace.of(settings)
    try:
        ours = workspace.identify_lake()
    except OSError:
        return  # a folder that cannot be written: nothing will be
    given = _row(settings, ours)
    connection.execute(postgresql.insert(LAKES).values(given).on_conflict_do_nothing())
    of = LAKES.c.environment == settings.environment
    known = connection.execute(sa.select(LAKES).where(of)).one()
    if known.lake_id != ours:
        raise OtherLake(
            f"the ledger belongs to the lake {known.place}, first used by {known.host} on "
            f"{known.since:%Y-%m-%d}, and this machine sees the lake {given['place']}; set NQ_LAKE_URL to "
            "the same object store on every machine, or run `nq budget adopt-lake` if this lake replaces the "
            "other"
        )


def adopt_lake(connection: sa.Connection, settings: Settings) -> str:
    """Make the lake that this machine sees that of the ledger; returns where it is."""
    given = _row(settings, Workspace.of(settings).identify_lake())
    statement = postgresql.insert(LAKES).values(given)
    connection.execute(statement.on_conflict_do_update(index_elements=[LAKES.c.environment], set_=given))
    return str(given["place"])


def _row(settings: Settings, lake_id: str) -> dict[str, object]:
    return {
        "environment": settings.environment,
        "lake_id": lake_id,
        "place": Workspace.of(settings).objects.uri(),
        "host": socket.gethostname(),
        "since": real_now(),
    }
